"""What only a graphics card can show: low precision, compiled networks, its memory format, its generators, NCCL.

Without a card every test here is skipped. GPU_TESTS_ON=cpu runs the same code on the processor, where gloo stands for
NCCL; it shows that the tests work, not that a card does. Nothing is downloaded.
"""
import copy, os, shutil, socket
import pytest, torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from consistency_nb.assemble import distance_of, step_of
from consistency_nb.checkpoints import load, make_net
from consistency_nb.core import replay, rng_state
from consistency_nb.launch import fit_in, model_of
from consistency_nb.parallel import Replicas, Shards, accelerator, place_of
from consistency_nb.place import Options, Parts
from consistency_nb.presets import FAMILY, override, preset
from consistency_nb.sample import multistep, onestep, start
from consistency_nb.train import Run, tensors_of, train
from test_family import small

pytestmark = pytest.mark.gpu
NETS = dict(UNet=dict(channels=[16, 32], blocks=1, patch=2),
            SongUNet=dict(image_size=16, model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8]),
            ADMUNet=dict(image_size=16, model_channels=32, channel_mult=[1, 2], num_res_blocks=1,
                         attention_resolutions=[8], num_head_channels=16))
METHODS = ['avatars32_edm', 'avatars32_cd', 'avatars32_ct', 'avatars32_pd', *(p.name for p in FAMILY)]
LOW = dict(bf16=torch.bfloat16, fp16=torch.float16)

@pytest.fixture(scope='module')
def device():
    "The card, or what GPU_TESTS_ON names."
    name = os.environ.get('GPU_TESTS_ON', 'cuda')
    if name == 'cuda' and not torch.cuda.is_available(): pytest.skip('there is no CUDA device here')
    return torch.device(name)

@pytest.fixture(autouse=True)
def exact_products():
    "float32 means float32 while a test runs, not TF32."
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [f.allow_tf32 for f in flags]
    for f in flags: f.allow_tf32 = False
    yield
    for f, v in zip(flags, before): f.allow_tf32 = v

def stirred(name):
    "A network on the processor whose last layers are not zero, pictures, levels as it hears them."
    torch.manual_seed(0)
    net = make_net(dict(cls=name, **NETS[name]))
    with torch.no_grad():
        for v in net.parameters(): v.add_(0.05 * torch.randn_like(v))
    return net, torch.randn(4, 3, 16, 16), torch.tensor([-1., 0., 0.5, 1.])

def call(net, x, c, device, dtype=None):
    "The output and the gradient of a mean square, in float32 on the processor."
    net.zero_grad()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None): out = net(x.to(device), c.to(device))
    out.float().square().mean().backward()
    return out.detach().float().cpu(), torch.cat([v.grad.float().cpu().flatten() for v in net.parameters()])

def off(a, b): return ((a - b).norm() / b.norm()).item()   # relative to the size of b

@pytest.mark.parametrize('name', NETS)
def test_a_network_is_the_processors(name, device):
    "In float32, contiguous and in channels last, forward and backward."
    net, x, c = stirred(name)
    want = call(net, x, c, torch.device('cpu'))
    for memory_format in torch.contiguous_format, torch.channels_last:
        there = copy.deepcopy(net).to(device, memory_format=memory_format)
        for got, whole in zip(call(there, x.to(memory_format=memory_format), c, device), want): assert off(got, whole) < 1e-4

@pytest.mark.parametrize('name', NETS)
def test_a_network_in_channels_last_stays_so(name, device):
    "What `Alone.take` asks for is what comes out: no layer turns the memory back."
    net, x, c = stirred(name)
    net = net.to(device, memory_format=torch.channels_last)
    seen = {}
    convs = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    def look(n): return lambda m, args, out: seen.update({n: out.is_contiguous(memory_format=torch.channels_last)})
    for n, m in convs: m.register_forward_hook(look(n))
    with torch.no_grad(): net(x.to(device, memory_format=torch.channels_last), c.to(device))
    assert convs and all(m.weight.is_contiguous(memory_format=torch.channels_last) for _, m in convs)
    assert all(seen.values()) and seen.keys() == {n for n, _ in convs}, [n for n, v in seen.items() if not v]

@pytest.mark.parametrize('precision', LOW)
@pytest.mark.parametrize('name', NETS)
def test_a_network_in_low_precision(name, precision, device):
    "Near float32, but not equal to it: autocast was on. Gradients are finite and point the same way."
    net, x, c = stirred(name)
    net = net.to(device, memory_format=torch.channels_last)
    (out, grad), (low, low_grad) = call(net, x, c, device), call(net, x, c, device, LOW[precision])
    bound = dict(bf16=0.05, fp16=0.01)[precision]
    assert 1e-5 < off(low, out) < bound
    assert low_grad.isfinite().all() and off(low_grad, grad) < 4 * bound

@pytest.mark.parametrize('name', NETS)
def test_a_compiled_network(name, device):
    "Forward and backward as they are, in float32 and in bfloat16."
    if device.type == 'cpu' and not any(map(shutil.which, ('c++', 'g++', 'clang++'))): pytest.skip('needs a C++ compiler')
    net, x, c = stirred(name)
    net = net.to(device, memory_format=torch.channels_last)
    quick = copy.deepcopy(net)
    quick.compile(dynamic=False)
    for dtype, bound in (None, 1e-4), (torch.bfloat16, 0.1):
        for got, want in zip(call(quick, x, c, device, dtype), call(net, x, c, device, dtype)): assert off(got, want) < bound
    torch.compiler.reset()

@pytest.mark.parametrize('steps', [1, 2])
@pytest.mark.parametrize('name', ['avatars32-cd', 'avatars32-ct'])
def test_images_of_seeds_are_the_processors(name, steps, device):
    "A seed is a picture, wherever it is drawn."
    here, there = (load(name, d).sample(6, steps=steps, seed=3).cpu() for d in ('cpu', device))
    assert here.std() > 0.2 and (here - there).abs().mean() < 1e-4 and (here - there).abs().max() < 0.05

def test_images_of_the_teacher(device):
    here, there = (load('avatars32-edm', d).sample(3, seed=3).cpu() for d in ('cpu', device))
    assert (here - there).abs().mean() < 1e-3

def test_pictures_in_bf16_are_the_same_pictures(device):
    f = load('avatars32-cd', device)
    x, y = start(range(6), (3, 32, 32), device=device), torch.arange(6, device=device)
    plain = onestep(lambda x, t: f(x, t, y), x)
    f.autocast = torch.bfloat16
    low = onestep(lambda x, t: f(x, t, y), x)
    assert low.dtype == torch.float32 and 0 < (low - plain).abs().mean() < 0.05

def test_masks_are_played_again(device):
    "`replay` holds the generator of the device on which dropout draws."
    drop, ones, state = nn.Dropout(0.5), torch.ones(1000, device=device), rng_state(device)
    first = drop(ones)
    with replay(state): again = drop(ones)
    assert torch.equal(first, again) and not torch.equal(first, drop(ones))

def method(name, device, **changes):
    "A preset and its parts on 8 pixels, for the paper's four methods as well; the teacher is where the run will be."
    family = name in {p.name for p in FAMILY}
    p, parts = small(name if family else 'avatars32_ecd', **changes if family else {})
    if not family:
        p = override(preset(name), **dict(image_size=8, batch=6, precision='fp32', init='random', data='x', net=p.net) | changes)
        teacher = parts.teacher if p.method == 'cd' else None
        parts = Parts(parts.net, parts.data, teacher, distance_of(p), step_of(p))
    for f in filter(None, (parts.teacher, parts.first)): f.net.to(device)
    return p, parts

def options(device, **more): return Options(device=device.type, **more)

@pytest.mark.parametrize('precision', ['fp32', *LOW])
@pytest.mark.parametrize('name', METHODS)
def test_twenty_steps(name, precision, device):
    "Each method learns something finite, and everything is where it should be."
    p, parts = method(name, device, iterations=20, precision=precision)
    before = [v.detach().clone() for v in parts.net.parameters()]
    run = train(Run(p, parts, options(device)))
    assert run.k == 20 and run.norm.device.type == device.type
    assert precision == 'fp16' or run.norm.isfinite()   # in fp16 a step may be left out
    after = [*run.raw.parameters()]
    assert all(v.device.type == device.type and v.dtype == torch.float32 and v.isfinite().all() for v in after)
    assert sum(not torch.equal(a, b.cpu()) for a, b in zip(before, after)) > 0.8 * len(after)
    assert run.scaler.is_enabled() == (precision == 'fp16')
    x, y = torch.randn(2, 3, 8, 8, device=device), torch.arange(2, device=device)
    f = model_of(run)
    assert f(x, 80., y).isfinite().all()
    if p.method in ('cd', 'ct'): assert_close(f(x, f.eps, y), x, rtol=0, atol=1e-6)

@pytest.mark.parametrize('name', METHODS)
def test_one_loss_on_both(name, device):
    "The same weights, pictures, noise and levels: the loss and the gradient that the processor has."
    here = torch.device('cpu')
    runs, g, seen = {d: Run(*method(name, d), options(d)) for d in (here, device)}, torch.Generator().manual_seed(1), []
    x0, z = (torch.randn(6, 3, 8, 8, generator=g) for _ in range(2))
    n, y = runs[here].objective.draw(0, 6, g), torch.arange(6) % 3
    for d, run in [*runs.items()] * (3 - len(runs)):   # on the processor alone, twice
        loss, t = run.objective(0, *(v.to(d) for v in (x0, z, n, y)))
        run.raw.zero_grad()
        loss.mean().backward()
        grads = [v.grad if v.grad is not None else torch.zeros_like(v) for v in run.raw.parameters()]
        seen.append((loss.detach().cpu(), torch.cat([v.flatten().cpu() for v in grads])))
    assert_close(seen[1][0], seen[0][0], rtol=1e-3, atol=1e-5)
    assert off(seen[1][1], seen[0][1]) < 5e-3

def test_a_compiled_run(device):
    "Twenty steps, compiled and plain: the same losses, but for rounding."
    if device.type == 'cpu' and not any(map(shutil.which, ('c++', 'g++', 'clang++'))): pytest.skip('needs a C++ compiler')
    losses = []
    for quick in False, True:
        p, parts = method('avatars32_cd', device, iterations=20)
        run = Run(p, parts, options(device, compile=quick))
        losses.append(torch.stack([run.step()[0].mean() for _ in range(20)]).cpu())
    torch.compiler.reset()
    assert_close(losses[1], losses[0], rtol=0.02, atol=1e-4)

@pytest.mark.parametrize('precision', ['fp32', *LOW])
def test_a_resumed_run_is_the_same(precision, device, tmp_path, monkeypatch):
    "Stopped in the middle and gone on, with dropout: every tensor, and the factor of fp16."
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True, warn_only=True)   # else two runs of one card differ in the last bits
    try:
        p, parts = method('avatars32_ict', device, dropout=0.1, iterations=12, precision=precision)
        o, stop = options(device), lambda run, record: setattr(run, 'stopping', run.k >= 6)
        whole = fit_in(tmp_path/'whole', p, copy.deepcopy(parts), o, bar=False)
        first = fit_in(tmp_path/'part', p, copy.deepcopy(parts), o, on_log=stop, log_every=0., bar=False)
        second = fit_in(tmp_path/'part', p, copy.deepcopy(parts), o, bar=False)
    finally: torch.use_deterministic_algorithms(False)
    assert 0 < first.k < 12 == second.k == whole.k
    a, b = tensors_of(whole), tensors_of(second)
    assert a.keys() == b.keys()
    exact = dict(rtol=0, atol=0) if device.type == 'cpu' else dict(rtol=1e-4, atol=1e-6)
    for n in a: assert_close(b[n], a[n], **exact, msg=lambda m: f'{n}: {m}')
    assert second.scaler.state_dict() == whole.scaler.state_dict()

@pytest.fixture
def one_process(device, monkeypatch):
    "A process group of one: NCCL on a card, gloo on the processor."
    from accelerate.state import AcceleratorState
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    said = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    for n, v in said.items(): monkeypatch.setenv(n, str(v))
    if device.type == 'cpu': monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    AcceleratorState._reset_state(True)
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, rank=0, world_size=1)
    yield backend
    dist.destroy_process_group()
    AcceleratorState._reset_state(True)

@pytest.mark.parametrize('kind', [Replicas, Shards], ids=lambda k: k.__name__)
def test_a_group_of_one_process(kind, one_process, device):
    "Replicas and shards, alone in their group, make the run that one makes without a group."
    p, parts = method('avatars32_ict', device, iterations=8)
    alone = train(Run(p, copy.deepcopy(parts), options(device)))
    place = kind(accelerator(device.type))
    assert dist.get_backend() == one_process and place.device.type == device.type and place.main
    run = train(Run(p, copy.deepcopy(parts), options(device, shard=kind is Shards), place))
    got = place.gather(tensors_of(run))
    for n, want in tensors_of(alone).items():
        assert_close(got[n].cpu(), want.cpu(), rtol=2e-3, atol=2e-5, msg=lambda m: f'{n}: {m}')
    f = model_of(run)   # of shards: on the processor
    where = next(f.net.parameters()).device
    assert f(torch.randn(2, 3, 8, 8, device=where), 80., torch.arange(2, device=where)).isfinite().all()

@pytest.mark.parametrize('name', ['avatars32_sct', 'avatars32_ccd'])
def test_tangents_through_shards(name, one_process, device):
    "Losses with a derivative, of weights in shards."
    p, parts = method(name, device, iterations=4)
    run = train(Run(p, parts, options(device, shard=True), Shards(accelerator(device.type))))
    assert run.k == 4 and run.norm.isfinite() and run.norm > 0

@pytest.mark.parametrize('world, shard, kind', [(1, False, 'Alone'), (1, True, 'Alone'), (2, False, 'Replicas'), (2, True, 'Shards')])
def test_where_a_process_is(world, shard, kind, device, monkeypatch):
    "`place_of` by the environment; two processes are asked for by name only, as there is one card."
    import consistency_nb.parallel as parallel
    monkeypatch.setenv('WORLD_SIZE', str(world))
    for n in 'Replicas', 'Shards': monkeypatch.setattr(parallel, n, lambda acc, n=n: n)
    monkeypatch.setattr(parallel, 'accelerator', lambda name: name)
    place = place_of(options(device, shard=shard))
    assert (place if isinstance(place, str) else type(place).__name__) == kind
    if world == 1: assert place.device.type == device.type

def test_two_calls_go_on_with_the_levels_of_a_model(device):
    "`multistep` on the card, with noise drawn by seeds."
    f = load('avatars32-cd', device)
    x, y = start(range(4), (3, 32, 32), device=device), torch.arange(4, device=device)
    two = multistep(lambda x, t: f(x, t, y), x, (80., 1.), seeds=range(4))
    assert two.device.type == device.type and two.isfinite().all() and not torch.equal(two, onestep(lambda x, t: f(x, t, y), x))
