"Faults that people met with comparable tools: each of these was silent, or stuck, once."
import copy, io, json, multiprocessing, os, pickle, struct, zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from consistency_nb.adm import ADMUNet
from consistency_nb.checkpoints import load, save
from consistency_nb.cache import write_whole
from consistency_nb.data import Images, dataset, say_once
from consistency_nb.distances import l2
from consistency_nb.edit import colorize, denoise, inpaint, interpolate, stroke, super_resolve
from consistency_nb.foreign import read_pt
from consistency_nb.folders import Folder
from consistency_nb.pixels import read_picture, shown_size, upright
from consistency_nb.grid import karras_grid
from consistency_nb.ncsnpp import SongUNet
from consistency_nb.nets import UNet, mix
from consistency_nb.place import Options, Parts
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.presets import override, preset
from consistency_nb.references import summarize
from consistency_nb.sample import multistep, of_class, onestep
from consistency_nb.solvers import Churn, edm_sample, gradients
from consistency_nb.train import Run, train

RNG = np.random.default_rng(0)

def picture(w=40, h=40): return Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8))

# ---- size and labels

@pytest.mark.parametrize('size', [None, 32, 64])
def test_wide_arrays_are_refused(size, tmp_path):
    np.save(tmp_path/'wide.npy', np.zeros((4, 3, 32, 64), np.uint8))
    with pytest.raises(ValueError, match='wide.npy holds pictures of 32 x 64 pixels.*a folder of picture files, which are made square'):
        dataset(tmp_path/'wide.npy', size=size)

@pytest.fixture(params=['folder', 'zip'])
def edm_set(request, tmp_path):
    "As NVlabs' tools write it: buckets of pictures, and labels that have nothing to do with the buckets."
    def make(labels):
        where = tmp_path/'set'
        for i in range(12):
            (where/f'{i // 6:05d}').mkdir(parents=True, exist_ok=True)
            picture(32, 32).save(where/f'{i // 6:05d}/img{i:08d}.png')
        (where/'dataset.json').write_text(json.dumps(dict(labels=labels)))
        if request.param == 'folder': return where
        with zipfile.ZipFile(tmp_path/'set-32x32.zip', 'w') as z:
            for f in sorted(where.rglob('*.*')): z.write(f, f.relative_to(where).as_posix())
        return tmp_path/'set-32x32.zip'
    return make

def test_labels_of_published_sets(edm_set):
    data = dataset(edm_set([[f'{i // 6:05d}/img{i:08d}.png', i % 3] for i in range(12)]), size=32)
    assert data.labels.tolist() == [i % 3 for i in range(12)] and data.shape == (3, 32, 32)

def test_no_labels_of_published_sets(edm_set): assert dataset(edm_set(None), size=32).labels is None

def test_a_zip_that_holds_no_pictures(tmp_path):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z:
        for i in range(100): z.writestr(f'{i:03d}.txt', 'x')
    with pytest.raises(FileNotFoundError, match='but 000.txt, 001.txt, 002.txt and 97 more'): dataset(tmp_path/'x.zip', size=32)

def test_folders_that_become_classes_are_said(tmp_path, capsys):
    for k in 'ab':
        (tmp_path/k).mkdir()
        picture().save(tmp_path/k/'1.PNG')
    assert dataset(tmp_path, size=8).classes == ('a', 'b')
    assert 'the folders in it are 2 classes: a, b' in capsys.readouterr().out

# ---- noise levels

NETS = dict(unet=lambda: UNet((8, 16), blocks=1, patch=1, attention=()),
            ncsnpp=lambda: SongUNet(image_size=8, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[]),
            ddpmpp=lambda: SongUNet(image_size=8, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[], embedding='positional'),
            adm=lambda: ADMUNet(image_size=8, model_channels=32, channel_mult=[1, 2], num_res_blocks=1, attention_resolutions=[], num_head_channels=32))

@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_weights_not_levels(name, dtype):
    "What the embedding is given, and its waves, keep all their digits."
    torch.manual_seed(0)
    f = Consistency(NETS[name]())
    for v in f.net.parameters(): torch.nn.init.normal_(v, std=0.2)
    seen = []
    f.net.embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t = torch.tensor([80., 79.9])
    with torch.no_grad(): f.to(dtype)(torch.randn(2, 3, 8, 8), t)
    assert_close(seen[0], t.log() / 4, rtol=0, atol=0)
    waves = getattr(f.net.embed, 'waves', None)
    if waves: assert_close(waves(seen[0]), type(f.net.embed).waves(copy.deepcopy(f.net.embed).float(), seen[0]), rtol=0, atol=0)

def test_frequencies_are_stored_whole(tmp_path):
    f = Consistency(NETS['ncsnpp']())
    save(f, tmp_path/'a.safetensors', half=True)
    assert torch.equal(load(tmp_path/'a.safetensors').net.embed.freqs, f.net.embed.freqs)

# ---- turned pictures

def test_a_turned_photo(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    im = Image.fromarray(np.linspace(0, 255, 400)[None, :, None].repeat(300, 0).repeat(3, 2).astype(np.uint8))   # light on the right
    im.save(tmp_path/'phone.jpg', exif=turned, quality=95)
    assert shown_size(tmp_path/'phone.jpg') == (300, 400)
    x = read_picture(tmp_path/'phone.jpg', 16)
    assert x[0, :, -1].mean() > x[0, :, 0].mean() + 1   # light at the foot

# ---- other processes

def first(data, queue): queue.put(data.batch(torch.tensor([0, 2])).sum().item())

@pytest.fixture(params=['files', 'zip', 'npy'])
def lazy(request, tmp_path):
    for i in range(3): picture().save(tmp_path/f'{i}.png')
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z:
        for i in range(3): z.write(tmp_path/f'{i}.png', f'{i}.png')
    np.save(tmp_path/'x.npy', RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    data = dataset(dict(files=tmp_path, zip=tmp_path/'x.zip', npy=tmp_path/'x.npy')[request.param], size=8, memory=0)
    assert isinstance(data, Folder)
    return data

@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_data_sets_in_other_processes(lazy, how):
    wanted, context = lazy.batch(torch.tensor([0, 2])).sum().item(), multiprocessing.get_context(how)   # used here before
    queue = context.Queue()
    p = context.Process(target=first, args=(lazy, queue), daemon=True)
    p.start()
    assert queue.get(timeout=60) == wanted
    p.join(10)

def test_data_sets_are_copied(lazy):
    for other in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert torch.equal(other.batch(torch.arange(3)), lazy.batch(torch.arange(3))) and len(pickle.dumps(other)) < 5000

# ---- gradients of samplers

def small_model():
    torch.manual_seed(0)
    f = Consistency(UNet((8, 16), blocks=1, patch=1, attention=()))
    for v in f.net.parameters(): torch.nn.init.normal_(v, std=.1)
    f.facts = dict(image_size=8)
    return f

LEVELS = (80., .8)
SAMPLERS = dict(onestep=lambda f, x: onestep(f, x), multistep=lambda f, x: multistep(f, x, LEVELS, seeds=[0, 1], clamp=False),
                edm=lambda f, x: edm_sample(f, x, 3), denoise=lambda f, x: denoise(f, x, 1.),
                inpaint=lambda f, x: inpaint(f, x, torch.arange(8) > 3, LEVELS, seeds=[0, 1], clamp=False),
                stroke=lambda f, x: stroke(f, x, LEVELS, seeds=[0, 1], clamp=False),
                interpolate=lambda f, x: interpolate(f, x[:1], x[1:], .3))

@pytest.mark.parametrize('name', SAMPLERS)
def test_samplers_keep_gradients_when_asked(name):
    f, draw = small_model().double(), SAMPLERS[name]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert not draw(f, x).requires_grad
    with gradients(): end = draw(f, x)
    way = torch.randn(end.shape, dtype=end.dtype, generator=torch.Generator().manual_seed(2))
    slope, = torch.autograd.grad((end * way).sum(), x)
    step = 1e-6 * torch.sign(slope)
    change = ((draw(f, x + step) - draw(f, x - step)) * way).sum() / 2
    assert_close((slope * step).sum(), change, rtol=1e-5, atol=1e-12)
    assert slope.abs().max() > 0

# ---- torch's defaults

def trained(net, images):
    "A few steps of training."
    p = override(preset('avatars32_ct'), image_size=8, batch=4, iterations=3, init='random', distance='l2', sigma_data=.58,
                 ema=.9, flip=True, label_dropout=.5, dropout=.1, net=dict(cls='UNet', dropout=.1))
    return train(Run(p, Parts(net, images, distance=l2), Options(device='cpu'))).averaged

def everything(f, images, measured):
    "Numbers of drawing, editing and measuring, made on the CPU in float32 whatever the defaults are."
    x, f.facts = images.batch(torch.arange(2, device='cpu')), dict(image_size=8)
    mask, y = torch.arange(8, device='cpu') > 3, [0, 1]
    g = of_class(f, y)
    yield from f.net.parameters()
    yield from (f.sample(4, levels=LEVELS), karras_grid(18), inpaint(g, x, mask, LEVELS, seeds=y), colorize(g, x, LEVELS, seeds=y),
                super_resolve(g, x, LEVELS, 2, seeds=y), stroke(g, x, LEVELS, seeds=y), interpolate(g, x[:1].repeat(2, 1, 1, 1), x, .3))
    yield from (edm_sample(g, x, 3), edm_sample(g, x, 3, churn=Churn(1., generator=torch.Generator().manual_seed(0))))
    if measured: yield summarize([images.images]).statistics.mu

@pytest.mark.parametrize('defaults', ['bfloat16', 'float64', 'meta'])
def test_defaults_of_torch_change_nothing(defaults):
    "But for torch's own optimiser and loader, which fail under another default device."
    torch.manual_seed(0)
    net = UNet((8, 16), blocks=1, patch=1, attention=(1,), num_classes=3, dropout=.1)
    for v in net.parameters(): torch.nn.init.normal_(v, std=.1)
    images = Images(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), 'set', torch.arange(40) % 3)
    f = trained(copy.deepcopy(net), images)
    wanted = [v.detach() for v in everything(f, images, defaults != 'meta')]
    try:
        if defaults == 'meta': torch.set_default_device('meta')
        else:
            torch.set_default_dtype(getattr(torch, defaults))
            f = trained(net, images)
        found = [v.detach() for v in everything(f, images, defaults != 'meta')]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    close = dict(rtol=1e-3, atol=1e-5) if defaults == 'float64' else dict(rtol=0, atol=0)   # RAdam counts its steps in the default dtype
    for a, b in zip(found, wanted, strict=True): assert_close(a, b, **close)

@pytest.mark.parametrize('name', NETS)
def test_frequencies_do_not_follow_the_default(name):
    wanted = {n: v for n, v in NETS[name]().named_buffers()}
    torch.set_default_dtype(torch.bfloat16)
    try: found = {n: v for n, v in NETS[name]().named_buffers()}
    finally: torch.set_default_dtype(torch.float32)
    for n in wanted:
        assert found[n].dtype == wanted[n].dtype != torch.bfloat16
        if name != 'ncsnpp': assert_close(found[n], wanted[n], rtol=0, atol=0)   # whose frequencies are drawn

# ---- derivatives

WITH_ATTENTION = dict(
    unet=lambda **o: UNet((8, 16), blocks=1, patch=1, attention=(1,), num_classes=3, **o),
    ncsnpp=lambda **o: SongUNet(image_size=8, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], **o),
    ddpmpp=lambda **o: SongUNet(image_size=8, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], embedding='positional', **o),
    adm=lambda **o: ADMUNet(image_size=8, model_channels=32, channel_mult=[1, 2], num_res_blocks=1, attention_resolutions=[4], num_head_channels=32, **o))

LAYOUTS = dict(as_made=torch.contiguous_format, as_loaded=torch.channels_last)   # torch takes another kernel for attention

def with_attention(name, layout, dtype=torch.float64, **o):
    torch.manual_seed(0)
    f = Consistency(WITH_ATTENTION[name](**o)).to(dtype)
    for v in f.net.parameters(): torch.nn.init.normal_(v, std=.1)
    return f.to(memory_format=LAYOUTS[layout])

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('training', [False, True], ids=['evaluation', 'training'])
@pytest.mark.parametrize('name', WITH_ATTENTION)
def test_forward_and_second_derivatives(name, training, layout):
    dropout = .1 if layout == 'as_made' else 0.   # channels last, torch draws it in another order under a forward derivative
    f = with_attention(name, layout, dropout=dropout).train(training)
    x, way = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    t, dt = torch.tensor([[3., .5], [1., 2.]], dtype=torch.float64)
    def g(x, t):
        torch.manual_seed(7)   # the same dropout
        return f(x, t)
    _, change = torch.func.jvp(g, (x, t), (way, dt))
    h = 1e-6
    assert_close(change, (g(x + h * way, t + h * dt) - g(x - h * way, t - h * dt)) / (2 * h), rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    def slope(x): return torch.autograd.grad((g(x, t) * way).sum(), x, create_graph=True)[0]
    twice, = torch.autograd.grad((slope(x) * way).sum(), x)
    assert_close((twice * way).sum(), ((slope(x + h * way) - slope(x - h * way)) * way).sum() / (2 * h), rtol=1e-4, atol=1e-6)
    assert twice.abs().max() > 0
    _, again = torch.func.jvp(torch.func.grad(lambda x: (g(x, t) * way).sum()), (x.detach(),), (way,))   # forward over backward
    assert_close(again, twice, rtol=1e-6, atol=1e-9)

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', WITH_ATTENTION)
def test_second_derivatives_of_weights(name, layout):
    "A penalty on the gradient, in the precision of training, through recomputed stages, too."
    found = []
    for again in (False, True):
        f = with_attention(name, layout, torch.float32)
        f.net.checkpointing = again
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        slope, = torch.autograd.grad(f(x, torch.tensor([3., .5])).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append([v.grad for v in f.net.parameters() if v.grad is not None])
    assert len(found[0]) > 20 and all(v.isfinite().all() for v in found[0])
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('which', range(3), ids=[*'qkv'])
def test_attention_with_one_tangent(which):
    "A forward derivative by the keys alone, or the values, finds its way as well."
    heads, way = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64), torch.randn(2, 2, 9, 8, dtype=torch.float64)
    def g(v): return mix(*(v if i == which else h for i, h in enumerate(heads)))
    _, change = torch.func.jvp(g, (heads[which],), (way,))
    assert_close(change, (g(heads[which] + 1e-6 * way) - g(heads[which] - 1e-6 * way)) / 2e-6, rtol=1e-6, atol=1e-8)

def test_the_usual_pass_is_the_kernels_own():
    "To the bit; and nothing is in the way of a compiler."
    def grads(f):
        heads = torch.randn(3, 2, 2, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        f(*heads).square().sum().backward()
        return heads.grad
    assert torch.equal(grads(mix), grads(torch.nn.functional.scaled_dot_product_attention))
    torch._dynamo.reset()
    assert torch.equal(grads(torch.compile(mix, backend='eager', fullgraph=True)), grads(mix))

def test_forward_derivatives_under_checkpointing():
    net = WITH_ATTENTION['unet']()
    for v in net.parameters(): torch.nn.init.normal_(v, std=.1)
    x, c = torch.randn(2, 2, 3, 8, 8), torch.zeros(2)
    def change(): return torch.func.jvp(lambda x: net(x, c), (x[0],), (x[1],))[1]
    wanted = change()
    net.checkpointing = True
    assert_close(change(), wanted)

# ---- odd pictures

def solid(mode, colour): return Image.new(mode, (8, 8), colour)

def palette(alpha):
    im = Image.new('P', (8, 8), 1)
    im.putpalette([0, 0, 0, 200, 100, 50])
    return im, dict(transparency=bytes([255, alpha]))

def frames(): return solid('RGB', (200, 100, 50)), dict(save_all=True, append_images=[solid('RGB', (0, 0, 255))], duration=50)

def inverted(path):
    "As Adobe's programs write CMYK: ink counted from the other end, and a marker that says so."
    solid('CMYK', (0, 128, 255, 0)).save(path, quality=100)

ODD = {   # name -> (how it is made, the colour that a viewer shows)
    'rgba.png': ((solid('RGBA', (200, 100, 50, 0)), {}), (255, 255, 255)), 'half.png': ((solid('RGBA', (200, 100, 50, 51)), {}), (244, 224, 214)),
    'la.png': ((solid('LA', (100, 255)), {}), (100,) * 3), 'clear_grey.png': ((solid('LA', (100, 0)), {}), (255,) * 3),
    'palette.png': (palette(255), (200, 100, 50)), 'clear_palette.png': (palette(0), (255,) * 3), 'line.png': ((solid('1', 1), {}), (255,) * 3),
    'grey16.png': ((solid('I;16', 32896), {}), (128,) * 3), 'grey16.tif': ((solid('I;16', 65535), {}), (255,) * 3),
    'ink.tif': ((solid('CMYK', (0, 128, 255, 0)), {}), (255, 127, 0)), 'frames.gif': (frames(), (200, 100, 50)), 'frames.webp': ((frames()[0], frames()[1] | dict(lossless=True)), (200, 100, 50)),
    'key.png': ((solid('RGB', (9, 9, 9)), dict(transparency=(9, 9, 9))), (255,) * 3), 'grey_key.png': ((solid('L', 9), dict(transparency=9)), (255,) * 3),
    'grey16_key.png': ((solid('I;16', 1000), dict(transparency=1000)), (255,) * 3), 'grey16_other_key.png': ((solid('I;16', 1000), dict(transparency=1001)), (4,) * 3),
    'grey32.tif': ((solid('I', 32896), {}), (128,) * 3), 'big_endian.tif': ((Image.fromarray(np.full((8, 8), 32896, '>u2')), {}), (128,) * 3),
    'pages.tif': ((frames()[0], dict(save_all=True, append_images=frames()[1]['append_images'])), (200, 100, 50)), 'frames.png': (frames(), (200, 100, 50)),
    'phone.jpg': ((frames()[0], dict(format='MPO', save_all=True, append_images=frames()[1]['append_images'], quality=100)), (200, 100, 50)),
    'lab.tif': ((solid('LAB', (255, 128, 128)), {}), (255,) * 3)}

@pytest.mark.parametrize('name', ODD)
@pytest.mark.parametrize('how', ['file', 'folder', 'zip'])
def test_odd_pictures_become_what_a_viewer_shows(name, how, tmp_path):
    (im, o), colour = ODD[name]
    im.save(tmp_path/name, **o)
    wanted = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    if how == 'file': assert_close(read_picture(tmp_path/name, 8)[0], wanted / 127.5 - 1, atol=2.1 / 127.5, rtol=0); return
    where = tmp_path
    if how == 'zip':
        where = tmp_path/'x.zip'
        with zipfile.ZipFile(where, 'w') as z: z.write(tmp_path/name, name)
    assert_close(dataset(where, size=8).images[0].int(), wanted.int(), atol=2, rtol=0)

def test_ink_of_adobe(tmp_path):
    inverted(tmp_path/'x.jpg')
    assert_close(read_picture(tmp_path/'x.jpg', 8)[0, :, 4, 4], torch.tensor([255., 127, 0]) / 127.5 - 1, atol=.05, rtol=0)

@pytest.mark.parametrize('premultiplied, straight, colour', [('La', 'LA', (100, 51)), ('RGBa', 'RGBA', (200, 100, 50, 51)), ('PA', None, (1, 51))])
def test_modes_that_few_files_have(premultiplied, straight, colour):
    im = solid(straight, colour).convert(premultiplied) if straight else solid(premultiplied, colour)
    if not straight: im.putpalette([0, 0, 0, 200, 100, 50])
    assert_close(torch.tensor(upright(im).getpixel((4, 4))), torch.tensor((224,) * 3 if premultiplied == 'La' else (244, 224, 214)), atol=2, rtol=0)

@pytest.mark.parametrize('mode, value', [('L', 55), ('I;16', 14135)])
def test_a_scan_whose_zero_is_white(mode, value, tmp_path):
    solid(mode, value).save(tmp_path/'x.tif')
    usual, negative = (struct.pack('<HHII', 262, 3, 1, zero) for zero in (1, 0))   # PhotometricInterpretation
    raw = (tmp_path/'x.tif').read_bytes()
    assert raw.count(usual) == 1
    for content, seen in (raw, 55), (raw.replace(usual, negative), 200):
        (tmp_path/'x.tif').write_bytes(content)
        assert_close(read_picture(tmp_path/'x.tif', 8)[0, :, 4, 4], torch.full((3,), seen / 127.5 - 1))

def torn(kind):
    "Two thirds of a picture file."
    file = io.BytesIO()
    picture().save(file, kind)
    return file.getvalue()[:len(file.getvalue()) * 2 // 3]

NO_PICTURES = dict(empty=(b'', r'\(it is empty\)'), letter=(b'a letter', "cannot identify image file '[^']*1.png'"), page=(b'<html>gone</html>', "cannot identify image file '[^']*1.png'"),
                   **{k: (torn(k), 'truncated|decoder') for k in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF')})

@pytest.mark.parametrize('name', NO_PICTURES)
@pytest.mark.parametrize('how', ['folder', 'zip', 'lazy'])
def test_a_file_that_is_no_picture_is_named(name, how, tmp_path):
    content, why = NO_PICTURES[name]
    where = tmp_path/'set'
    where.mkdir()
    for i in range(3): picture().save(where/f'{i}.png')
    (where/'1.png').write_bytes(content)
    if how == 'zip':
        with zipfile.ZipFile(tmp_path/'set.zip', 'w') as z:
            for f in where.iterdir(): z.write(f, f.name)
        where = tmp_path/'set.zip'
    with pytest.raises(ValueError, match=rf'{where.name}/1.png cannot be read as a picture .*({why}).*: mend it') as e:
        dataset(where, size=8, **dict(memory=0) if how == 'lazy' else {}).batch(torch.arange(3))
    assert '0.png' not in str(e.value) and 'BytesIO' not in str(e.value)

@pytest.mark.parametrize('names, said', [(['a.heic', 'b.HEIC'], 'a.heic, b.HEIC'), (['notes.txt', *(f'{i}.raw' for i in range(5))], '0.raw, 1.raw, 2.raw and 3 more'), (['deep/a.txt'], 'deep'), ([], 'nothing')], ids=str)
def test_a_folder_without_pictures_says_what_is_there(names, said, tmp_path):
    for n in names:
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match=rf'holds no pictures .*, but {said}$'): dataset(tmp_path, size=8)

@pytest.mark.parametrize('content', [b'a letter', b'\x89PNG\r\n', b'\x80\x04N.'], ids=str)
def test_nobody_is_told_to_unpickle(content, tmp_path):
    "numpy takes what it does not know for a pickle, and tells how to open that."
    (tmp_path/'x.txt').write_bytes(content)
    with pytest.raises(ValueError, match=r'x.txt cannot be read as arrays of bytes: it is no .npy and no .npz') as e: dataset(tmp_path/'x.txt')
    assert 'pickle' not in str(e.value)

def test_a_depth_without_a_range_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), .5, np.float32)).save(tmp_path/'x.tif')
    with pytest.raises(ValueError, match='x.tif.*pixels of mode F have no known range: save it with 8 or 16 bits'): read_picture(tmp_path/'x.tif', 8)

# ---- weights in larger dicts, weights of compiled networks, labels

@pytest.mark.parametrize('wrapped', [lambda raw, avg: dict(model=raw, ema=avg), lambda raw, avg: dict(net=raw, model_ema=dict(module=avg)),
                                     lambda raw, avg: dict(state_dict=dict(model=raw, ema=avg), step=3)])
def test_the_average_comes_before_the_raw_weights(wrapped, tmp_path):
    avg = small_model().net.state_dict()
    torch.save(wrapped({n: 0 * v for n, v in avg.items()}, {f'module._orig_mod.{n}': v for n, v in avg.items()}), tmp_path/'x.pt')
    found = read_pt(tmp_path/'x.pt')
    assert found.keys() == avg.keys() and all(torch.equal(found[n], avg[n]) for n in avg)

@pytest.mark.parametrize('half', [False, True])
def test_a_compiled_network_is_saved_under_its_names(half, tmp_path):
    f = small_model()
    wanted = f.net.state_dict()
    f.net = torch.compile(f.net, backend='eager')
    save(f, tmp_path/'f.safetensors', half=half)
    found = load(tmp_path/'f.safetensors').net.state_dict()
    assert found.keys() == wanted.keys()
    for n in wanted: assert_close(found[n], wanted[n], rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('labels', [np.arange(4) + .5, np.arange(4) - 1, np.eye(4, dtype=np.int64), np.array(list('abcd'))], ids=['float', 'negative', 'one-hot', 'text'])
def test_labels_of_arrays_are_whole_numbers(labels, tmp_path):
    np.savez(tmp_path/'x.npz', np.zeros((4, 8, 8, 3), np.uint8), labels)
    with pytest.raises(ValueError, match='arr_1 of x.npz is .*: labels must be whole numbers from 0, one per picture'): dataset(tmp_path/'x.npz', size=8)

def test_a_zip_in_capitals(tmp_path):
    picture(8, 8).save(tmp_path/'0.png')
    with zipfile.ZipFile(tmp_path/'X.ZIP', 'w') as z: z.write(tmp_path/'0.png', '0.png')
    assert len(dataset(tmp_path/'X.ZIP', size=8)) == 1

# ---- what a zip brings along, labels that nobody has, masks on nothing

def zipped(where, names, extra={}):
    with zipfile.ZipFile(where, 'w') as z:
        for n in names:
            file = io.BytesIO()
            picture(8, 8).save(file, 'PNG')
            z.writestr(n, file.getvalue())
        for n, text in extra.items(): z.writestr(n, text)
    return where

@pytest.mark.parametrize('around', ['', 'all/', 'all/of/'])
@pytest.mark.parametrize('kind', ['zip', 'folder'])
def test_folders_around_all_pictures_are_no_classes(around, kind, tmp_path, capsys):
    where = zipped(tmp_path/'s.zip', [f'{around}{c}/{i}.png' for c in ('cat', 'dog') for i in range(2)])
    if kind == 'folder':
        with zipfile.ZipFile(where) as z: z.extractall(tmp_path/'s')
        where = tmp_path/'s'
    data = dataset(where, size=8)
    assert data.classes == ('cat', 'dog') and data.labels.tolist() == [0, 0, 1, 1]

@pytest.mark.parametrize('at', ['', 'top/'])
def test_labels_that_lie_beside_the_pictures_of_a_zip(at, tmp_path):
    names = [f'00000/{i}.png' for i in range(3)] + ['00001/3.png']
    table = json.dumps(dict(labels=[[n, 3 - i] for i, n in enumerate(names)]))
    data = dataset(zipped(tmp_path/'s.zip', [at + n for n in names], {f'{at}dataset.json': table}), size=8)
    assert data.labels.tolist() == [3, 2, 1, 0] and data.classes == ()

@pytest.mark.parametrize('labels, said', [([1, 2, 3, 3], 'no picture has 1 of the labels 0 to 3 (the first is 0)'), ([0, 2, 9, 9], 'no picture has 7 of the labels 0 to 9 (the first is 1)'), ([0, 1, 1, 0], '')], ids=str)
def test_class_numbers_that_nobody_has_are_told(labels, said, tmp_path, capsys):
    np.savez(tmp_path/'x.npz', np.zeros((4, 8, 8, 3), np.uint8), labels)
    dataset(tmp_path/'x.npz', size=8)
    out = capsys.readouterr().out
    assert said in out if said else not out
    say_once.cache_clear()

def test_a_mask_on_nothing_asks_for_nothing(tmp_path):
    layer = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (4, 0, 8, 8))
    layer.save(tmp_path/'mask.png')
    mask = read_picture(tmp_path/'mask.png', 8, 1, 'black')[0, 0]
    assert mask[:, :4].eq(-1).all() and mask[:, 4:].eq(1).all()

def test_dead_links_are_named(tmp_path):
    picture().save(tmp_path/'a.png')
    (tmp_path/'b.png').symlink_to(tmp_path/'gone.png')
    for how in dict(), dict(memory=0):
        with pytest.raises(ValueError, match='b.png cannot be (opened|read as a picture).*mend it, replace it or take it away'): dataset(tmp_path, size=8, **how).batch(torch.arange(2))

# ---- level 0, per-sample transforms, shapes

@pytest.mark.parametrize('kind', [Consistency, Denoiser])
def test_level_0_is_no_hole(kind):
    f, x = kind(small_model().net), torch.randn(2, 3, 8, 8)
    assert_close(f(x, 0.), x, rtol=0, atol=.02)
    assert f(x, torch.tensor([0., 1.])).isfinite().all()
    _, v = torch.func.jvp(lambda t: f(x, t), (torch.zeros(2),), (torch.ones(2),))
    assert v.isfinite().all()

def test_labels_within_vmap():
    net = UNet(channels=(8, 8), blocks=1, emb=8, patch=1, num_classes=3)
    f, x, y = Consistency(net.eval().requires_grad_(False)), torch.randn(3, 3, 8, 8), torch.arange(3)
    assert_close(torch.func.vmap(lambda a, k: f(a[None], 5., k[None])[0])(x, y), f(x, 5., y))

@pytest.mark.parametrize('shape', [32, (32, 32), '32'], ids=str)
def test_shapes_have_three_numbers(shape):
    with pytest.raises(ValueError, match='pass .C, H, W., such as .3, 32, 32.'): small_model().sample(1, shape=shape)

# ---- what killed processes leave

def test_leftovers_of_killed_writers_go(tmp_path):
    old, young, other = (tmp_path/n for n in ('.x.npz.123', '.x.npz.124', '.y.npz.123'))
    for p in (old, young, other): p.write_text('half')
    for p in (old, other): os.utime(p, (0, 0))
    write_whole(tmp_path/'x.npz', lambda p: p.write_text('whole'))
    assert not old.exists() and young.exists() and other.exists() and (tmp_path/'x.npz').read_text() == 'whole'

def test_other_files_beside_are_left_alone(tmp_path):
    "Those of an editor, a folder, a dead link: none is deleted, none stops the writing."
    (tmp_path/'.x.json.swp').write_text('unsaved')
    (tmp_path/'.x.json.7').mkdir()
    (tmp_path/'.x.json.8').symlink_to('gone')
    for p in (tmp_path/'.x.json.swp', tmp_path/'.x.json.7'): os.utime(p, (0, 0))
    write_whole(tmp_path/'x.json', lambda p: p.write_text('whole'))
    assert (tmp_path/'x.json').read_text() == 'whole' and (tmp_path/'.x.json.swp').exists() and (tmp_path/'.x.json.7').is_dir()
    assert (tmp_path/'x.json').stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666

# ---- folders that lead back, lead nowhere, wait, or lie beside a picture

def classes_in(where, *names):
    for n in names:
        (where/n).parent.mkdir(parents=True, exist_ok=True)
        picture(8, 8).save(where/n)
    return where

def test_a_link_to_a_folder_above_multiplies_nothing(tmp_path):
    where = classes_in(tmp_path, 'a/0.png', 'a/1.png', 'b/0.png')
    (where/'a/all').symlink_to('..')
    (where/'self').symlink_to('.')
    data = dataset(where, size=8)
    assert len(data) == 3 and data.labels.tolist() == [0, 0, 1]

def test_a_class_that_cannot_be_opened_moves_no_label(tmp_path):
    where = classes_in(tmp_path, 'cat/0.png', 'emu/0.png')
    (where/'dog').symlink_to(tmp_path/'gone')
    with pytest.raises(ValueError, match='dog cannot be opened .*mend it, replace it or take it away'): dataset(where, size=8)

def test_a_pipe_is_not_waited_for(tmp_path):
    where = classes_in(tmp_path, '0.png')
    os.mkfifo(where/'f.png')
    assert len(dataset(where, size=8)) == 1

def test_a_picture_beside_folders_is_told(tmp_path, capsys):
    data = dataset(classes_in(tmp_path, 'cat/0.png', 'emu/0.png', 'preview.png'), size=8)
    assert data.labels is None and 'its folders are no classes, as preview.png lies beside them' in capsys.readouterr().out

def test_names_of_other_packers(tmp_path):
    "Written with backslashes, and twice under one name."
    where = zipped(tmp_path/'s.zip', ['cat\\0.png', 'dog\\0.png'])
    assert dataset(where, size=8).classes == ('cat', 'dog')
    with pytest.warns(UserWarning, match='Duplicate'): where = zipped(tmp_path/'t.zip', ['a/0.png', 'a/0.png', 'b/0.png'])
    assert len(dataset(where, size=8)) == 2

@pytest.mark.parametrize('name', ['./{}', 'x/../{}'])
def test_labels_may_spell_paths_otherwise(name, tmp_path):
    names = ['0/a.png', '1/b.png']
    data = dataset(zipped(tmp_path/'s.zip', names, {'dataset.json': json.dumps(dict(labels=[[name.format(n), i + 4] for i, n in enumerate(names)]))}), size=8)
    assert data.labels.tolist() == [4, 5]

def test_a_damaged_picture_of_a_zip_is_named(tmp_path):
    where = zipped(tmp_path/'s.zip', ['0.png', '1.png'])
    raw = bytearray(where.read_bytes())
    raw[raw.index(b'IDAT') + 10] ^= 255
    where.write_bytes(raw)
    with pytest.raises(ValueError, match='s.zip/0.png cannot be read as a picture .*CRC.*pack it again'): dataset(where, size=8)
    lazy = dataset(where, size=8, memory=0)
    assert len(lazy.check()) == 1

@pytest.mark.parametrize('name', ['x.NPY', 'x.npz', 'x.npy'])
def test_arrays_are_what_they_hold(name, tmp_path):
    with open(tmp_path/name, 'wb') as f: np.save(f, np.zeros((2, 8, 8, 3), np.uint8))
    assert dataset(tmp_path/name, size=8).shape == (3, 8, 8)

@pytest.mark.parametrize('depth', [2, 4])
def test_clear_pixels_of_few_bits(depth, tmp_path):
    "A PNG of 2 or 4 bits whose second grey is clear."
    import zlib
    width, key = 8, 1
    row = int(''.join(format(key if i < 4 else 2, f'0{depth}b') for i in range(width)), 2).to_bytes(width * depth // 8, 'big')
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    raw = b''.join(b'\0' + row for _ in range(8))
    (tmp_path/'x.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, 8, depth, 0, 0, 0, 0))
                                   + chunk(b'tRNS', struct.pack('>H', key)) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))
    for behind, want in ('white', 1.), ('black', -1.): assert read_picture(tmp_path/'x.png', 8, 1, behind)[0, 0, :, :4].eq(want).all()

# ---- transforms that nest, recomputation under forward mode

def test_labels_within_nested_transforms():
    net = UNet(channels=(8, 8), blocks=1, emb=8, patch=1, num_classes=3)
    f, x, y = Consistency(net.eval().requires_grad_(False)), torch.randn(3, 3, 8, 8), torch.arange(3)
    one = torch.func.grad(lambda a, k: f(a[None], 5., k[None]).square().sum())
    got = torch.func.vmap(one)(x, y)
    for i in range(3): assert_close(got[i], one(x[i], y[i]), rtol=1e-3, atol=1e-5)

def test_a_derivative_trains_with_recomputation_on():
    from consistency_nb.continuous import continuous_loss
    net = UNet(channels=(8, 8), blocks=1, emb=8, patch=1)
    net.checkpointing = True
    continuous_loss(Consistency(net), torch.randn(2, 3, 8, 8), torch.tensor([.5, 5.]), torch.randn(2, 3, 8, 8)).mean().backward()
    assert all(v.grad.isfinite().all() for v in net.parameters() if v.grad is not None)
