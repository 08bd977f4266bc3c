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
from consistency_nb.meanflow import adaptive, average_velocity, from_linear, jump, jumps, meanflow_loss, to_linear
from consistency_nb.truncated import above, border_weight, truncated
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

# ---- TCM

TCM = dict(ct=(.999, 1e-8, None), ct_coarse=(.75, 1e-8, None), cd=(.96875, 1e-8, None), in64=(.9961, .06, lambda t, r: edm_weight(t)), three=(.999, 1e-8, None))

def test_tcm_function():
    g = golden('09_fastgen_tcm')
    x, t, first, student = g['in.precond.x'].double(), g['in.precond.t'].double(), Sine(1.5), Sine()
    with torch.no_grad(): assert_close(truncated(student, first, 1.)(x, t), g['out.precond.D'], rtol=1e-9, atol=1e-10)

@pytest.mark.parametrize('case', TCM)
def test_tcm(case):
    "Their border is 1e-8 above the cut, their r never below 0.002."
    g, (ratio, c, weight) = golden('09_fastgen_tcm'), TCM[case]
    n = len(g[f'out.{case}.t'])
    x0, z, t = g['in.step.x0'].double()[:n], g['in.step.z'].double()[:n], g['in.step.t'].double()[:n]
    mask = torch.isin(torch.arange(8), g['in.step.perm'].long()[:2]) if n == 8 else g['in.step.uniform3'].double() < .25
    t = torch.where(mask, 1 + 1e-8, t)
    r = (t * ect_ratio(t, 0, 1 / (1 - ratio))).clamp(min=.002)
    assert_close(r, g[f'out.{case}.r'].double(), rtol=1e-9, atol=1e-10)
    student, first, teacher, x_t = Sine(), Sine(1.5).requires_grad_(False), Sine(1.5).requires_grad_(False), add_noise(x0, t, z)
    x_r = euler_step(x_t, t, r, teacher) if case == 'cd' else add_noise(x0, r, z)
    assert_close(truncated(student, first, 1.)(x_r, r).detach(), g[f'out.{case}.D_r'].double(), rtol=1e-6, atol=1e-9)
    loss = pair_loss(student, truncated(student, first, 1.), x_t, t, x_r, r, far(c), weight or (lambda t, r: 1 / (t - r)))
    assert_close(loss.detach(), g[f'out.{case}.per_sample'].double(), rtol=1e-6, atol=1e-8)
    total = (border_weight(t, 1 + 1e-8, share=mask.double().mean().item()) * loss).mean()
    assert_close(total.detach(), g[f'out.{case}.total'].double(), rtol=1e-6, atol=1e-8)
    assert_close(torch.autograd.grad(total, student.amp)[0], g[f'out.{case}.grad_amp'].double(), rtol=1e-4, atol=1e-7)

def test_tcm_levels():
    g = golden('09_fastgen_schedule')
    assert_close(above(g['in.time.uniform'].double()), g['out.time.log_t.tcm'].double(), rtol=1e-6, atol=0)

# ---- MeanFlow

class Velocity(nn.Module):
    "Their u(x, t, r), in times from 0 to 1."
    def __init__(self, k=2., end=2.):
        super().__init__()
        self.k, self.end, self.amp, self.phase = k, end, nn.Parameter(torch.tensor(1., dtype=torch.float64)), torch.tensor([.3, .7, 1.1], dtype=torch.float64)
    def forward(self, x, t, r, y=None):
        phase = 0. if y is None else append_dims(torch.where(y < 0, 0., self.phase[y.clamp(min=0)]), x)
        return self.amp * torch.sin(self.k * x + append_dims(3 * t - self.end * r, x) + phase)

plain = partial(adaptive, power=.75, c=1e-3)
MF = dict(l2=(1., plain), l2_poly1=(1., partial(adaptive, power=1., c=1.)), l2_warm=(.25, plain), cd=(1., plain), cd_guided=(1., plain), opt_grad=(1., lambda q: 1 / (q.sqrt() + .1)),
          opt_grad_exp=(1., lambda q: 2 * (-.5 * q.sqrt() + .1).exp()))

@pytest.mark.parametrize('case', MF)
def test_meanflow(case):
    "`opt_grad` is our loss with another weight; its value differs, its gradient is the same."
    g, (warm, weight) = golden('09_fastgen_meanflow'), MF[case]
    x0, z, t, r, y = g['in.x0'].double(), g['in.z'].double(), g['in.t'].double(), g['in.r'].double(), g['in.labels'].long()
    x, u, teacher, v = append_dims(1 - t, x0) * x0 + append_dims(t, x0) * z, Velocity(), Velocity(1.5, 0.).requires_grad_(False), z - x0
    f = (lambda x, t, r: u(x, t, r, y)) if case == 'cd_guided' else u
    if case == 'cd': v = teacher(x, t, t)
    if case == 'cd_guided':
        w = append_dims(torch.where((t >= .2) & (t <= .8), 2.5, 1.), x)
        any_class, own = teacher(x, t, t, torch.full_like(y, -1)), teacher(x, t, t, y)
        v = any_class + w * (own - any_class)
    want = lambda name: g[f'out.{case}.{name}'].double()
    for name, got in ('x_t', x), ('v', v):
        if f'out.{case}.{name}' in g: assert_close(got, want(name), rtol=1e-9, atol=1e-10)
    loss = meanflow_loss(f, x, t, r, v, weight, warm)
    if not case.startswith('opt_grad'): assert_close(loss.detach(), want('loss'), rtol=1e-8, atol=1e-10)
    assert_close(torch.autograd.grad(loss.mean(), u.amp)[0], want('grad_amp'), rtol=1e-8, atol=1e-10)

def test_meanflow_in_levels():
    g = golden('09_fastgen_meanflow')
    t, x = g['in.map.t'].double(), g['out.map.x_t'].double()
    assert_close(from_linear(t), g['out.map.level'].double(), rtol=1e-9, atol=1e-10)
    assert_close(to_linear(from_linear(t)), g['out.map.back'].double(), rtol=1e-9, atol=1e-10)
    assert_close(append_dims(1 + from_linear(t), x) * x, g['out.map.x_level'].double(), rtol=1e-9, atol=1e-9)
    u = Velocity().requires_grad_(False)
    G = lambda x, t, r: x / append_dims(1 + t, x) - append_dims(to_linear(t), x) * u(x / append_dims(1 + t, x), to_linear(t), to_linear(r))
    level, zero = from_linear(t), torch.zeros_like(t)
    assert_close(jump(G, append_dims(1 + level, x) * x, level, zero), g['out.map.f'].double(), rtol=1e-8, atol=1e-9)
    assert_close(average_velocity(G)(x, t, zero), g['out.map.u_to_0'].double(), rtol=1e-8, atol=1e-8)

@pytest.mark.parametrize('case, times', [('one', (.999,)), ('two', (.999, .5)), ('four', (.999, .75, .5, .25))])
def test_meanflow_sampling(case, times):
    g, u = golden('09_fastgen_sampling'), Velocity().requires_grad_(False)
    G = lambda x, t, r: x / append_dims(1 + t, x) - append_dims(to_linear(t), x) * u(x / append_dims(1 + t, x), to_linear(t), to_linear(r))
    start = .999 * g['in.noise'].double() * 1000   # their first image, at our scale
    levels = [t / (1 - t) for t in times]
    assert_close(jumps(G, start, levels), g[f'out.mf.{case}.ode'].double(), rtol=1e-8, atol=1e-9)
    x, noise = start, g['in.renoise'].double()
    for i, t in enumerate(levels):
        x = x if i == 0 else x + t * noise[i - 1]
        x = G(x, torch.full((len(x),), t, dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64))
    assert_close(x, g[f'out.mf.{case}.sde'].double(), rtol=1e-7, atol=1e-8)

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
