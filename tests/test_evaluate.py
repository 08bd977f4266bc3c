"Metrics against known values, what is recorded with them, files of other evaluators, the cache; and samples by the thousand, in processes, after kills."
import dataclasses, json, math, os, signal, subprocess, sys, time, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest, torch
from torch.testing import assert_close
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from consistency_nb import references as R
from consistency_nb.checkpoints import save
from consistency_nb.data import Images, arrays, dataset, pictures
from consistency_nb.evaluate import closeness, evaluate, frechet_distance, kernel_distance, precision_recall, statistics
from consistency_nb.features import extract
from consistency_nb.nets import UNet
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.npz import read_reference, read_samples, write_samples
from consistency_nb.references import PROTOCOL, Seen, check_alike, identity, picked, reference, report, spread, summarize, table
from consistency_nb.stream import Job, collect, describe, folder_of, job_sampler, read_images, run_jobs

ROOT = Path(__file__).resolve().parent.parent

class Blocks(FeatureExtractorBase):
    "Means over eight blocks of a picture, as an extractor: fast, and its statistics can be worked out."
    def __init__(self, name, features_list, **kwargs): super().__init__(name, features_list)
    get_provided_features_list = staticmethod(lambda: ('blocks',))
    get_default_feature_layer_for_metric = staticmethod(lambda metric: 'blocks')
    can_be_compiled = staticmethod(lambda: False)
    def forward(self, x): return (x.float().flatten(1).unflatten(1, (8, -1)).mean(2),)

@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv('CONSISTENCY_NB_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('PYTHONPATH', str(ROOT)); monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, 'blocks', Blocks)

def noise(n, seed=0, size=8): return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

# ---- metrics against known values

@pytest.mark.parametrize('n, m, D', [(40, 60, 3), (500, 300, 24), (20, 30, 40)])
def test_frechet_against_the_formula(n, m, D):
    "Against the root of one symmetric matrix, for sets of any rank."
    a, b = normal(n, D) @ normal(D, D, seed=1) + 1, normal(m, D, seed=2) @ normal(D, D, seed=3)
    A, B = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    want = (a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * cross
    assert_close(torch.tensor(frechet_distance(a, b), dtype=torch.float64), want, rtol=1e-5, atol=1e-4)

def test_gaussian_shift():
    "Samples of two Gaussians: the squared shift, and (1 - s)^2 D of a scale, beside the floor."
    x, D, n = normal(40_000, 6), 6, 20_000
    got = evaluate(x[:n] * 1.5 + 0.7, x[n:], 'fid')['fd']
    assert abs(got - (D * 0.7**2 + D * 0.25)) < 0.1

def test_kernel_distance_by_hand():
    a, b = normal(30, 4).float(), normal(30, 4, seed=1).float() + 0.3
    k = lambda u, v: (u @ v.T / 4 + 1) ** 3
    within = lambda u: (k(u, u).sum() - k(u, u).diagonal().sum()) / (30 * 29)
    assert_close(torch.tensor(kernel_distance(a, b)[0]), within(a) + within(b) - 2 * k(a, b).mean(), rtol=1e-3, atol=1e-4)   # the subset is the whole set

def test_precision_recall_by_hand():
    a, b = normal(60, 3).float(), normal(80, 3, seed=1).float() * 0.7 + 0.5
    def share(u, v): return (torch.cdist(u, v) <= torch.cdist(v, v).sort(1).values[:, 3]).any(1).float().mean()
    assert_close(torch.tensor(precision_recall(a, b)), torch.stack([share(a, b), share(b, a)]), atol=1e-6, rtol=0.)

@pytest.mark.parametrize('cut', [1, 9, 250])
def test_statistics_of_a_stream(cut):
    "Far from the origin, where sums of squares would lose the digits."
    x = normal(250, 5) + 1e6
    s = statistics(iter(x.split(cut)))
    assert s.n == 250 and s.shape == (250, 5)
    assert_close(s.mu, x.mean(0), rtol=1e-14, atol=0.); assert_close(s.sigma, x.T.cov(), rtol=1e-6, atol=1e-8)

def test_bundled_array():
    "Sixteen pictures that can be written down, against their negatives: every number follows by hand."
    x = torch.arange(16 * 3 * 8 * 8).reshape(16, 3, 8, 8).remainder(251).to(torch.uint8)
    a, b = summarize([x], 'blocks'), summarize([255 - x], 'blocks')
    v = x.double().flatten(1).unflatten(1, (8, -1)).mean(2)
    assert_close(a.layers['blocks'].double(), v, rtol=1e-5, atol=1e-4)
    got = report(Seen(a.about | dict(rounding='nearest'), a.statistics, a.layers), Seen(b.about | dict(name='negative'), b.statistics, b.layers), 'fid')
    assert_close(torch.tensor(got['fd'], dtype=torch.float64), (2 * v.mean(0) - 255).square().sum(), rtol=1e-4, atol=1e-2)   # the covariances agree
    assert got['n'] == got['n_reference'] == 16 and got['size'] == 8 and got['reference_hash'] != a.about['hash']

# ---- what was compared

def some_report(**more): return dict(fd=1., kd=0.5, kd_std=0.01, **{k: 0 for k in PROTOCOL}) | more

@pytest.mark.parametrize('field', PROTOCOL)
def test_reports_that_differ_are_refused(field):
    a, b = some_report(), some_report(**{field: 'odd'})
    with pytest.raises(ValueError, match=f"'ours' and 'theirs' cannot be compared: {field} is 0 in the first and 'odd' in the second"): table(dict(ours=a, theirs=b))
    missing = {k: v for k, v in a.items() if k != field}
    with pytest.raises(ValueError, match=f"{field} is 0 in the first and 'not known'"): check_alike(dict(ours=a, theirs=missing))
    if field != 'seed':
        with pytest.raises(ValueError, match=field): spread([a, b | dict(seed=1)])

def test_table_and_spread():
    rows = [some_report(seed=s, fd=float(v), calls=2) for s, v in enumerate((10, 12, 17))]
    joined = spread(rows)
    assert joined['fd'] == dict(mean=13., std=math.sqrt(13)) and joined['seed'] == [0, 1, 2] and 'kd_std' not in joined
    lines = table(dict(a=joined, bb=joined | dict(fd=None)), ['fd', 'kd']).splitlines()
    assert [l.split() for l in lines] == [['fd', 'kd'], ['a', '13', '±', '3.6', '0.5', '±', '0'], ['bb', '0.5', '±', '0']]
    assert json.loads(json.dumps(joined)) == joined

def test_report_refuses_another_extractor_or_size():
    a, b = summarize([noise(5)], 'blocks'), summarize([noise(5, size=16)], 'blocks')
    b.about['name'] = 'b'
    with pytest.raises(ValueError, match='size is 8 in the first and 16'): report(a, b, 'fid')

# ---- the cache

def test_reference_is_computed_once(tmp_path, monkeypatch):
    data = Images(noise(30), 'noise')
    first = reference(data, 'blocks')
    monkeypatch.setattr(R, 'extract', None)
    again = reference(data, 'blocks')
    assert again.about == first.about and torch.equal(again.statistics.sigma, first.statistics.sigma) and torch.equal(again.layers['blocks'], first.layers['blocks'])
    for other in (dict(n=20), dict(seed=1, n=20), dict(features='efficientnet-lite0'), dict(data=Images(noise(30, 1), 'noise')), dict(data=Images(noise(30), 'other'))):
        with pytest.raises(TypeError): reference(**dict(data=data, features='blocks') | other)   # these are others, and would have to be looked at

@pytest.mark.parametrize('harm', [lambda b: b[:50], lambda b: b[:-4] + b'1234', lambda b: b''])
def test_damaged_cache_is_made_again(harm, tmp_path):
    data = Images(noise(30), 'noise')
    first = reference(data, 'blocks')
    file, = (tmp_path/'cache/features').iterdir()
    file.write_bytes(harm(file.read_bytes()))
    with pytest.warns(UserWarning, match='made again'): again = reference(data, 'blocks')
    with warnings.catch_warnings(): warnings.simplefilter('error'); third = reference(data, 'blocks')
    assert torch.equal(again.statistics.sigma, first.statistics.sigma) and torch.equal(third.statistics.sigma, first.statistics.sigma)

def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path/'cache').write_text('a file in the way')
    with pytest.warns(UserWarning, match='could not keep'): assert reference(Images(noise(30), 'noise'), 'blocks').about['n'] == 30

def test_parts_of_large_sets():
    data = Images(noise(50), 'noise')
    some = reference(data, 'blocks', n=20, seed=3, keep=8)
    order = picked(50, 20, 3, 8)
    whole = extract(data.images, 'blocks')['blocks']
    assert some.about['n'] == 20 and len(set(order.tolist())) == 20
    assert_close(some.layers['blocks'], whole[order[:8]], rtol=1e-5, atol=1e-4); assert_close(some.statistics.sigma, whole[order].double().T.cov(), rtol=1e-6, atol=1e-6)
    assert picked(50).tolist() == list(range(50)) and picked(50, keep=10).tolist() != list(range(50))

def test_folders_array_files_and_grey_pictures(tmp_path):
    from PIL import Image
    for i, x in enumerate(noise(6)): (tmp_path/'f').mkdir(exist_ok=True); Image.fromarray(x.permute(1, 2, 0).numpy()).save(tmp_path/f'f/{i}.png')
    held, read = pictures(tmp_path/'f', 8), pictures(tmp_path/'f', 8, memory=0)
    assert reference(held, 'blocks').about['hash'] == reference(read, 'blocks').about['hash'], 'the hash is of the pictures, not of the way they are read'
    before = identity(read)
    os.utime(tmp_path/'f/3.png', (1, 1))
    assert identity(pictures(tmp_path/'f', 8, memory=0)) != before
    np.save(tmp_path/'a.npy', noise(6).numpy())
    assert reference(arrays(tmp_path/'a.npy', memory=0), 'blocks').about['hash'] == reference(held, 'blocks').about['hash']
    assert summarize([noise(4)[:, :1]], 'blocks').about['n'] == 4

# ---- files of OpenAI's evaluator

def test_samples_there_and_back(tmp_path):
    x, y = noise(23), torch.arange(23)
    write_samples(tmp_path/'s.npz', x.split(5), 23, y)
    with np.load(tmp_path/'s.npz', allow_pickle=False) as f:
        assert f.files == ['arr_0', 'arr_1'] and f['arr_0'].dtype == np.uint8 and np.array_equal(f['arr_0'], x.permute(0, 2, 3, 1).numpy()) and f['arr_1'].tolist() == y.tolist()
    seen = read_samples(tmp_path/'s.npz', 'blocks', seed=7)
    assert torch.equal(seen.layers['blocks'], summarize([x], 'blocks').layers['blocks']) and seen.about['rounding'] == 'not known' and seen.about['seed'] == 7
    again = dataset(tmp_path/'s.npz')
    assert torch.equal(again.images, x) and torch.equal(again.labels, y)
    with pytest.raises(ValueError, match='end in .npz'): write_samples(tmp_path/'s', [x], 23)
    with pytest.raises(ValueError, match='uint8'): write_samples(tmp_path/'t.npz', [x.float()], 23)
    assert not (tmp_path/'t.npz').exists()

def test_reference_files(tmp_path):
    x = noise(40)
    seen = summarize([x], 'blocks')
    mu, sigma = (v.numpy() for v in seen.statistics[:2])
    spatial = normal(30, 7)
    np.savez(tmp_path/'adm.npz', arr_0=x[:10].permute(0, 2, 3, 1).numpy(), mu=mu, sigma=sigma, mu_s=spatial.mean(0).numpy(), sigma_s=spatial.T.cov().numpy())
    np.savez(tmp_path/'edm.npz', mu=mu.astype(np.float32), sigma=sigma.astype(np.float32))
    adm, edm = (read_reference(tmp_path/f'{n}.npz', 'blocks') for n in ('adm', 'edm'))
    assert adm.about['hash'] != edm.about['hash'] and adm.layers == edm.layers == {} and adm.about['n'] is None
    got = report(seen, adm, 'fid')
    assert abs(got['fd']) < 1e-3 and got['reference'] == 'adm' and abs(report(seen, edm, 'fid')['fd']) < 0.05
    full = read_reference(tmp_path/'adm.npz', 'blocks', pictures=True)
    assert full.layers['blocks'].shape == (10, 8) and torch.equal(full.statistics.sigma, adm.statistics.sigma)
    assert report(seen, full, ('fid', 'pr'))['n_reference'] is None
    s = statistics([spatial])
    assert s.shape == (30, 7) and abs(frechet_distance(s, statistics([spatial + 1])) - 7) < 1e-6
    with pytest.raises(ValueError, match='8 features and the reference 7'): evaluate(seen.statistics, s, 'fid')
    with pytest.raises(ValueError, match="enough for 'fid' alone"): evaluate(seen.layers, adm.statistics, ('fid', 'pr'), 'blocks')

MU, SIGMA = np.zeros(4), np.eye(4)
@pytest.mark.parametrize('arrays, said', [
    (dict(mu=MU), 'holds mu alone'), (dict(sigma=SIGMA), 'holds sigma alone'), (dict(x=MU), 'holds no arr_0'), (dict(mu=MU, sigma=np.eye(3)), 'no mean'), (dict(mu=SIGMA, sigma=SIGMA), 'no mean'),
    (dict(mu=np.full(4, np.inf), sigma=SIGMA), 'no mean'), (dict(mu=MU, sigma=SIGMA.astype(int)), 'no mean'), (dict(mu=MU.astype(complex), sigma=SIGMA), 'no mean'), (dict(mu=MU, sigma=np.tri(4)), 'no mean'),
    (dict(mu=np.array([{}], dtype=object), sigma=SIGMA), 'cannot be read'), (dict(arr_0=np.zeros((3, 8, 8, 3))), 'bytes'), (dict(arr_0=np.zeros((3, 8, 8, 4), np.uint8)), 'bytes')])
def test_malformed_arrays(arrays, said, tmp_path):
    np.savez(tmp_path/'bad.npz', **arrays)
    with pytest.raises(ValueError, match=said) as e: read_reference(tmp_path/'bad.npz', 'blocks')
    assert 'bad.npz' in str(e.value)

def test_damaged_files(tmp_path):
    write_samples(tmp_path/'s.npz', [noise(30)], 30)
    whole, rng = (tmp_path/'s.npz').read_bytes(), np.random.default_rng(0)
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path/'bad.npz').write_bytes(whole[:cut])
        with pytest.raises(ValueError, match='bad.npz cannot be read'): read_samples(tmp_path/'bad.npz', 'blocks')
    for at in rng.integers(200, len(whole) - 200, 12):   # within the packed pictures
        b = bytearray(whole); b[at] ^= 0x55
        (tmp_path/'bad.npz').write_bytes(b)
        with pytest.raises(ValueError, match='bad.npz cannot be read'): read_samples(tmp_path/'bad.npz', 'blocks')
    with zipfile.ZipFile(tmp_path/'bad.npz', 'w') as z: z.writestr('arr_0.npy', b'no header')
    with pytest.raises(ValueError, match='bad.npz'): read_samples(tmp_path/'bad.npz', 'blocks')
    np.save(tmp_path/'one.npy', noise(3).numpy())
    with pytest.raises(ValueError, match='one.npy cannot be read'): read_samples(tmp_path/'one.npy', 'blocks')
    with pytest.raises(FileNotFoundError): read_samples(tmp_path/'nothing.npz', 'blocks')

# ---- copies

def test_closeness():
    train = {'blocks': normal(400, 3).float()}
    fresh, d, i = closeness({'blocks': normal(300, 3, seed=1).float()}, train, share=0.3, features='blocks')
    assert abs(fresh['closer'] - 0.3) < 0.1 and fresh['expected'] == 0.3 and fresh['n'] == 300 and json.dumps(fresh)
    want = torch.cdist(normal(300, 3, seed=1).float(), train['blocks']).min(1)
    assert_close(d.float(), want.values, atol=1e-4, rtol=1e-4); assert torch.equal(i, want.indices)
    copies, *_ = closeness({'blocks': train['blocks'][:50]}, train, features='blocks')
    assert copies['closer'] == copies['copies'] == 1. and copies['copies_in_data'] == fresh['copies'] == 0 and copies['median'] < 1e-6 < copies['median_of_data'] and copies['most_copied'] == 1

# ---- samples by the thousand

def model_file(tmp_path, kind=Consistency, name='m', seed=0):
    torch.manual_seed(seed)
    net = UNet(channels=[8], blocks=1, patch=2, attention=[], emb=8)
    for p in net.parameters(): p.data.normal_(std=0.2)
    save(kind(net, 0.5), tmp_path/f'{name}.safetensors', dict(image_size=8))
    return str(tmp_path/f'{name}.safetensors')

def job(tmp_path, **more): return Job(**(dict(model=model_file(tmp_path), levels=(80., 1.), n=22, seed=100, features='efficientnet-lite0') | more))

def same(a, b): return a.about | dict(seconds=0) == b.about | dict(seconds=0) and torch.equal(a.statistics.sigma, b.statistics.sigma) and all(torch.equal(v, b.layers[k]) for k, v in a.layers.items())

def test_two_processes(tmp_path):
    jobs = [job(tmp_path)]
    one, two = (run_jobs(jobs, tmp_path/f'{n}', n, shard=5, say=(lines := []).append)[0] for n in (1, 2))
    assert lines == [], 'two processes left nothing to do'
    assert [*collect(one, jobs[0].seeds, 5).layers] == ['pool', 'logits'], 'the layer for distances comes first, as from `extract`'
    assert same(*(collect(f, jobs[0].seeds, 5) for f in (one, two))) and torch.equal(*(torch.cat([*read_images(f, jobs[0].seeds, 5)]) for f in (one, two)))

@pytest.mark.slow
def test_two_killed_processes(tmp_path):
    "What two killed processes leave is kept, one process does the rest, and the numbers are the same."
    jobs = [job(tmp_path)]
    one, = run_jobs(jobs, tmp_path/'1', shard=5)
    words = dict(jobs=[dataclasses.asdict(j) for j in jobs], out_dir=str(tmp_path/'3'), device='cpu', batch=50, shard=5)
    (tmp_path/'jobs.json').write_text(json.dumps(words))
    both = [dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', OMP_NUM_THREADS='1') for r in range(2)]
    ps = [subprocess.Popen([sys.executable, '-m', 'consistency_nb.stream', str(tmp_path/'jobs.json')], env=os.environ | e, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for e in both]
    until = time.monotonic() + 120
    while not list((tmp_path/'3').glob('*/*.safetensors')) and time.monotonic() < until: time.sleep(0.01)
    for p in ps: p.kill(); p.wait()
    there = len(list((tmp_path/'3').glob('*/[0-9]*.safetensors')))
    assert 1 <= there <= 5
    three, = run_jobs(jobs, tmp_path/'3', shard=5, say=(lines := []).append)
    assert len(lines) == 5 - there
    seen = [collect(f, jobs[0].seeds, 5) for f in (one, three)]
    assert seen[0].statistics.n == 22 and same(*seen)
    images = [torch.cat([*read_images(f, jobs[0].seeds, 5)]) for f in (one, three)]
    assert len(images[0]) == 22 and torch.equal(*images) and images[0].unique().numel() > 50

@pytest.mark.parametrize('way, more', [('multistep', dict(levels=(80., 5., 1.))), ('heun', dict(steps=4)), ('euler', dict(steps=4)), ('stochastic', dict(steps=4))])
def test_samples_depend_on_their_seed_alone(way, more, tmp_path):
    "Whatever the batch, the shard and the seeds around."
    name = model_file(tmp_path, Consistency if way == 'multistep' else Denoiser)
    one, other = (Job(name, way, n=n, seed=s, features='blocks', **more) for n, s in ((12, 40), (5, 44)))
    a = torch.cat([*read_images(run_jobs([one], tmp_path/'a', shard=12, batch=12)[0], one.seeds, 12)])
    b = torch.cat([*read_images(run_jobs([other], tmp_path/'b', shard=2, batch=1)[0], other.seeds, 2)])
    assert_close(a[4:9].int(), b.int(), atol=1, rtol=0.)
    assert (a[0].int() - a[1].int()).abs().max() > 20

def test_calls_are_counted(tmp_path):
    for kind, ways in ((Consistency, [dict(levels=(80., 9., 1.))]), (Denoiser, [dict(way='heun', steps=6), dict(way='euler', steps=6), dict(way='stochastic', steps=6)])):
        f = kind(UNet(channels=[8], blocks=1, patch=2, attention=[], emb=8), 0.5).requires_grad_(False)
        f.facts = {}
        for more in ways:
            calls, j = [], Job('m', **more)
            hook = f.net.register_forward_hook(lambda *a: calls.append(1))
            job_sampler(f, j)(80 * torch.randn(2, 3, 8, 8), range(2))
            hook.remove()
            assert len(calls) == j.calls, j

def test_classes_by_seed():
    net = UNet(channels=[8], blocks=1, patch=2, attention=[], emb=8, num_classes=3)
    seen, f = [], Consistency(net, 0.5).requires_grad_(False)
    net.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args[2] if len(args) > 2 else kwargs['y']).tolist()), with_kwargs=True)
    job_sampler(f, Job('m', levels=(80.,)))(80 * torch.randn(4, 3, 8, 8), range(4, 8))
    assert seen == [[1, 2, 0, 1]]

def test_other_weights_have_another_folder(tmp_path):
    j = job(tmp_path)
    from consistency_nb.checkpoints import load
    a = folder_of(tmp_path, j, describe(load(j.model), j))
    model_file(tmp_path, seed=1)
    b = folder_of(tmp_path, j, describe(load(j.model), j))
    assert a != b and a.name.rsplit('-', 1)[0] == b.name.rsplit('-', 1)[0] == 'm-multistep-2-100'

@pytest.mark.parametrize('wrong, said', [(dict(way='ddim'), 'valid ones are: multistep'), (dict(way='heun'), "way='heun' is for a Denoiser"), (dict(levels=(1., 80.)), 'levels must be'), (dict(n=0), 'at least one sample'),
                                         (dict(model='avatars32-c'), 'avatars32-cd'), (dict(features='inceptionv3'), 'efficientnet-lite0')])
def test_wrong_jobs(wrong, said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=said): run_jobs([job(tmp_path, **wrong)], tmp_path/'out')

@pytest.mark.slow
def test_a_process_that_fails_is_named(tmp_path):
    with pytest.raises(RuntimeError, match='(?s)ended with exit code 1.*valid ones are: multistep'): run_jobs([job(tmp_path, way='ddim')], tmp_path/'out', 2)

MEMORY = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
from test_evaluate import Blocks
from torch_fidelity.registry import register_feature_extractor
from consistency_nb.stream import collect, stream
register_feature_extractor('blocks', Blocks)
draw = lambda x, s: (x / 80).clamp(-1, 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def go(n):
    stream(draw, range(n), (3, 32, 32), {folder!r}, {{}}, 'blocks', say=lambda s: None)
    return collect({folder!r}, range(n), keep=100)
go(1000); first = peak()
assert go(12_000).statistics.n == 12_000
print(peak() - first)
"""

def test_memory_does_not_grow(tmp_path):
    "12,000 samples of 32 pixels, 148 MB as numbers and 37 as bytes, in the memory of 1,000."
    done = subprocess.run([sys.executable, '-c', MEMORY.format(tests=str(ROOT/'tests'), folder=str(tmp_path/'s'))], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20, 'MB'
