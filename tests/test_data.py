"""Data sets in every format, made up on the spot: the resize rule against arithmetic, odd files, labels, caches, errors. No network."""
import hashlib, os, pickle
from unittest.mock import patch
from urllib.error import URLError
import numpy as np
import pytest, torch
from PIL import Image
from torch.testing import assert_close
from torchvision.datasets import CIFAR10
from consistency_nb import data as D, sets
from consistency_nb.cache import digest
from consistency_nb.data import Folder, Images, check_sigma_data, dataset, imagenet, measure_sigma_data, pictures, to_bytes
from consistency_nb.folders import Files, class_labels, fingerprint, picture_files
from consistency_nb.pixels import read_square, square, upright
from consistency_nb.sets import Mapped, read_arrays

RNG = np.random.default_rng(0)
def noise(h, w, c=3): return RNG.integers(0, 256, (h, w, c), dtype=np.uint8)
def smooth(h, w): return np.asarray(Image.fromarray(noise(5, 4)).resize((w, h), Image.Resampling.BICUBIC))

@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    "A cache and a folder of data sets of its own for each test."
    monkeypatch.setenv('CONSISTENCY_NB_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('CONSISTENCY_NB_DATA', str(tmp_path/'sets'))
    monkeypatch.delenv('CONSISTENCY_NB_DOWNLOAD', raising=False)
    (tmp_path/'sets').mkdir()

def write(path, a, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(path, **kwargs)
    return path

@pytest.fixture
def zoo(tmp_path):
    "Two class folders with every kind of picture."
    z, a = tmp_path/'zoo', smooth(50, 70)
    write(z/'b'/'rgb.png', a); write(z/'b'/'photo.jpg', a); write(z/'b'/'deep'/'web.webp', a)
    write(z/'b'/'cmyk.tif', Image.fromarray(a).convert('CMYK')); write(z/'a'/'palette.png', Image.fromarray(a).quantize(32))
    write(z/'a'/'grey.png', a[..., 0]); write(z/'a'/'grey16.png', a[..., 0].astype(np.uint16) * 257)
    write(z/'a'/'line.png', noise(40, 1)); write(z/'a'/'flat.gif', a[..., 0])
    exif = Image.Exif(); exif[0x0112] = 6
    write(z/'b'/'lying.jpg', Image.fromarray(a), exif=exif)
    (z/'a'/'.hidden.png').write_bytes(b'x'); (z/'readme.txt').write_text('x')
    return z

# ---- the resize rule

def weights(n, m, kernel, radius):
    "(m, n) weights of a filter that takes n pixels to m, widened by the scale when shrinking."
    scale = n / m
    wide = max(scale, 1.)
    w = np.zeros((m, n))
    for i in range(m):
        centre = (i + 0.5) * scale
        for j in range(max(0, int(centre - radius * wide + 0.5)), min(n, int(centre + radius * wide + 0.5))): w[i, j] = kernel((j + 0.5 - centre) / wide)
    return w / w.sum(1, keepdims=True)

def box(x): return float(-0.5 < x <= 0.5)
def bicubic(x, a=-0.5):
    x = abs(x)
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x < 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.

def resized(a, w, h, kernel, radius):
    a = np.einsum('mn,hnc->hmc', weights(a.shape[1], w, kernel, radius), a)
    a = np.clip(np.floor(a + 0.5), 0, 255)   # bytes between the two directions
    return np.clip(np.floor(np.einsum('mn,nwc->mwc', weights(a.shape[0], h, kernel, radius), a) + 0.5), 0, 255)

def by_arithmetic(a, size):
    a = a.astype(float)
    while min(a.shape[:2]) >= 2 * size: a = resized(a, a.shape[1] // 2, a.shape[0] // 2, box, 0.5)
    s = size / min(a.shape[:2])
    a = resized(a, round(a.shape[1] * s), round(a.shape[0] * s), bicubic, 2.)
    y, x = (a.shape[0] - size) // 2, (a.shape[1] - size) // 2
    return a[y:y + size, x:x + size]

@pytest.mark.parametrize('h, w', [(16, 16), (31, 20), (97, 61), (64, 131), (9, 14), (33, 32)])
def test_resize_rule(h, w):
    a = noise(h, w)
    got = np.asarray(square(Image.fromarray(a), 16)).astype(float)
    off = np.abs(got - by_arithmetic(a, 16))
    assert got.shape == (16, 16, 3) and off.max() <= 1 and (off > 0).mean() < 0.02   # fixed-point weights: a half may fall to the other side

def test_halving_comes_first():
    "Away from twice the size the rule differs from one bicubic resize."
    a = noise(200, 160)
    got, once = square(Image.fromarray(a), 16), np.asarray(Image.fromarray(a).resize((16, 20), Image.Resampling.BICUBIC))[2:18]
    assert np.abs(np.asarray(got).astype(int) - once).max() > 10

def test_strips():
    a = np.zeros((1, 60_001, 3), np.uint8); a[:, 29_992:30_009] = 200
    sizes, resize = [], Image.Image.resize
    with patch.object(Image.Image, 'resize', lambda im, size, *args: sizes.append(size) or resize(im, size, *args)): got = np.asarray(square(Image.fromarray(a), 64))
    assert got.shape == (64, 64, 3) and (got == 200).all() and max(sizes) == (1024, 64)   # not 3.8 million pixels wide

# ---- odd pictures

@pytest.mark.parametrize('tag, stored', [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]), (5, lambda a: a.transpose(1, 0, 2)),
    (6, lambda a: np.rot90(a, 1)), (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)), (8, lambda a: np.rot90(a, -1))])
def test_exif(tmp_path, tag, stored):
    a, exif = noise(6, 9), Image.Exif()
    exif[0x0112] = tag
    path = write(tmp_path/'x.png', np.ascontiguousarray(stored(a)), exif=exif)
    assert (np.asarray(upright(Image.open(path))) == a).all()

def test_transparency(tmp_path):
    a = np.zeros((2, 2, 4), np.uint8); a[0, 0] = 10, 20, 30, 255; a[1, 1] = 200, 0, 0, 51   # the rest: black that is not to be seen
    want = np.full((2, 2, 3), 255); want[0, 0] = 10, 20, 30; want[1, 1] = 244, 204, 204
    write(tmp_path/'rgba.png', a)
    got = np.asarray(upright(Image.open(tmp_path/'rgba.png'))).astype(int)
    assert np.abs(got - want).max() <= 1
    p = Image.fromarray(np.array([[0, 1]], np.uint8)); p.putpalette([9, 8, 7, 0, 0, 0])
    write(tmp_path/'p.png', p, transparency=1); write(tmp_path/'p.gif', p, transparency=1)
    for kind in ('png', 'gif'): assert np.asarray(upright(Image.open(tmp_path/f'p.{kind}'))).tolist() == [[[9, 8, 7], [255] * 3]]
    write(tmp_path/'rgb.png', noise(1, 1) * 0, transparency=(0, 0, 0))
    assert np.asarray(upright(Image.open(tmp_path/'rgb.png'))).tolist() == [[[255] * 3]]

def test_grey_and_deep(tmp_path):
    a = np.array([[0, 100, 255]], np.uint8)
    for name, im in dict(grey=a, deep=a.astype(np.uint16) * 257, bit=Image.fromarray(a).convert('1')).items(): write(tmp_path/f'{name}.png', im)
    for channels, shape in ((3, (1, 3, 3)), (1, (1, 3))):
        for name in ('grey', 'deep'):
            got = np.asarray(upright(Image.open(tmp_path/f'{name}.png'), channels))
            assert got.shape == shape and (got.reshape(3, -1) == a.reshape(3, 1)).all()
    assert set(np.asarray(upright(Image.open(tmp_path/'bit.png'))).flatten().tolist()) == {0, 255}
    assert np.asarray(upright(Image.fromarray(np.array([[128, 129, 65535]], np.int32)), 1)).tolist() == [[0, 1, 255]]
    write(tmp_path/'float.tif', a.astype(np.float32))
    with pytest.raises(ValueError, match=r'float\.tif cannot be read.*mode F'): read_square(tmp_path/'float.tif', 8)

def test_cmyk():
    got = np.asarray(upright(Image.new('CMYK', (1, 1), (255, 0, 0, 0))))[0, 0]
    assert got[0] < 10 and got[1] > 245 and got[2] > 245   # cyan

# ---- folders

def test_listing_and_labels(zoo):
    names = picture_files(zoo)
    assert names == ['a/flat.gif', 'a/grey.png', 'a/grey16.png', 'a/line.png', 'a/palette.png', 'b/cmyk.tif', 'b/deep/web.webp', 'b/lying.jpg', 'b/photo.jpg', 'b/rgb.png']
    assert class_labels(names).tolist() == 5 * [0] + 5 * [1]
    assert class_labels(names[:5]) is None and class_labels(['x.png', *names]) is None
    assert class_labels(['n10/x.png', 'n9/x.png', 'n1/x.png']).tolist() == [1, 2, 0]   # by name, not by number

def test_folder_equals_images(zoo):
    held, lazy = dataset(zoo, size=32), dataset(zoo, size=32, memory=0)
    assert isinstance(held, Images) and isinstance(lazy, Folder)
    assert len(held) == len(lazy) == 10 and held.shape == lazy.shape == (3, 32, 32) and held.name == lazy.name == 'zoo'
    assert torch.equal(held.labels, lazy.labels) and held.labels.dtype == torch.long
    index, flip = torch.tensor([9, 0, 3, 3, 7]), torch.tensor([True, False, True, False, False])
    x = lazy.batch(index, flip)
    assert x.dtype == torch.float32 and -1 <= x.min() < x.max() <= 1
    assert torch.equal(x, held.batch(index, flip)) and torch.equal(lazy.to('cpu').batch(index), held.to('cpu').batch(index))
    assert_close(x[2].flip(-1), x[3])
    want = torch.from_numpy(np.array(square(upright(Image.open(zoo/'b'/'rgb.png')), 32))).permute(2, 0, 1)
    assert torch.equal(to_bytes(held.batch(torch.tensor([9])))[0], want)
    assert abs(measure_sigma_data(held) - measure_sigma_data(lazy)) < 1e-6
    assert abs(measure_sigma_data(held) - held.images.float().div(127.5).std().item()) < 1e-4

def test_one_channel_and_any_size(zoo):
    assert dataset(zoo, size=24, channels=1).images.shape == (10, 1, 24, 24) and dataset(zoo, size=100).shape == (3, 100, 100)
    with pytest.raises(ValueError, match='channels 1 or 3'): dataset(zoo, size=24, channels=4)
    with pytest.raises(ValueError, match='size=64'): dataset(zoo)

def test_without_classes(tmp_path):
    for i in range(3): write(tmp_path/'flat'/f'{i}.png', noise(8, 8))
    assert dataset(str(tmp_path/'flat'), size=8).labels is None
    assert dataset('flat', root=tmp_path, size=8).shape == (3, 8, 8)

def test_cache_knows_the_folder(zoo, tmp_path):
    kept = lambda: sorted((tmp_path/'cache').glob('*.safetensors'))
    first = dataset(zoo, size=16)
    with patch.object(sets, 'read_all', side_effect=AssertionError('prepared again')): assert torch.equal(dataset(zoo, size=16).images, first.images)
    assert len(kept()) == 1
    write(zoo/'a'/'line.png', noise(16, 16))
    assert not torch.equal(dataset(zoo, size=16).images, first.images) and len(kept()) == 2
    dataset(zoo, size=8); dataset(zoo, size=8, channels=1)
    assert len(kept()) == 4
    names = picture_files(zoo)
    mark = fingerprint(zoo, names, 8)
    os.utime(zoo/'b'/'rgb.png', (0, 0))
    assert fingerprint(zoo, names, 8) != mark   # same bytes, another time
    assert len({fingerprint(zoo, names, 8), fingerprint(zoo, names, 9), fingerprint(zoo, names[1:], 8), fingerprint(zoo/'a', ['line.png'], 8)}) == 4

def test_order_is_that_of_the_names(tmp_path):
    a = [noise(8, 8) for _ in range(4)]
    for folder, order in (('x', (0, 1, 2, 3)), ('y', (3, 1, 0, 2))):
        for i in order: write(tmp_path/folder/f'{i}.png', a[i])
    assert torch.equal(dataset(tmp_path/'x', size=8).images, dataset(tmp_path/'y', size=8).images)

def test_broken_files(zoo, tmp_path):
    (zoo/'a'/'cut.png').write_bytes((zoo/'b'/'rgb.png').read_bytes()[:200]); (zoo/'b'/'zero.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'2 of 12 pictures: .*cut\.png cannot be read'): dataset(zoo, size=16)
    assert not (tmp_path/'cache').exists()
    lazy = dataset(zoo, size=16, memory=0)
    assert [n in m for n, m in zip(('cut.png', 'zero.jpg'), lazy.check(), strict=True)] == [True, True]
    with pytest.raises(ValueError, match=r'cut\.png cannot be read'): lazy.batch(torch.arange(12))
    assert lazy.batch(torch.tensor([1, 2])).shape == (2, 3, 16, 16)   # goes on after an error

def test_empty(tmp_path):
    (tmp_path/'none').mkdir()
    with pytest.raises(FileNotFoundError, match='holds no pictures'): dataset(tmp_path/'none', size=8)
    with pytest.raises(ValueError, match='1 labels for 2'): Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 'x', torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match='1 labels for 2'): Folder([np.zeros((3, 4, 4), np.uint8)] * 2, 'x', torch.zeros(1, dtype=torch.long))

# ---- LMDB

def test_lmdb(zoo, tmp_path):
    lmdb = pytest.importorskip('lmdb')
    names = [n for n in picture_files(zoo) if not n.endswith('gif')]
    for split, some in (('train', names), ('val', names[:2])):
        folder = tmp_path/'sets'/'lsun_bedroom256'/f'bedroom_{split}_lmdb'
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 22) as env, env.begin(write=True) as txn:
            for n in reversed(some): txn.put(n.encode(), (zoo/n).read_bytes())
    held, lazy, again = dataset('lsun_bedroom256'), dataset('lsun_bedroom256', memory=0), dataset('lsun_bedroom256', memory=0)
    assert len(held) == len(lazy) == len(names) and held.shape == (3, 256, 256) and held.labels is None
    i = torch.arange(len(names))
    assert torch.equal(held.batch(i), lazy.batch(i)) and torch.equal(lazy.batch(i), again.batch(i))
    files = Files(zoo, names, 256)
    assert (to_bytes(lazy.batch(i)[3:4])[0].numpy() == files[3]).all()

def test_lmdb_errors(tmp_path):
    for n in 'ab': (tmp_path/'sets'/'lsun_cat256'/n).mkdir(parents=True); (tmp_path/'sets'/'lsun_cat256'/n/'data.mdb').write_bytes(b'')
    with pytest.raises(ValueError, match='2 LMDBs: name one of a, b'): dataset('lsun_cat256')
    with patch.dict('sys.modules', lmdb=None), pytest.raises(ImportError, match='pip install lmdb'): pictures(tmp_path/'sets'/'lsun_cat256'/'a', 8)

def test_lsun_folder_has_no_labels(tmp_path):
    for n in ('0/1/x.webp', '1/0/y.webp'): write(tmp_path/'sets'/'lsun_cat'/n, smooth(256, 300), lossless=True)   # the name without pixels will do
    cats = dataset('lsun_cat256')
    assert cats.labels is None and cats.name == 'lsun_cat256' and len(cats) == 2
    with Image.open(tmp_path/'sets'/'lsun_cat'/'0'/'1'/'x.webp') as im: want = np.asarray(im.convert('RGB'))[:, 22:278]
    assert (to_bytes(cats.batch(torch.tensor([0])))[0].permute(1, 2, 0).numpy() == want).all()   # a shorter side of 256: only the crop

# ---- arrays

@pytest.mark.parametrize('shape', [(5, 8, 8, 3), (5, 3, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8)])
def test_npy_and_npz(tmp_path, shape):
    a = RNG.integers(0, 256, shape, dtype=np.uint8)
    want = torch.from_numpy(a if shape[1] < 4 else np.ascontiguousarray(a.transpose(0, 3, 1, 2)))
    np.save(tmp_path/'x.npy', a); np.savez(tmp_path/'x.npz', a, np.arange(5)); np.savez(tmp_path/'y.npz', a)
    held, lazy = dataset(tmp_path/'x.npy', size=8), dataset(str(tmp_path/'x.npy'), memory=0)
    assert torch.equal(held.images, want) and held.images.is_contiguous() and held.labels is None and held.name == 'x'
    assert isinstance(lazy.pictures, Mapped) and torch.equal(to_bytes(lazy.batch(torch.arange(5))), want)
    z = dataset(tmp_path/'x.npz')
    assert torch.equal(z.images, want) and z.labels.tolist() == [0, 1, 2, 3, 4] and z.labels.dtype == torch.long
    assert dataset(tmp_path/'y.npz').labels is None

class Evil:
    def __reduce__(self): return exec, ('raise SystemExit("unpickled")',)

def test_array_errors(tmp_path):
    for name, a in dict(float=np.zeros((2, 8, 8, 3)), flat=np.zeros((2, 192), np.uint8), rgba=np.zeros((2, 8, 8, 4), np.uint8), which=np.zeros((2, 3, 8, 3), np.uint8)).items():
        np.save(tmp_path/f'{name}.npy', a)
        with pytest.raises(ValueError, match=rf'{name}\.npy holds .*uint8'): dataset(tmp_path/f'{name}.npy')
    np.save(tmp_path/'ok.npy', np.zeros((2, 8, 8, 3), np.uint8)); np.savez(tmp_path/'names.npz', a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(ValueError, match='8 x 8 pixels, 16 x 16 are needed'): dataset(tmp_path/'ok.npy', size=16)
    with pytest.raises(ValueError, match='holds a, b: the pictures must be called arr_0'): dataset(tmp_path/'names.npz')
    np.save(tmp_path/'evil.npy', np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r'evil\.npy cannot be read'): read_arrays(tmp_path/'evil.npy')
    np.savez(tmp_path/'evil.npz', arr_0=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match='allow_pickle'): read_arrays(tmp_path/'evil.npz')
    (tmp_path/'empty.npz').write_bytes(b''); (tmp_path/'cut.npy').write_bytes((tmp_path/'ok.npy').read_bytes()[:200])
    for name in ('empty.npz', 'cut.npy'):
        with pytest.raises(ValueError, match=f'{name} cannot be read'): dataset(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='is not there'): dataset(tmp_path/'gone.npz')

# ---- CIFAR-10

@pytest.fixture
def cifar(tmp_path):
    "Torchvision's layout with our checksums: its own check stays in force."
    folder, md5, a = tmp_path/'sets'/'cifar10'/'cifar-10-batches-py', {}, RNG.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    folder.mkdir(parents=True)
    def put(name, what): raw = pickle.dumps(what); (folder/name).write_bytes(raw); md5[name] = hashlib.md5(raw).hexdigest()
    for k in range(5): put(f'data_batch_{k + 1}', dict(data=a[4 * k:4 * k + 4].reshape(4, -1), labels=[k, 9, 0, 1]))
    put('batches.meta', dict(label_names=list('abcdefghij')))
    told = dict(train_list=[[n, m] for n, m in md5.items() if n != 'batches.meta'], test_list=[], meta=dict(CIFAR10.meta, md5=md5['batches.meta']))
    with patch.multiple(CIFAR10, **told): yield folder, torch.from_numpy(a)

def test_cifar10(cifar):
    folder, a = cifar
    for d in (dataset('cifar10'), dataset('cifar10', root=folder.parent, size=32)):
        assert torch.equal(d.images, a) and d.labels.tolist() == [x for k in range(5) for x in (k, 9, 0, 1)] and d.labels.dtype == torch.long
        assert (d.name, d.shape, d.images.is_contiguous()) == ('cifar10', (3, 32, 32), True)

def test_cifar10_is_checked(cifar):
    path = cifar[0]/'data_batch_3'; raw = bytearray(path.read_bytes()); raw[-500] ^= 1; path.write_bytes(raw)
    with pytest.raises(FileNotFoundError, match='missing or damaged.*cifar-10-python.tar.gz.*download=True'): dataset('cifar10')

def test_cifar10_download_only_when_asked(monkeypatch):
    calls = []
    def offline(*args, **kwargs): calls.append(args); raise URLError('no network')
    monkeypatch.setattr('torchvision.datasets.cifar.download_and_extract_archive', offline)
    with pytest.raises(FileNotFoundError, match='missing'): dataset('cifar10')
    assert not calls
    with pytest.raises(FileNotFoundError, match='could not be downloaded.*no network.*cifar-10-python.tar.gz'): dataset('cifar10', download=True)
    monkeypatch.setenv('CONSISTENCY_NB_DOWNLOAD', '1')
    with pytest.raises(FileNotFoundError, match='could not be downloaded'): dataset('cifar10')
    assert len(calls) == 2

# ---- ImageNet

def test_imagenet_folder(tmp_path):
    wnids = ['n01443537', 'n01440764', 'n02119789']
    for w in wnids:
        for i in range(2): write(tmp_path/'sets'/'imagenet64'/'train'/w/f'{w}_{i}.JPEG', smooth(140, 180), quality=95)
    write(tmp_path/'sets'/'imagenet64'/'val'/'x.JPEG', smooth(70, 70))
    with pytest.warns(UserWarning, match='3 class folders, ImageNet has 1000'): d = dataset('imagenet64')
    assert d.labels.tolist() == [0, 0, 1, 1, 2, 2] and d.shape == (3, 64, 64) and d.name == 'imagenet64'
    want = read_square(tmp_path/'sets'/'imagenet64'/'train'/'n02119789'/'n02119789_1.JPEG', 64)
    assert (d.images[5].numpy() == want).all()
    with pytest.warns(UserWarning): lazy = imagenet(tmp_path/'sets'/'imagenet64', 64, memory=0)
    assert isinstance(lazy, Folder) and torch.equal(lazy.batch(torch.tensor([5])), d.batch(torch.tensor([5])))

def test_imagenet_npz(tmp_path):
    root, a, labels = tmp_path/'small', RNG.integers(0, 256, (20, 3 * 64 * 64), dtype=np.uint8), RNG.integers(1, 5, 20)
    root.mkdir()
    for k in range(10): np.savez(root/f'train_data_batch_{k + 1}.npz', data=a[2 * k:2 * k + 2], labels=labels[2 * k:2 * k + 2], mean=a.mean(0))
    with pytest.raises(FileNotFoundError, match='map_clsloc.txt is missing'): dataset('imagenet64', root=root)
    (root/'map_clsloc.txt').write_text('n02119789 1 kit_fox\nn02100735 2 English_setter\nn02110185 3 husky\nn01440764 4 tench\n')
    d = dataset('imagenet64', root=root)
    assert torch.equal(d.images, torch.from_numpy(a).view(20, 3, 64, 64))    # file 10 comes last
    assert d.labels.tolist() == [{1: 3, 2: 1, 3: 2, 4: 0}[k] for k in labels.tolist()]
    with pytest.raises(ValueError, match='for 32 pixels'): dataset('imagenet32', root=root)
    (root/'train_data_batch_4.npz').unlink()
    with pytest.warns(UserWarning, match='9 of the 10 files'): assert len(dataset('imagenet64', root=root)) == 18
    (root/'map_clsloc.txt').write_text('n02119789 1 kit_fox\n')
    with pytest.raises(ValueError, match='does not know label'), pytest.warns(UserWarning): dataset('imagenet64', root=root)

def test_imagenet_without_classes(tmp_path):
    write(tmp_path/'x'/'1.png', noise(64, 64))
    with pytest.raises(ValueError, match='no class folders'): dataset('imagenet64', root=tmp_path/'x')

# ---- avatars

def test_avatars_are_the_same_everywhere():
    "Weights were trained on these pictures: if a new version of the drawing packages draws otherwise, this says so."
    assert digest(D.avatars(100).images) == '9541f2c20c50e9776a0feef0c59f38a0640dfbdc0b1c5e44e384f4abf5e64847'
    assert digest(D.avatars(20, 64, 5).images) == 'e9dd9dd3b87b12e552b95a7140ec6f1cb95808f4c5c8335309dbbf03c16f7e93'

def test_avatars_by_several_processes(tmp_path, monkeypatch, capfd):
    "Order, cache and content do not depend on who draws; a process that dies ends the drawing with its own words."
    alone = D.avatars(1004, 8)
    monkeypatch.setattr(os, 'cpu_count', lambda: 3)
    assert torch.equal(D.draw_avatars(1004, 0, 8), alone.images) and 'drawing 1,004 avatars at 8 px, once' in capfd.readouterr().out
    kept, = (tmp_path/'cache').glob('avatars-*-8-0-1004.safetensors')
    assert torch.equal(dataset('avatars8-1004').images, alone.images) and dataset('avatars8-1004').name == 'avatars8-1004' and alone.classes == D.STYLES
    monkeypatch.setattr(D, 'WORKER', 'raise SystemExit("no pencil")')
    with pytest.raises(RuntimeError, match='the process that drew avatar 0 ended'): D.draw_avatars(1004, 0, 8)
    assert 'no pencil' in capfd.readouterr().err

def test_no_run_trains_on_what_is_held_out():
    with pytest.raises(ValueError, match='n=10000001: pass a whole number'): dataset('avatars32-10000001')

# ---- names and the rest

def test_names(tmp_path, monkeypatch):
    for name in ('cifar', 'avatars', 'avatars032', 'avatars32-', 'avatars32-0', 'imagenet', 'lsun_church256'):
        with pytest.raises(ValueError, match='valid ones are: avatars32, avatars32-100000'): dataset(name)
    for name, page in (('imagenet64', 'image-net.org'), ('lsun_bedroom256', 'fyu/lsun'), ('lsun_cat256', 'fyu/lsun'), ('cifar10', 'cifar-10-python')):
        with pytest.raises(FileNotFoundError, match=page): dataset(name)
        with pytest.raises(ValueError, match='not 48: ask for'): dataset(name, size=48)
    monkeypatch.delenv('CONSISTENCY_NB_DATA')
    for name in ('imagenet64', 'lsun_cat256', 'cifar10'):
        with pytest.raises(FileNotFoundError, match='Set CONSISTENCY_NB_DATA to the folder that holds .*root='): dataset(name)

def test_sigma_data_of_a_sorted_set():
    "The sample is spread over the set: here its first half is black."
    x = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8); x[2000:] = 255
    assert abs(measure_sigma_data(Images(x)) - 1) < 3e-3 and abs(measure_sigma_data(Images(x[:7]))) < 1e-3
    with pytest.warns(UserWarning, match='set sigma_data=1$'): check_sigma_data(Images(x), 0.5)
