"""Noise levels, solvers and scalings against numbers made with the published implementations (tests/golden)."""
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from torch.testing import assert_close
from consistency_nb.grid import karras_grid, levels_from_indices
from consistency_nb.oracle import Gaussian
from consistency_nb.solvers import Churn, edm_sample, edm_sample_ode, euler_step, solve

GOLDEN = Path(__file__).parent/'golden'
MU = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64).reshape(3, 1, 1)

@pytest.fixture(scope='module')
def scalings(): return load_file(GOLDEN/'02_scalings.safetensors')

@pytest.fixture(scope='module')
def chains(): return load_file(GOLDEN/'03_samplers_analytic.safetensors')

@pytest.fixture(scope='module')
def edm(): return load_file(GOLDEN/'05_edm_sampler_analytic.safetensors')

class Recorder:
    "A denoiser that notes what it is called with, and a callback that notes each state."
    def __init__(self, dtype): self.data, self.levels, self.inputs, self.states = Gaussian(MU.to(dtype), 0.5), [], [], []
    def __call__(self, x, t):
        assert t.shape == (len(x),) and bool((t == t[0]).all())
        self.levels.append(t[0])
        self.inputs.append(x)
        return self.data.denoise(x, t)
    def callback(self, i, t, x): self.states.append(x)

# ---- 02: noise levels and scalings

@pytest.mark.parametrize('N', [2, 10, 18, 40, 151, 201])
def test_karras_levels(scalings, N):
    want = scalings[f'out.karras_sigmas.n{N}']   # descending, then a zero
    assert want[-1] == 0
    assert_close(karras_grid(N).flip(0), want[:-1], atol=0, rtol=3e-6)

def test_scalings(scalings):
    from consistency_nb.precond import edm_scalings
    for name, got in zip(('c_skip', 'c_out', 'c_in'), edm_scalings(scalings['in.sigmas'])):
        assert_close(got, scalings[f'out.scalings.{name}'], atol=0, rtol=1e-6)

def test_boundary_scalings(scalings):
    from consistency_nb.precond import cm_scalings
    tol = dict(c_skip=dict(atol=0, rtol=1e-6), c_out=dict(atol=2e-9, rtol=1e-5), c_in=dict(atol=0, rtol=1e-6))
    for name, got in zip(('c_skip', 'c_out', 'c_in'), cm_scalings(scalings['in.sigmas'])):
        assert_close(got, scalings[f'out.boundary.{name}'], **tol[name])

# ---- 03: samplers of openai/consistency_models on Gaussian data, float32

HEUN = {'heun_18': (dict(n=18), 2e-5), 'heun_40': (dict(n=40), 2e-5),
        'heun_churn_18': (dict(n=18, churn=dict(churn=40., s_min=0.05, s_max=50., s_noise=1.003)), 2e-5)}
EULER = {'euler_18': (karras_grid(18).flip(0).tolist() + [0.], 1e-5),   # goes on to 0
         'progdist_1': (karras_grid(2).flip(0), 4e-4),                  # steps + 1 levels, ends at eps
         'progdist_4': (karras_grid(5).flip(0), 1e-5)}

def stored(args, noise):
    "The arguments of `edm_sample` with the stored draws in them."
    return args | dict(churn=Churn(**args['churn'], noise=noise)) if 'churn' in args else args

def check_chain(chains, case, got, rec, atol, calls):
    assert got.dtype == torch.float32
    assert_close(got, chains[f'out.{case}'], atol=atol, rtol=0)
    assert_close(torch.stack(rec.levels), chains[f'out.{case}.network_sigmas'], atol=0, rtol=3e-6)
    want = chains[f'out.{case}.trajectory']      # the state at the first call of each step, that is after the churn
    tol = dict(atol=1e-5*float(want.abs().max()), rtol=0)
    assert_close(torch.stack(rec.inputs[::calls]), want, **tol)
    assert len(rec.states) == len(want) + 1 and rec.states[-1] is got
    if 'churn' not in case: assert_close(torch.stack(rec.states[:-1]), want, **tol)

@pytest.mark.parametrize('case', HEUN)
def test_heun(chains, case):
    (args, atol), rec = HEUN[case], Recorder(torch.float32)
    x = edm_sample(rec, chains['in.x_T_unit']*80., callback=rec.callback, **stored(args, chains.get(f'in.{case}.noise')))
    check_chain(chains, case, x, rec, atol, calls=2)

@pytest.mark.parametrize('case', EULER)
def test_euler(chains, case):
    (ts, atol), rec = EULER[case], Recorder(torch.float32)
    x = solve(rec, chains['in.x_T_unit']*80., ts, euler_step, callback=rec.callback)
    check_chain(chains, case, x, rec, atol, calls=1)

def test_onestep_of_the_oracle(chains):
    x = Gaussian(MU.float(), 0.5).consistency(chains['in.x_T_unit']*80., 80.)
    assert_close(x, chains['out.onestep'], atol=9e-6, rtol=0)

@pytest.mark.parametrize('case, N', [('cd_0_22_39', 40), ('cd_0_17_39', 40), ('ct_0_106_200', 201)])
def test_levels_of_published_indices(chains, case, N):
    got = levels_from_indices([int(i) for i in case.split('_')[1:]], N)
    assert_close(torch.tensor(got), chains[f'out.multistep_{case}.network_sigmas'], atol=0, rtol=3e-6)

# ---- 05: the sampler of NVlabs/edm on Gaussian data, float64

EDM = {'deterministic_18': dict(n=18), 'deterministic_256': dict(n=256),
       'stochastic_18': dict(n=18, churn=dict(churn=40., s_min=0.05, s_max=50., s_noise=1.003)),
       'limits_of_network': dict(n=10, eps=0.02, T=60.)}   # the network's own limits, narrower than 0.002 and 100

@pytest.mark.parametrize('case', EDM)
def test_edm_sampler(edm, case):
    args, rec = EDM[case], Recorder(torch.float64)
    x = edm[f'in.{case}.latents'].double()*args.get('T', 80.)
    got = edm_sample(rec, x, **stored(args, edm.get(f'in.{case}.noise')))
    assert got.dtype == torch.float64
    assert_close(got, edm[f'out.{case}'], atol=1e-9, rtol=1e-9)
    assert_close(torch.stack(rec.levels), edm[f'out.{case}.network_sigmas'], atol=1e-9, rtol=1e-9)
    if 'churn' not in args: assert_close(edm_sample_ode(rec, x, **args), got, atol=0, rtol=1e-12)

@pytest.mark.parametrize('wrong', [dict(churn=0.), dict(s_noise=1.), dict(s_max=float('inf')), dict(s_min=0.)])
def test_edm_sampler_feels_each_argument(edm, wrong):
    "A negative control: changing one argument of the stochastic case must show."
    x, D = edm['in.stochastic_18.latents'].double()*80., Gaussian(MU, 0.5).denoise
    settings = dict(churn=EDM['stochastic_18']['churn'] | wrong)
    got = edm_sample(D, x, n=18, **stored(settings, edm['in.stochastic_18.noise']))
    assert (got - edm['out.stochastic_18']).abs().max() > 1e-6
