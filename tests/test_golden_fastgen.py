"""The consistency methods since the paper against numbers made with NVlabs/FastGen (tests/golden/09_*, float64).

Its networks in these files: D(x, t, y) = c_skip x + c_out sin(k c_in x + ln(t)/4 + phase of y), plain EDM scalings.
"""
from functools import partial
import pytest, torch
from torch import nn
from torch.testing import assert_close
from consistency_nb.core import append_dims
from consistency_nb.ema import gamma_of, halflife_to_rate, power_rate
from consistency_nb.grid import karras_grid
from consistency_nb.losses import difference, edm_weight, pair_loss
from consistency_nb.pfode import add_noise
from consistency_nb.precond import edm_scalings
from consistency_nb.sample import guided, multistep
from consistency_nb.schedules import ect_ratio
from consistency_nb.solvers import euler_step
from consistency_nb.trigflow import from_trigflow, scm_loss, scm_tangent, tamed, to_trigflow
from golden import golden

class Sine(nn.Module):
    "Their function, with a factor on the sine whose derivative is kept."
    def __init__(self, k=2.):
        super().__init__()
        self.k, self.amp, self.phase = k, nn.Parameter(torch.tensor(1., dtype=torch.float64)), torch.tensor([.3, .7, 1.1], dtype=torch.float64)
    def forward(self, x, t, y=None):
        c_skip, c_out, c_in = (append_dims(c, x) for c in edm_scalings(t))
        phase = 0. if y is None else append_dims(torch.where(y < 0, 0., self.phase[y.clamp(min=0)]), x)   # -1: any class
        return c_skip * x + c_out * self.amp * torch.sin(self.k * c_in * x + append_dims(t.log() / 4, x) + phase)

# ---- sCM

SCM = dict(ct_r0=(0., False), ct_r05=(.5, False), ct_r1=(1., False), cd_r0=(0., True), cd_r05=(.5, True), cd_r1=(1., True), cd_guided_r1=(1., True),
           ct_norm_l2=(1., False), ct_plain_weight=(1., False), ct_wide=(1., False))

@pytest.mark.parametrize('case', SCM)
def test_scm(case):
    g, (warm, distils) = golden('09_fastgen_scm'), SCM[case]
    x0, z, t, y = g['in.x0'].double(), g['in.z'].double(), g['in.t_wide' if case == 'ct_wide' else 'in.t'].double(), g['in.labels'].long()
    student, teacher, want = Sine(), Sine(1.5).requires_grad_(False), lambda name: g[f'out.{case}.{name}']
    x_t = x0 + append_dims(t, x0) * z
    labelled = case == 'cd_guided_r1'
    f = (lambda x, t: student(x, t, y)) if labelled else student
    aim = (guided(teacher, 2.5)(x_t, t, y) if labelled else teacher(x_t, t)) if distils else x0
    value, tangent = scm_tangent(f, x_t, t, aim, warm, .5)
    assert_close(tangent.detach(), want('g'), rtol=1e-8, atol=1e-9)
    rms = case != 'ct_norm_l2'
    assert_close(tamed(tangent, rms=rms), want('g_normalised'), rtol=1e-8, atol=1e-9)
    if case.endswith('_r1') and f'out.{case}.D' in g: assert_close(value.detach(), want('D'), rtol=1e-9, atol=1e-10)
    plain = case == 'ct_plain_weight'
    log_var, n = .3 * t.log() / 4, x0[0].numel()
    weight = torch.ones_like(t) if plain else 1 / (t * n)
    unweighted = scm_loss(f, x_t, t, aim, warm, .5, tame=partial(tamed, rms=rms))
    assert_close(unweighted.detach(), want('unweighted'), rtol=1e-7, atol=1e-10)
    loss = scm_loss(f, x_t, t, aim, warm, .5, log_scale=log_var, weight=weight, tame=partial(tamed, rms=rms))
    assert_close(loss.detach(), want('loss'), rtol=1e-7, atol=1e-10)
    assert_close(torch.autograd.grad(loss.mean(), student.amp)[0], want('grad_amp'), rtol=1e-6, atol=1e-10)

def test_scm_bridge():
    g = golden('09_fastgen_scm')
    x0, z, t = g['in.x0'].double(), g['in.z'].double(), g['in.t'].double()
    x_t = x0 + append_dims(t, x0) * z
    x, angle = to_trigflow(x_t, t, .5)
    assert_close(x, g['out.ct_r1.x_hat'], rtol=1e-9, atol=1e-10)
    assert_close(angle, g['out.ct_r1.t_hat'], rtol=1e-9, atol=1e-10)
    for got, want in zip(from_trigflow(x, angle, .5), (x_t, t)): assert_close(got, want, rtol=1e-9, atol=1e-9)

def test_scm_finite_differences():
    "Theirs moves along the line through image and noise: right without a teacher."
    g = golden('09_fastgen_scm')
    x0, z, t = g['in.x0'].double(), g['in.z'].double(), g['in.t'].double()
    _, exact = scm_tangent(Sine(), x0 + append_dims(t, x0) * z, t, x0, 1., .5)
    _, near = scm_tangent(Sine(), x0 + append_dims(t, x0) * z, t, x0, 1., .5, step=1e-3)
    assert_close(near.detach(), g['out.ct_fd.g'], rtol=2e-2, atol=2e-3)
    assert_close(near, exact, rtol=1e-2, atol=1e-3)

# ---- ECT's pairs, as they train them: r is never below 0.002

def far(c): return lambda a, b: (difference(a, b).square().sum(1) + c * c).sqrt() - c

CM = dict(ct=(.875, 'in.step.t', 1e-8, None), ct_stage0=(.5, 'in.step.t', 1e-8, None), ct_in64=(.9375, 'in.step.t', .06, lambda t, r: edm_weight(t)),
          cd=(.875, 'in.step.t', 1e-8, None), cd_guided=(.875, 'in.step.t', 1e-8, None))

@pytest.mark.parametrize('case', CM)
def test_ect(case):
    g, (ratio, at, c, weight) = golden('09_fastgen_cm'), CM[case]
    x0, z, t, y = g['in.step.x0'].double(), g['in.step.z'].double(), g[at].double(), g['in.step.labels'].long()
    r = (t * ect_ratio(t, 0, 1 / (1 - ratio))).clamp(min=.002)
    assert_close(r, g[f'out.{case}.r'].double(), rtol=1e-9, atol=1e-10)
    student, teacher, x_t = Sine(), Sine(1.5).requires_grad_(False), add_noise(x0, t, z)
    f = (lambda x, t: student(x, t, y)) if case == 'cd_guided' else student
    D = (lambda x, t: guided(teacher, 2.5)(x, t, y)) if case == 'cd_guided' else teacher
    x_r = euler_step(x_t, t, r, D) if case.startswith('cd') else add_noise(x0, r, z)
    loss = pair_loss(f, f, x_t, t, x_r, r, far(c), weight or (lambda t, r: 1 / (t - r)))
    assert_close(loss.detach(), g[f'out.{case}.loss'].double(), rtol=1e-6, atol=1e-8)
    assert_close(torch.autograd.grad(loss.mean(), student.amp)[0], g[f'out.{case}.grad_amp'].double(), rtol=1e-5, atol=1e-8)

@pytest.mark.parametrize('case, levels', [('one', (80.,)), ('two', (80., .821)), ('two_tcm', (80., 1.)), ('two_in64', (80., 1.526)), ('four', (80., 10., 2., .4))])
def test_sampling(case, levels):
    "Noise of the whole level at each call: the boundary is at 0."
    g = golden('09_fastgen_sampling')
    noise = g['in.renoise'].double()[:len(levels) - 1]
    with torch.no_grad(): x = multistep(Sine(), 80. * g['in.noise'].double(), levels, eps=0., noise=noise, clamp=False)
    assert_close(x, g[f'out.cm.{case}.sde'].double(), rtol=1e-8, atol=1e-9)

# ---- averages: rates after each step, counted from 1

@pytest.mark.parametrize('gamma, width', [('96.99', .01), ('16.97', .05), ('6.94', .1)])
def test_power_averages(gamma, width):
    g = golden('09_fastgen_schedule')
    rates = [power_rate(k, float(gamma)) for k in g['in.ema.iteration'].tolist()]
    assert_close(torch.tensor(rates, dtype=torch.float64), g[f'out.ema.power.{gamma}'], rtol=1e-12, atol=0)
    assert round(gamma_of(width), 2) == float(gamma)

@pytest.mark.parametrize('case, ramp', [('default', True), ('no_rampup', False)])
def test_halflife_averages(case, ramp):
    g = golden('09_fastgen_schedule')
    rates = [halflife_to_rate(500e3, 512, 512 * k if ramp else None) for k in g['in.ema.iteration'].tolist()]
    assert_close(torch.tensor(rates, dtype=torch.float64), g[f'out.ema.halflife.{case}'], rtol=1e-12, atol=0)
