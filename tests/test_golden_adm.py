"""ADM networks, their weight maps, and losses, samplers and training steps through them, against numbers made with the published
implementations (tests/golden).

Tolerances are those of the golden files' manifest: 10 to 20 times the difference between the published code in float32 and in
float64, which includes the rounding of the time conditioning. The file 01_adm_unet_imagenet64 is too large to be kept here (17 MB).
01_adm_unet_lsun (5.6 MB) is kept in two pieces: `_a` holds half of its weights, the input, the output, the output
with the wrong qkv order and the gradient norms with their weighting; `_b` holds the other weights. Left out are its outputs in half precision.
"""
import json
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from consistency_nb.adm import ADMAttention, ADMUNet, imagenet64, lsun256, timestep_embedding
from consistency_nb.distances import l1, l2
from consistency_nb.ema import EMA
from consistency_nb.grid import karras_grid, levels_from_indices
from consistency_nb.losses import cd_loss, ct_loss, edm_loss, edm_weight, pd_loss
from consistency_nb.names import (EDM_CONVENTIONS, diffusers_config, from_diffusers, from_edm, from_openai, qkv_rows, spec_from_diffusers,
                                  to_diffusers, weight_names)
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.sample import multistep, onestep
from consistency_nb.schedules import mu_as_coded, steps
from consistency_nb.solvers import Churn, edm_sample, edm_sample_ode, euler_step, solve
from golden import FOLDER, golden, weights

TINY = dict(image_size=16, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=16)   # of 02, 03, 07, 08

def openai(tensors, qkv='three_heads', **args):
    "A network with weights under OpenAI's names."
    net = ADMUNet(**args).eval()
    net.load_state_dict(from_openai(net, tensors, qkv))
    return net

def theirs(net, whose):
    "Their name of each of our parameters, and the parameter."
    return {n: v for (n,), v in zip(weight_names(net, whose).values(), net.state_dict().values())}

def grad_norms(net, names=None):
    "Norms of the gradients; None: of all parameters, which run in the same order in the published networks."
    params = dict(net.named_parameters())
    return torch.stack([params[n].grad.norm() for n in names or params])

# ---- 01: pieces

@pytest.mark.parametrize('dim', (32, 33, 192))
def test_embedding(dim):
    u = golden('01_units')
    assert_close(timestep_embedding(u['in.embedding.timesteps'], dim), u[f'out.embedding.dim{dim}'], atol=3e-4, rtol=0)
    assert_close(timestep_embedding(u['in.embedding.timesteps'] / 1000, dim, 1000.), u[f'out.embedding.dim{dim}'], atol=3e-4, rtol=0)

class Given(nn.Module):
    def __init__(self, out): super().__init__(); self.out = out
    def forward(self, x): return self.out

ORDERS = dict(three_heads='published_order', heads_three='NOT_head_major', channels_three='nvlabs_edm_order')

@pytest.mark.parametrize('heads', (1, 2, 4))
@pytest.mark.parametrize('order', ORDERS)
def test_attention_orders(heads, order):
    u, att = golden('01_units'), ADMAttention(16 * heads, 16)
    qkv = qkv_rows(u[f'in.attention.h{heads}.qkv'].transpose(0, 1), heads, order).transpose(0, 1)
    att.qkv = Given(qkv.unflatten(2, (5, 5)))
    got = att.attend(torch.zeros(2, 16 * heads, 5, 5)).flatten(2)
    assert_close(got, u[f'out.attention.h{heads}.{ORDERS[order]}'], atol=1e-5, rtol=0)
    for other in set(ORDERS.values()) - {ORDERS[order]}:   # with one head two of the orders are the same
        if not (heads == 1 and 'nvlabs' not in other + ORDERS[order]): assert (got - u[f'out.attention.h{heads}.{other}']).abs().max() > 0.1

@pytest.mark.parametrize('rate', (0., 0.95, 0.9999, 1.))
def test_update_of_an_average(rate):
    u, target, source = golden('01_units'), nn.Linear(5, 6, bias=False), nn.Linear(5, 6, bias=False)
    for m, what in (target, 'target'), (source, 'source'): m.load_state_dict(dict(weight=u[f'in.update_ema.{what}']))
    ema = EMA(target)
    ema.update(source, rate)
    assert_close(ema.module.weight.data, u[f'out.update_ema.rate{rate}'], atol=1e-6, rtol=0)

# ---- 01: whole networks

NETS = {'imagenet64': dict(image_size=64, model_channels=32, channel_mult=(1, 2, 3, 4), num_res_blocks=3, num_head_channels=32, num_classes=10),
        'lsun': dict(image_size=64, model_channels=32, channel_mult=(1, 1, 1, 1, 2, 2), num_res_blocks=2, attention_resolutions=(8, 4, 2),
                     num_head_channels=32, use_scale_shift_norm=False)}

def adm_unet(name):
    return golden('01_adm_unet_lsun_a') | golden('01_adm_unet_lsun_b') if name == 'lsun' else golden(f'01_adm_unet_{name}')

def call(net, g): return net(g['in.x'], g['in.timesteps'] / 1000, g.get('in.class_labels'))

@pytest.mark.parametrize('name', NETS)
def test_output_and_gradients(name):
    g = adm_unet(name)
    net = openai(weights(g), **NETS[name])
    out = call(net, g)
    assert_close(out.detach(), g['out.y'], atol=2e-4, rtol=0)
    (out * g['in.grad_out_weighting']).mean().backward()
    want = g['out.param_grad_norms']
    assert_close(grad_norms(net), want, atol=1e-5 * want.max().item(), rtol=1e-4)

@pytest.mark.parametrize('name', NETS)
def test_the_wrong_order_is_the_wrong_output(name):
    "Read as (heads, three, head_dim), the same file gives exactly the published negative control."
    g = adm_unet(name)
    with torch.no_grad(): out = call(openai(weights(g), 'heads_three', **NETS[name]), g)
    assert_close(out, g['out.NOT_head_major_order'], atol=2e-4, rtol=0)
    assert (out - g['out.y']).abs().max() > 0.03

def test_pieces_are_the_published_file():
    whole, pieces = golden('01_adm_unet_lsun'), adm_unet('lsun')
    assert whole.keys() - pieces.keys() == {'in.sigmas', 'out.legacy_half_attention', 'out.fp16_torso'}
    for n, v in pieces.items(): assert v.dtype == whole[n].dtype and torch.equal(v, whole[n])

def test_published_shapes():
    "Names and shapes of the published files, on the meta device."
    with torch.device('meta'): nets = imagenet64(), lsun256(), imagenet64(**EDM_CONVENTIONS)
    shapes = [{n: tuple(v.shape) for n, v in theirs(net, w).items()} for net, w in zip(nets, ('openai', 'openai', 'edm'))]
    assert [len(s) for s in shapes] == [541, 566, 541]   # NVlabs' files hold 12 resampling filters beside these
    for s, some in zip(shapes, (
        {'input_blocks.1.0.emb_layers.1.weight': (384, 768), 'input_blocks.9.0.skip_connection.weight': (576, 384, 1, 1), 'label_emb.weight': (1000, 768),
         'output_blocks.3.0.in_layers.2.weight': (768, 1344, 3, 3), 'output_blocks.3.2.in_layers.2.weight': (768, 768, 3, 3),
         'output_blocks.15.0.in_layers.2.weight': (192, 384, 3, 3), 'middle_block.1.qkv.weight': (2304, 768, 1, 1)},
        {'input_blocks.1.0.emb_layers.1.weight': (256, 1024), 'output_blocks.5.0.in_layers.2.weight': (1024, 1536, 3, 3),
         'output_blocks.11.1.in_layers.2.weight': (512, 512, 3, 3), 'output_blocks.14.1.out_layers.3.weight': (256, 256, 3, 3)},
        {'enc.64x64_conv.weight': (192, 3, 3, 3), 'enc.8x8_down.conv0.weight': (576, 576, 3, 3), 'dec.8x8_in0.qkv.weight': (2304, 768, 1, 1),
         'dec.64x64_up.conv1.weight': (384, 384, 3, 3), 'dec.64x64_block3.skip.weight': (192, 384, 1, 1)})):
        assert {n: s[n] for n in some} == some

def test_a_network_without_memory_takes_the_weights():
    g = golden('07_unet')
    with torch.device('meta'): net = ADMUNet(**TINY, num_classes=10)
    net.load_state_dict(from_openai(net, weights(g, 'weights.adm.')), assign=True)
    with torch.no_grad(): assert_close(call(net.eval(), g), g['out.adm'], atol=2e-4, rtol=0)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu():
    g = golden('07_unet')
    net = openai(weights(g, 'weights.adm.'), **TINY, num_classes=10).cuda().to(memory_format=torch.channels_last)
    net.checkpointing = True
    on = {n: g[n].cuda() for n in ('in.x', 'in.timesteps', 'in.class_labels')}
    with torch.autocast('cuda', dtype=torch.bfloat16): out = call(net, on)
    out.float().square().mean().backward()
    assert F.cosine_similarity(out.float().cpu().flatten(), g['out.adm'].flatten(), 0) > 0.99
    assert all(p.grad.isfinite().all() for p in net.parameters())

# ---- 07: names of diffusers

@pytest.mark.parametrize('names', ('adm', 'diffusers'))
def test_both_namings_give_the_same_output(names):
    g = golden('07_unet')
    net = ADMUNet(**TINY, num_classes=10).eval()
    net.load_state_dict(dict(adm=from_openai, diffusers=from_diffusers)[names](net, weights(g, f'weights.{names}.')))
    with torch.no_grad(): got = call(net, g)
    for want in g['out.adm'], g['out.diffusers']: assert_close(got, want, atol=2e-4, rtol=0)
    written, want = to_diffusers(net), weights(g, 'weights.diffusers.')
    assert written.keys() == want.keys() and all(torch.equal(written[n], want[n]) for n in want)

@pytest.mark.parametrize('name', ('unet', 'adm_unet_imagenet64', 'adm_unet_lsun'))
def test_names_and_configuration(name):
    "The published script's renaming of every parameter, by giving each a tensor of its own."
    table = json.loads((FOLDER/f'07_names_{name}.json').read_text())
    config = table['unet2dmodel_config']
    spec = spec_from_diffusers(config)
    net = ADMUNet(**{k: v for k, v in spec.items() if k != 'cls'})
    if name != 'unet': assert net.spec == ADMUNet(**NETS[name.removeprefix('adm_unet_')]).spec
    ours = diffusers_config(net)
    assert {k: ours[k] for k in config} == config and spec_from_diffusers(ours) == net.spec
    published = {n: torch.randn_like(v) for n, v in theirs(net, 'openai').items()}
    net.load_state_dict(from_openai(net, published))
    got = to_diffusers(net)
    assert got.keys() == table['map'].keys()
    for n, (adm, third, squeezed) in table['map'].items():
        want = published[adm] if third is None else published[adm].chunk(3)[third]
        assert torch.equal(got[n], want.flatten(1) if squeezed and want.ndim > 2 else want), n
    assert len({v.untyped_storage().data_ptr() for v in got.values()}) == len(got)   # so that safetensors can write them
    back = from_diffusers(net, got)
    assert all(torch.equal(back[n], v) for n, v in net.state_dict().items())

@pytest.mark.parametrize('name', ('imagenet64', 'lsun'))
def test_the_library_itself(name):
    "diffusers builds a network from our configuration, takes our weights, and computes the same."
    UNet2DModel = pytest.importorskip('diffusers').UNet2DModel
    args = NETS[name] | dict(image_size=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(16,))
    net = ADMUNet(**args).eval()
    for p in net.parameters(): nn.init.normal_(p, std=0.1)
    other = UNet2DModel.from_config(diffusers_config(net)).eval()
    other.load_state_dict(to_diffusers(net))
    x, c, y = torch.randn(2, 3, 32, 32), torch.tensor([-0.8, 0.5]), None if net.label is None else torch.tensor([3, 9])
    with torch.no_grad(): want, got = other(x, 1000 * c, y).sample, net(x, c, y)
    assert want.abs().max() > 0.1
    assert_close(got, want, atol=1e-4 * want.abs().max().item(), rtol=0)

@pytest.mark.parametrize('case, N, ts', [('onestep', 40, (0,)), ('two_steps', 40, (0, 22, 39)), ('two_steps_ct', 201, (0, 106, 200))])
def test_pipeline(case, N, ts):
    "The sampler of diffusers, started from the same noise with the same later draws."
    g = golden('07_unet')
    f, y = Consistency(openai(weights(g, 'weights.adm.'), **TINY, num_classes=10)), g['in.class_labels'][:2]
    levels, noise = levels_from_indices(ts, N), g[f'in.pipeline.{case}.noise']
    x = multistep(lambda x, t: f(x, t, y), g[f'in.pipeline.{case}.latents'] * 80, levels, noise=noise[:len(levels) - 1])
    assert_close(x.detach(), g[f'out.pipeline.{case}.original_sample'], atol=1e-4, rtol=0)
    assert_close((x.detach() / 2 + 0.5).clamp(0, 1), g[f'out.pipeline.{case}.images'], atol=1e-4, rtol=0)

# ---- 05: the network of NVlabs

@pytest.fixture(scope='module')
def edm(): return golden('05_edm_dhariwal')

@pytest.fixture
def dhariwal(edm):
    net = ADMUNet(image_size=32, model_channels=16, channel_mult=(1, 4), num_res_blocks=1, attention_resolutions=(16,), num_classes=6, dropout=0.1, **EDM_CONVENTIONS)
    net.load_state_dict(from_edm(net, weights(edm)))
    return net.eval()   # dropout is off

@pytest.fixture
def y(edm):
    y = edm['in.class_labels_onehot'].argmax(1)
    assert torch.equal(F.one_hot(y, 6).float(), edm['in.class_labels_onehot'])
    return y

@torch.no_grad()
def test_edm_network(edm, dhariwal, y):
    assert_close(dhariwal(edm['in.raw.x'], edm['in.raw.noise_labels'], y), edm['out.raw.F'], atol=3e-5, rtol=0)
    assert_close(Denoiser(dhariwal)(edm['in.x'], edm['in.sigma'], y), edm['out.D'], atol=3e-5, rtol=1e-5)

@torch.no_grad()
def test_edm_without_labels(edm, dhariwal, y):
    "NVlabs takes 'no labels' as a row of zeros; ours refuses it, and a table of zeros does the same."
    with pytest.raises(ValueError, match='this network knows 6 classes'): Denoiser(dhariwal)(edm['in.x'], edm['in.sigma'])
    dhariwal.label.weight.zero_()
    assert_close(Denoiser(dhariwal)(edm['in.x'], edm['in.sigma'], y), edm['out.D_no_labels'], atol=3e-5, rtol=1e-5)

def test_edm_loss_of_the_network(edm, dhariwal, y):
    D, x0, z = Denoiser(dhariwal), edm['in.loss.images'], edm['in.loss.noise']
    t = (1.2 * edm['in.loss.rnd_normal'].flatten() - 1.2).exp()
    want = edm['out.loss.elementwise']
    with torch.no_grad(): pixels = edm_weight(t)[:, None, None, None] * (D(x0 + t[:, None, None, None] * z, t, y) - x0).square()
    assert_close(pixels, want, atol=0.0022, rtol=1e-4)
    losses = edm_loss(lambda x, t: D(x, t, y), x0, t, z)
    assert_close(losses.detach(), want.mean((1, 2, 3)), atol=0, rtol=1e-4)
    (losses.sum() * x0[0].numel() / len(x0)).backward()   # NVlabs sums over pixels
    assert_close(grad_norms(dhariwal), edm['out.loss.param_grad_norms'], atol=9., rtol=1e-3)

def test_edm_samplers(edm, dhariwal, y):
    D = Denoiser(dhariwal)
    x = edm['in.deterministic_18.latents'].double() * 80
    with torch.no_grad(): got = edm_sample_ode(lambda x, t: D(x, t, y[:1]), x)
    assert_close(got, edm['out.deterministic_18'], atol=2e-4, rtol=0)
    got = edm_sample(lambda x, t: D(x, t, y[:1]), edm['in.stochastic_6.latents'].double() * 80, n=6,
                     churn=Churn(10., s_min=0.05, s_max=50., s_noise=1.003, noise=edm['in.stochastic_6.noise']))
    assert_close(got, edm['out.stochastic_6'], atol=2e-3, rtol=0)

# ---- 02: losses

GRADS = ['embed.dense0.weight', 'conv_in.weight', 'down.0.block.affine.weight', 'mid.0.attend.qkv.weight', 'up.0.block.conv0.weight',
         'norm_out.weight', 'conv_out.weight', 'conv_out.bias']   # those whose norms are stored

class Noted:
    "A function that notes what it was called with and what it returned."
    def __init__(self, f, y): self.f, self.y = f, y
    def __call__(self, x, t):
        self.x, self.t, self.out = x.detach(), t, self.f(x, t, self.y)
        return self.out

def at32(a, b): return l2(*(F.interpolate(v, size=32, mode='bilinear') for v in (a, b)))

one, karras, snr1 = None, lambda t, s: edm_weight(t), lambda t, s: t**-2 + 1
CASES = {   # number of levels, distance, weight; tolerances of the gradient of the last bias and of the outputs
    'cd_n18_l1': (18, l1, one, 1.3e-6, 9e-5), 'cd_n40_l2': (40, l2, one, 3.9e-7, 2e-4), 'cd_n40_l2_karras': (40, l2, karras, 2.5e-6, 2e-4),
    'cd_n150_l1': (150, l1, one, 1e-6, 7e-5), 'ct_n2_l2': (2, l2, one, 5e-6, 8e-5), 'ct_n18_l1': (18, l1, one, 1.6e-6, 7e-5),
    'ct_n40_l2': (40, l2, one, 3.9e-7, 2e-4), 'ct_n150_l2': (150, l2, one, 3.2e-7, 5e-5), 'ct_n150_l1_snr1': (150, l1, snr1, 1.2e-5, 7e-5),
    'ct_n18_l2_32': (18, at32, one, 5.4e-7, 7e-5)}

@pytest.fixture(scope='module')
def losses(): return golden('02_losses')

def trio(g, *which): return [openai(weights(g, f'weights.{w}.'), **TINY, num_classes=5) for w in which]

def check_losses(got, g, case, net, bias, rtol=1e-4):
    assert_close(got.detach(), g[f'out.{case}.losses'], atol=0, rtol=rtol)
    got.mean().backward()
    assert_close(grad_norms(net, GRADS), g[f'out.{case}.grad_norms'], atol=0, rtol=2e-4 if case == 'progdist_n4_l2' else 1e-4)
    assert_close(net.conv_out.bias.grad, g[f'out.{case}.grad_out_bias'], atol=bias, rtol=0)

@pytest.mark.parametrize('case', CASES)
def test_consistency_losses(losses, case):
    (N, distance, weight, bias, atol), g = CASES[case], losses
    nets, y = trio(g, 'online', 'target', 'teacher'), g['in.class_labels']
    f, target, teacher = Noted(Consistency(nets[0]), y), Noted(Consistency(nets[1]), y), Noted(Denoiser(nets[2]), y)
    n, grid = N - 2 - g[f'in.{case}.indices'], karras_grid(N)   # published indices count from T down
    x0, z, args = g['in.x_start'], g['in.noise'], dict(distance=distance, weight=weight)
    got = cd_loss(f, target, teacher, x0, z, n, grid, **args) if case.startswith('cd') else ct_loss(f, target, x0, z, n, grid, **args)
    check_losses(got, g, case, nets[0], bias, 2e-4 if weight is karras else 1e-4)
    assert all(p.grad is None for net in nets[1:] for p in net.parameters())
    for noted, what, out in (f, '', 'online'), (target, '_next', 'target'):
        assert_close(noted.t, g[f'out.{case}.t{what}'], atol=0, rtol=3e-6)
        assert_close(noted.x, g[f'out.{case}.x_t{what}'], atol=1e-4, rtol=1e-5)
        assert_close(noted.out.detach(), g[f'out.{case}.{out}_output'], atol=atol, rtol=0)

@pytest.mark.parametrize('case, S, distance, weighted, bias', [('progdist_n1_l2', 1, l2, True, 3.5e-6), ('progdist_n4_l2', 4, l2, True, 1.2e-5),
                                                               ('progdist_n18_l1', 18, l1, False, 2.8e-6)])
def test_progressive_distillation(losses, case, S, distance, weighted, bias):
    g = losses
    nets, y = trio(g, 'online', 'teacher'), g['in.class_labels']
    D, teacher = Noted(Denoiser(nets[0]), y), Noted(Denoiser(nets[1]), y)
    got = pd_loss(D, teacher, g['in.x_start'], g['in.noise'], S - 1 - g[f'in.{case}.indices'], S, distance=distance)
    if not weighted: got = got / D.t.pow(-2).clamp(min=1)   # our loss has the published default weight built in
    check_losses(got, g, case, nets[0], bias)
    assert_close(D.out.detach(), g[f'out.{case}.online_output'], atol=9e-5, rtol=0)
    for noted, what in (D, ''), (teacher, '_mid'):   # the teacher's last call stands in the middle of the interval
        assert_close(noted.t, g[f'out.{case}.t{what}'], atol=0, rtol=3e-6)
        assert_close(noted.x, g[f'out.{case}.x_t{what}'], atol=1e-4, rtol=1e-5)

@pytest.mark.parametrize('case, weight', [('karras', edm_weight), ('truncated-snr', lambda t: t.pow(-2).clamp(min=1))])
def test_denoising_loss(losses, case, weight):
    g, (net,), t = losses, trio(losses, 'online'), losses['in.edm.sigmas']
    D = Denoiser(net)
    got = edm_loss(lambda x, t: D(x, t, g['in.class_labels']), g['in.x_start'], t, g['in.noise']) / edm_weight(t)
    assert_close(got.detach(), g[f'out.edm_{case}.xs_mse'], atol=0, rtol=1e-3)
    got = got * weight(t)
    assert_close(got.detach(), g[f'out.edm_{case}.loss'], atol=0, rtol=1e-3)
    got.mean().backward()
    assert_close(grad_norms(net, GRADS), g[f'out.edm_{case}.grad_norms'], atol=0, rtol=1e-3)
    want = g[f'out.edm_{case}.grad_out_bias']
    assert_close(net.conv_out.bias.grad, want, atol=1e-3 * want.abs().max().item(), rtol=0)

def test_seeded_draws(losses):
    "The published loop draws the noise, then the indices."
    g, (online, target) = losses, trio(losses, 'online', 'target')
    x0, y = g['in.x_start'], g['in.class_labels']
    torch.manual_seed(1228)
    z, index = torch.randn_like(x0), torch.randint(0, 17, (4,))
    assert torch.equal(z, g['in.seeded.noise']) and torch.equal(index, g['in.seeded.indices'])
    with torch.no_grad(): got = ct_loss(Noted(Consistency(online), y), Noted(Consistency(target), y), x0, z, 16 - index, karras_grid(18))
    assert_close(got, g['out.seeded.losses'], atol=0, rtol=1e-3)

@torch.no_grad()
@pytest.mark.parametrize('case, wrap', [('edm', Denoiser), ('boundary', Consistency)])
def test_denoise(losses, case, wrap):
    g, (net,) = losses, trio(losses, 'online')
    x, t, y = (g[f'in.denoise.{w}'] for w in ('x_t', 'sigmas', 'class_labels'))
    f = wrap(net)
    assert_close(f(x, t, y), g[f'out.denoise_{case}.denoised'], atol=4e-4, rtol=0)
    c_in = (t**2 + 0.25).rsqrt()[:, None, None, None]
    assert_close(net(c_in * x, t.log() / 4, y), g[f'out.denoise_{case}.model_output'], atol=4e-4, rtol=0)

# ---- 03: samplers

@pytest.fixture(scope='module')
def chains(losses):
    g, (net,) = golden('03_samplers_unet'), trio(losses, 'online')
    y = g['in.class_labels']
    clip = lambda D: lambda x, t: D(x, t).clamp(-1, 1)
    D, f = (lambda x, t, m=m: m(x, t, y) for m in (Denoiser(net), Consistency(net)))
    return g, g['in.x_T_unit'] * 80, D, f, clip

CHURN = dict(churn=8., s_min=0.01, s_max=60., s_noise=1.002)
SAMPLERS = {   # what we have of it, and the tolerance
    'heun_8': (lambda g, x, D, f, clip: edm_sample(clip(D), x, n=8), 7e-4),
    'heun_8_noclip': (lambda g, x, D, f, clip: edm_sample(D, x, n=8), 7e-4),
    'heun_churn_6': (lambda g, x, D, f, clip: edm_sample(clip(D), x, n=6, churn=Churn(**CHURN, noise=g['in.heun_churn_6.noise'])), 6e-4),
    'euler_8': (lambda g, x, D, f, clip: solve(clip(D), x, karras_grid(8).flip(0).tolist() + [0.], euler_step), 4e-4),
    'progdist_4': (lambda g, x, D, f, clip: solve(clip(D), x, karras_grid(5).flip(0), euler_step), 2e-4),
    'onestep': (lambda g, x, D, f, clip: onestep(clip(f), x), 3e-4),
    'onestep_noclip': (lambda g, x, D, f, clip: onestep(f, x), 3e-4)}
SAMPLERS |= {f'multistep_{c}': (lambda g, x, D, f, clip, c=c, ts=ts, N=N, clamp=clamp:
                                multistep(f, x, levels_from_indices(ts, N), noise=g[f'in.multistep_{c}.noise'][:1], clamp=clamp), atol)
             for c, ts, N, clamp, atol in (('0_22_39', (0, 22, 39), 40, True, 8e-5), ('0_106_200', (0, 106, 200), 201, True, 7e-5),
                                           ('0_22_39_noclip', (0, 22, 39), 40, False, 8e-5))}

@torch.no_grad()
@pytest.mark.parametrize('case', SAMPLERS)
def test_samplers(chains, case):
    draw, atol = SAMPLERS[case]
    assert_close(draw(*chains).clamp(-1, 1), chains[0][f'out.{case}'], atol=atol, rtol=0)   # every published chain ends with a clamp

# ---- 08: eight steps of the published training loop

RUNS = {'cd': (1e-2, (0.9, 0.99)), 'ct': (1e-2, (0.9, 0.99)), 'edm': (1e-3, (0.9,))}   # learning rate, rates of the averages
WATCHED = {'conv_out.bias': 'out.2.bias', 'norm_out.weight': 'out.0.weight', 'embed.dense1.bias': 'time_embed.2.bias',
           'mid.0.attend.proj.bias': 'middle_block.1.proj_out.bias', 'conv_in.weight': 'input_blocks.0.0.weight'}
FINAL = dict(cd=dict(online=3e-4, target=2e-4, **{'ema0.9': 3e-4, 'ema0.99': 9e-5}), ct=dict(online=3e-4, target=2e-4, **{'ema0.9': 2e-4, 'ema0.99': 9e-5}),
             edm=dict(online=3e-4, **{'ema0.9': 2e-4}))   # tolerances of the outputs after the last step

@pytest.mark.parametrize('case', RUNS)
def test_eight_steps(losses, case):
    g, (lr, rates), (net, teacher) = golden('08_training_steps'), RUNS[case], trio(losses, 'online', 'teacher')
    slow = dict(target=EMA(net)) | {f'ema{r}': EMA(net) for r in rates}
    opt = torch.optim.RAdam(net.train().parameters(), lr=lr, betas=(0.9, 0.999))
    for k in range(8):
        x0, z, y = g['in.data'][k], g['in.noise'][k], g['in.class_labels'][k]
        D, f, target = (Noted(m, y) for m in (Denoiser(net), Consistency(net), Consistency(slow['target'].module)))
        if case == 'edm': loss = edm_loss(D, x0, (1.2 * g['in.lognormal_draws'][k] - 1.2).exp(), z)
        else:
            N = 18 if case == 'cd' else steps(k, 8, 2, 10)
            rate = 0.95 if case == 'cd' else mu_as_coded(N, 2, 0.9)
            n = N - 2 - g['in.random_integers'][k] % (N - 1)
            loss = cd_loss(f, target, Noted(Denoiser(teacher), y), x0, z, n, karras_grid(N)) if case == 'cd' else ct_loss(f, target, x0, z, n, karras_grid(N))
            assert N == g[f'out.{case}.num_scales'][k]
            assert rate == pytest.approx(g[f'out.{case}.target_ema'][k].item(), rel=1e-9)
        assert_close(loss.detach(), g[f'out.{case}.losses'][k], atol=8e-6 if case == 'edm' else 2e-6, rtol=1e-4)
        loss.mean().backward(); opt.step(); opt.zero_grad()
        for r in rates: slow[f'ema{r}'].update(net, r)
        if case != 'edm': slow['target'].update(net, rate)
        for ours, name in WATCHED.items():
            assert_close(net.get_parameter(ours).data, g[f'out.{case}.online.{name}'][k], atol=1e-6, rtol=0)
            if case != 'edm': assert_close(slow['target'].module.get_parameter(ours).data, g[f'out.{case}.target.{name}'][k], atol=1e-6, rtol=0)
    probe = g['in.probe.x'], g['in.probe.timesteps'] / 1000, g['in.probe.class_labels']
    for what, atol in FINAL[case].items():
        with torch.no_grad(): out = (net if what == 'online' else slow[what].module)(*probe)
        assert_close(out, g[f'out.{case}.final_{what}_output'], atol=atol, rtol=0)
