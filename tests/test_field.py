"Faults that people met with comparable tools: each of these was silent, or stuck, once."
import copy, io, json, multiprocessing, pickle, zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from consistency_nb.adm import ADMUNet
from consistency_nb.checkpoints import load, save
from consistency_nb.data import dataset
from consistency_nb.folders import Folder, read_picture, shown_size
from consistency_nb.ncsnpp import SongUNet
from consistency_nb.nets import UNet
from consistency_nb.precond import Consistency

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
