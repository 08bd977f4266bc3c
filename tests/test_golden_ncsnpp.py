"""NCSN++ and DDPM++ against numbers made with the published implementations (tests/golden).

Tolerances are those of the golden files' manifest: 10 to 20 times the difference between the published code in float32
and in float64.
"""
import json
from functools import partial
import pytest, torch
from torch import nn
from torch.testing import assert_close
from consistency_nb.continuous import along, continuous_loss, continuous_norm_loss
from consistency_nb.distances import l1, l2, pseudo_huber
from consistency_nb.grid import karras_grid, karras_level
from consistency_nb.losses import cd_loss, ct_loss, edm_loss, edm_weight, pd_loss
from consistency_nb.names import from_edm, from_flax, weight_names
from consistency_nb.ncsnpp import SongUNet, ddpmpp, ncsnpp
from consistency_nb.pfode import add_noise, denoised_to_score, slope
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.sample import onestep
from consistency_nb.solvers import Churn, edm_sample, edm_sample_ode, euler_step, heun_step, solve
from golden import FOLDER, golden, weights

EDM = {'05_edm_ncsnpp': partial(ncsnpp, model_channels=8, augment_dim=9, dropout=0.13),
       '05_edm_ddpmpp': partial(ddpmpp, model_channels=8, augment_dim=9, num_classes=10, dropout=0.13)}   # dropout is off in eval mode

def loaded(net, state):
    net.load_state_dict(state)
    return net.eval()

def largest(got, want, rtol):
    "Differences relative to the largest entry."
    assert_close(got, want, rtol=0, atol=rtol*want.abs().max().item())

# ---- 05: NVlabs/edm

@pytest.fixture(scope='module', params=EDM)
def edm(request):
    "Tensors, network, class labels, and another network of the same settings on demand."
    g, new = golden(request.param), EDM[request.param]
    net = new()
    y = g['in.class_labels_onehot'].argmax(1) if 'in.class_labels_onehot' in g else None
    return g, loaded(net, from_edm(net, weights(g))), y, new

class Augmented(nn.Module):
    "A network that gets the same augmentation labels at each call."
    def __init__(self, net, augment): super().__init__(); self.net, self.augment = net, augment
    def forward(self, x, c_noise, y=None): return self.net(x, c_noise, y, self.augment)

@torch.no_grad()
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_edm_network(edm, layout):
    g, net, y, new = edm
    net = loaded(new(), net.state_dict()).to(memory_format=layout)
    assert_close(net(g['in.raw.x'].to(memory_format=layout), g['in.raw.noise_labels'], y), g['out.raw.F'], atol=2e-5, rtol=0)

@torch.no_grad()
def test_edm_denoiser(edm):
    g, net, y, _ = edm
    close, x, sigma = partial(assert_close, atol=2e-5, rtol=1e-5), g['in.x'], g['in.sigma']
    close(Denoiser(net)(x, sigma, y), g['out.D'])
    close(Denoiser(Augmented(net, g['in.augment_labels']))(x, sigma, y), g['out.D_augmented'])
    if y is not None: close(Denoiser(net)(x, sigma), g['out.D_no_labels'])

def published_order(net):
    "Our parameters in the order in which the published network registers its own."
    walk, seen = ['label', 'augment', 'embed', 'conv_in'], 0
    for i, stage in enumerate(net.down):
        walk.append(f'down.{i}')
        if stage.step.resample: walk.append(f'pyramid.{seen}'); seen += 1   # with the standard encoder there is none of that name
    walk += ['mid', 'up', 'norm_out', 'conv_out']
    return [p for w in walk for n, p in net.named_parameters() if n.startswith(f'{w}.')]

def test_edm_loss_and_gradients(edm):
    g, net, y, _ = edm
    x0, z, want, norms = (g[n] for n in ('in.loss.images', 'in.loss.noise', 'out.loss.elementwise', 'out.loss.param_grad_norms'))
    t = (1.2*g['in.loss.rnd_normal'].flatten() - 1.2).exp()
    denoise, parameters = (lambda x, t: Denoiser(net)(x, t, y)), published_order(net)
    with torch.no_grad():
        s = t[:, None, None, None]
        assert_close(edm_weight(s)*(denoise(x0 + s*z, t) - x0)**2, want, atol=1e-4*want.max().item(), rtol=1e-4)
    loss = edm_loss(denoise, x0, t, z)   # a mean over pixels, the published one is a sum
    assert_close(loss, want.flatten(1).mean(1), atol=0, rtol=1e-4)
    grads = torch.autograd.grad(loss.mean()*want[0].numel(), parameters)
    assert_close(torch.stack([v.norm() for v in grads]), norms, atol=1e-4*norms.max().item(), rtol=1e-3)
    most = norms > 1e-3*norms.max()   # that atol says little about small ones: compare these by their own size, too
    assert most.sum() > 50
    assert_close(torch.stack([v.norm() for v in grads])[most], norms[most], atol=0, rtol=1e-3)

@pytest.mark.parametrize('case, settings, atol', [
    ('deterministic_18', dict(n=18), 2e-4), ('stochastic_6', dict(n=6, churn=dict(churn=10., s_min=0.05, s_max=50., s_noise=1.003)), 2e-3)])
def test_edm_sampler(edm, case, settings, atol):
    g, net, y, _ = edm
    if 'churn' in settings: settings = settings | dict(churn=Churn(**settings['churn'], noise=g[f'in.{case}.noise']))
    denoise = lambda x, t: Denoiser(net)(x, t, None if y is None else y[:1])
    x = edm_sample(denoise, 80*g[f'in.{case}.latents'].double(), **settings)
    assert_close(x, g[f'out.{case}'], atol=atol, rtol=0)

# ---- 06: openai/consistency_models_cifar10

NCHW = lambda v: v.permute(0, 3, 1, 2)

@pytest.fixture(scope='module')
def jax():
    "Tensors, and the online, target and teacher networks."
    g = golden('06_jax_ncsnpp')
    def net(which):
        net = ncsnpp(model_channels=8, num_blocks=2)
        return loaded(net, from_flax(net, weights(g, f'weights.{which}.')))
    return g, net('online'), net('target'), net('teacher')

@torch.no_grad()
def test_jax_network(jax):
    g, net, *_ = jax
    assert_close(net(NCHW(g['in.model.x']), g['in.model.time_cond']), NCHW(g['out.model']), atol=2e-5, rtol=0)

@torch.no_grad()
def test_jax_preconditioning(jax):
    g, net, *_ = jax
    x, t = NCHW(g['in.precond.x_t']), g['in.precond.t']
    D = Denoiser(net)(x, t)
    assert_close(D, NCHW(g['out.precond.denoiser']), atol=1e-5, rtol=1e-5)
    assert_close(Consistency(net)(x, t), NCHW(g['out.precond.distiller']), atol=1e-5, rtol=1e-5)
    largest(denoised_to_score(x, t, D), NCHW(g['out.precond.score']), 1e-3)

linf = lambda a, b: (a - b).abs().flatten(1).amax(1)
WEIGHTS = dict(uniform=None, snr=lambda t, s: t**-2, snrp1=lambda t, s: t**-2 + 1, truncated_snr=lambda t, s: t.pow(-2).clamp(min=1))
CASES = {'cd_heun_l1': ('cd', heun_step, l1, 'uniform'), 'cd_heun_l2': ('cd', heun_step, l2, 'uniform'), 'cd_euler_l2_snr': ('cd', euler_step, l2, 'snr'),
         'ct_euler_l2': ('ct', None, l2, 'uniform'), 'ct_euler_l1_snrp1': ('ct', None, l1, 'snrp1'), 'ct_euler_linf_truncated_snr': ('ct', None, linf, 'truncated_snr'),
         'progdist_l2': ('pd', None, l2, None), 'edm_dsm': ('edm', None, l2, None)}

@pytest.mark.parametrize('case', CASES)
def test_jax_losses(jax, case):
    g, net, target, teacher = jax
    kind, step, distance, weight = CASES[case]
    x0, z, f, f_target, D = NCHW(g['in.losses.image']), NCHW(g['in.losses.noise']), Consistency(net), Consistency(target), Denoiser(teacher)
    k = g.get(f'in.{case}.indices', torch.zeros(3)).long()   # they count from the noisy end
    if kind == 'cd': loss = cd_loss(f, f_target, D, x0, z, 16 - k, karras_grid(18), step, distance, WEIGHTS[weight])
    elif kind == 'ct': loss = ct_loss(f, f_target, x0, z, 16 - k, karras_grid(18), distance, WEIGHTS[weight])
    elif kind == 'pd': loss = pd_loss(Denoiser(net), D, x0, z, 3 - k, 4)
    else: loss = edm_loss(Denoiser(net), x0, (1.2*g['in.losses.normal_for_t'] - 1.2).exp(), z)*x0[0].numel()   # a sum over pixels
    assert_close(loss, g[f'out.{case}.per_sample'], atol=0, rtol=2e-4)
    assert_close(loss.mean()[None], g[f'out.{case}.mean'], atol=0, rtol=2e-4)
    net.zero_grad()
    loss.mean().backward()
    grads = [net.conv_in.weight, net.embed.dense0.weight, net.down[1].block.conv0.weight, net.down[3].attend.qkv.weight, net.norm_out.weight, net.conv_out.weight, net.conv_out.bias]
    grads = [p.grad[:len(p)//3] if p is grads[3] else p.grad for p in grads]   # the published one is the gradient of q alone
    largest(torch.stack([v.norm() for v in grads]), g[f'out.{case}.grad_norms'], 1e-3)
    largest(net.conv_out.bias.grad, g[f'out.{case}.grad_out_bias'], 1e-3)

CONTINUOUS = {'cd_l1': (True, l1), 'cd_l2': (True, partial(pseudo_huber, c=0)), 'cd_linf': (True, linf), 'cd_l2_stopgrad': (True, None), 'ct_l2_stopgrad': (False, None)}

@pytest.mark.parametrize('case', CONTINUOUS)
def test_jax_continuous_losses(jax, case):
    "Theirs of l2 with a fixed target lacks the factor 2 and is a sum over pixels."
    g, net, _, teacher = jax
    distils, norm = CONTINUOUS[case]
    x0, z, f, D = NCHW(g['in.losses.image']), NCHW(g['in.losses.noise']), Consistency(net), Denoiser(teacher)
    t = karras_level(g['in.losses.uniform'])
    x_t = add_noise(x0, t, z)
    with torch.no_grad(): v = slope(x_t, t, D(x_t, t)) if distils else z
    loss = continuous_norm_loss(f, x_t, t, v, norm) if norm else continuous_loss(f, x_t, t, v) * x0[0].numel() / 2
    assert_close(loss, g[f'out.continuous_{case}.per_sample'], atol=1e-4 * g[f'out.continuous_{case}.per_sample'].abs().max().item(), rtol=1e-3)
    assert_close(loss.mean()[None], g[f'out.continuous_{case}.mean'], atol=0, rtol=1e-3)
    net.zero_grad()
    loss.mean().backward()
    largest(net.conv_out.bias.grad, g[f'out.continuous_{case}.grad_out_bias'], 3e-3)

@pytest.mark.parametrize('kind', ['cd', 'ct'])
def test_jax_derivative_along_the_path(jax, kind):
    g, net, *_ = jax
    x, t, there = NCHW(g[f'out.continuous_{kind}_jvp.x_t']), g[f'out.continuous_{kind}_jvp.t'], f'out.continuous_{kind}_jvp.'
    value, change = along(Consistency(net), x, t, -NCHW(g[there + 'tangent_x']))   # theirs goes down
    assert_close(value, NCHW(g[there + 'F']), atol=1e-5, rtol=1e-4)
    largest(-change, NCHW(g[there + 'derivative']), 1e-3)

@torch.no_grad()
def test_jax_samplers(jax):
    g, net, *_ = jax
    close, x, D = partial(assert_close, atol=5e-5, rtol=0), 80*NCHW(g['in.sampler.x_T_unit']), Denoiser(net)
    want = lambda name: NCHW(g[f'out.sampler.{name}'])
    down = karras_grid(18).flip(0)
    close(edm_sample_ode(D, x), want('heun_denoise'))
    close(solve(D, x, down), want('heun_no_denoise'))
    close(solve(D, x, [*down.tolist(), 0.], euler_step), want('euler_denoise'))
    close(onestep(Consistency(net), x), want('onestep'))
    close(solve(D, x, karras_grid(5).flip(0), euler_step), want('progdist_4'))

def test_jax_and_edm_names_agree():
    "The published table takes every JAX weight to an EDM weight; both loaders then give the same network."
    if not (path := FOLDER/'06_names_flax_to_edm.json').is_file(): pytest.skip('06_names_flax_to_edm.json is not kept in the repository')
    table, params = json.loads(path.read_text())['map'], weights(golden('06_jax_ncsnpp'), 'weights.online.')
    net, edm = ncsnpp(model_channels=8, num_blocks=2), {}
    assert set(table) == set(params) == {n for names in weight_names(net, 'flax').values() for n in names}
    for name, (theirs, how) in table.items():
        v, how = params[name], how or ''
        if how.startswith('HWIO'): v = v.permute(3, 2, 0, 1)
        if how.startswith('IO'): v = v.T
        if 'OI11' in how: v = v[..., None, None]
        if 'rows' in how:
            v, j = v.reshape(*v.shape, *[1]*(2*(v.ndim - 1))), int(how[-1])
            edm.setdefault(theirs, torch.full((3*len(v), *v.shape[1:]), torch.nan))[j::3] = v
        else: edm[theirs] = v
    assert_close(from_edm(net, edm), from_flax(net, params), rtol=0, atol=0)

def test_flax_params_may_be_nested_arrays(jax):
    g, net, *_ = jax
    tree = {}
    for name, v in weights(g, 'weights.online.').items():
        *path, last = name.split('/')
        node = tree
        for p in path: node = node.setdefault(p, {})
        node[last] = v.numpy()
    assert_close(from_flax(net, {'params': tree}), dict(net.state_dict()), rtol=0, atol=0)

# ---- what no published number says

def test_checkpointing_changes_nothing(edm):
    g, net, y, new = edm
    def run(checkpointing):
        other = new()
        other.load_state_dict(net.state_dict())   # in training mode: dropout 0.13
        other.checkpointing = checkpointing
        torch.manual_seed(0)
        x = g['in.raw.x'][:2].clone().requires_grad_()
        out = other(x, g['in.raw.noise_labels'][:2], None if y is None else y[:2])
        return out, torch.autograd.grad(out.square().sum(), [x, *other.parameters()])
    assert_close(run(True), run(False), rtol=0, atol=0)

@pytest.mark.parametrize('checkpointing', [False, True])
def test_autocast(edm, checkpointing):
    g, net, y, new = edm
    other = new()
    other.load_state_dict(net.state_dict())
    other.eval().checkpointing = checkpointing
    D = Denoiser(other, autocast=torch.bfloat16)(g['in.x'], g['in.sigma'], y)
    D.sum().backward()
    assert D.dtype == torch.float32 and all(p.grad.isfinite().all() for p in other.parameters())
    assert_close(D, g['out.D'], atol=0.05, rtol=0)   # bfloat16 keeps 8 bits; outputs are of order 1

def test_spec_rebuilds(edm):
    g, net, y, _ = edm
    args = json.loads(json.dumps(net.spec))
    assert args.pop('cls') == 'SongUNet'
    again = loaded(SongUNet(**args), net.state_dict())
    assert again.spec == net.spec
    with torch.no_grad(): assert_close(again(g['in.raw.x'], g['in.raw.noise_labels'], y), net(g['in.raw.x'], g['in.raw.noise_labels'], y), rtol=0, atol=0)

@pytest.mark.parametrize('make, count', [(ncsnpp, 56_395_523), (partial(ncsnpp, augment_dim=9), 56_397_827), (partial(ddpmpp, augment_dim=9), 55_733_891)])
def test_counts(make, count):
    with torch.device('meta'): assert sum(p.numel() for p in make().parameters()) == count

@pytest.mark.parametrize('changes, says', [
    (dict(image_size=30), 'multiple of 4'), (dict(embedding='sine'), "'fourier' and 'positional'"), (dict(encoder='skip'), "'residual' and 'standard'"),
    (dict(resample_filter=(1, 2, 1)), 'even number of taps'), (dict(model_channels=6), 'multiples of 32'), (dict(dropout=1.), 'probability'), (dict(channel_mult=()), 'channel_mult is empty')])
def test_refused_settings(changes, says):
    with pytest.raises(ValueError, match=says): ddpmpp(**{**dict(model_channels=8), **changes})

@pytest.mark.parametrize('changes, says', [
    (dict(x=torch.zeros(2, 1, 32, 32)), r'\(B, 3, H, W\)'), (dict(x=torch.zeros(2, 3, 30, 32)), 'multiples of 4'), (dict(c_noise=torch.zeros(1)), 'c_noise'),
    (dict(y=torch.zeros(3, dtype=torch.long)), 'one class index per image'), (dict(y=torch.zeros(2, 10)), 'one class index per image'), (dict(augment=torch.zeros(2, 8)), 'augment')])
def test_refused_calls(changes, says):
    net = ddpmpp(model_channels=4, num_blocks=1, num_classes=10, augment_dim=9)
    with pytest.raises(ValueError, match=says): net(**{**dict(x=torch.zeros(2, 3, 32, 32), c_noise=torch.zeros(2)), **changes})

def test_refused_weights(edm):
    g, net, *_ = edm
    given = weights(g)
    with pytest.raises(ValueError, match="have no place .* 'map_augment.weight'"): from_edm(ncsnpp(model_channels=8) if net.label is None else ddpmpp(model_channels=8, num_classes=10), given)
    with pytest.raises(ValueError, match="missing, the first is 'dec.32x32_aux_conv.bias'"): from_edm(net, {n: v for n, v in given.items() if not n.endswith('aux_conv.bias')})
    with pytest.raises(ValueError, match="another shape .* 'map_layer1.bias'"): from_edm(net, given | {'model.map_layer1.bias': torch.zeros(3)})
