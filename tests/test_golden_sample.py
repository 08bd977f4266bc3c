"""One-step and multistep sampling and the schedules against numbers made with the published implementations (tests/golden)."""
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from torch.testing import assert_close
from consistency_nb.grid import karras_grid, levels_from_indices
from consistency_nb.oracle import Gaussian
from consistency_nb.sample import multistep, onestep
from consistency_nb.schedules import mu_as_coded, pd_steps, steps

GOLDEN = Path(__file__).parent/'golden'
DATA = Gaussian(torch.tensor([0.1, -0.2, 0.3]).reshape(3, 1, 1), 0.5)

@pytest.fixture(scope='module')
def chains(): return load_file(GOLDEN/'03_samplers_analytic.safetensors')

@pytest.fixture(scope='module')
def openai(): return load_file(GOLDEN/'04_ema_and_scales.safetensors')

@pytest.fixture(scope='module')
def jax(): return load_file(GOLDEN/'06_jax_schedules.safetensors')

class Recorder:
    "The exact consistency function, with a note of the level of each call."
    def __init__(self): self.levels = []
    def __call__(self, x, t):
        assert t.shape == (len(x),) and bool((t == t[0]).all())
        self.levels.append(t[0])
        return DATA.consistency(x, t)

# ---- 03: samplers

def test_onestep(chains):
    f = Recorder()
    out = onestep(f, chains['in.x_T_unit']*80)
    assert_close(out, chains['out.onestep'], atol=9e-6, rtol=0)
    assert_close(torch.stack(f.levels), chains['out.onestep.network_sigmas'], atol=0, rtol=3e-6)

@pytest.mark.parametrize('case, N, ts, atol', [
    ('cd_0_22_39', 40, (0, 22, 39), 4e-6), ('cd_0_17_39', 40, (0, 17, 39), 4e-6),
    ('ct_0_106_200', 201, (0, 106, 200), 4e-6), ('5', 40, (0, 8, 16, 24, 32, 39), 5e-6)])
def test_multistep(chains, case, N, ts, atol):
    f, noise = Recorder(), chains[f'in.multistep_{case}.noise']
    levels = levels_from_indices(ts, N)
    assert len(noise) == len(levels)   # the published loop draws once more and multiplies that draw by 0
    out = multistep(f, chains['in.x_T_unit']*80, levels, noise=noise[:-1], clamp=False)
    assert_close(out, chains[f'out.multistep_{case}'], atol=atol, rtol=0)
    assert_close(torch.stack(f.levels), chains[f'out.multistep_{case}.network_sigmas'], atol=0, rtol=3e-6)

def test_published_loop_noises_its_result_unless_the_list_ends_at_eps(chains):
    noise, want = (chains[f'{w}.multistep_not_ending_at_sigma_min{s}'] for w, s in (('in', '.noise'), ('out', '')))
    f = Recorder()
    clean = multistep(f, chains['in.x_T_unit']*80, levels_from_indices((0, 10), 40), noise=noise[:1], clamp=False)
    last = karras_grid(40).flip(0)[20]
    assert_close(clean + (last**2 - 0.002**2).sqrt()*noise[1], want, atol=2e-5, rtol=0)
    assert (clean - want).std() > 1   # ours is the image before that noise
    assert_close(torch.stack(f.levels), chains['out.multistep_not_ending_at_sigma_min.network_sigmas'], atol=0, rtol=3e-6)

# ---- 04: schedules of the PyTorch code

ADAPTIVE = [('adaptive_150_mu0.9', 150, 0.9), ('adaptive_200_mu0.95', 200, 0.95),
            ('adaptive_150_mu0.95', 150, 0.95), ('adaptive_200_mu0.9', 200, 0.9)]

@pytest.mark.parametrize('case, s1, mu0', ADAPTIVE + [('fixed_progressive', 150, None)])
def test_steps_and_mu(openai, case, s1, mu0):
    K, ks = 800_000, openai[f'in.{case}.steps']
    inside = ks <= K   # the published schedule grows past K, ours stops there
    N = [steps(k, K, 2, s1) for k in ks.tolist()]
    assert torch.tensor(N)[inside].tolist() == openai[f'out.{case}.scales'][inside].tolist()
    assert all(n == s1 + 1 for n, k in zip(N, ks) if k >= K)
    if mu0 is None: return
    mus = torch.tensor([mu_as_coded(n, 2, mu0) for n in N], dtype=torch.float64)
    assert_close(mus[inside], openai[f'out.{case}.target_ema'][inside], atol=0, rtol=1e-9)

@pytest.mark.parametrize('case, s1', [(c, s1) for c, s1, _ in ADAPTIVE] + [('fixed_progressive', 150)])
def test_every_change_of_steps(openai, case, s1):
    "All steps at which N changes, and one step before each."
    ks, N = openai[f'out.{case}.change_steps'].tolist(), openai[f'out.{case}.change_scales'].tolist()
    assert [steps(k, 800_000, 2, s1) for k in ks] == N
    assert [steps(k - 1, 800_000, 2, s1) for k in ks] == [2] + N[:-1]

@pytest.mark.parametrize('case, s0, each', [('progdist_4096', 4096, 50_000), ('progdist_64', 64, 20_000)])
def test_progressive_distillation(openai, case, s0, each):
    assert [pd_steps(k, each, s0) for k in openai[f'in.{case}.steps'].tolist()] == openai[f'out.{case}.scales'].tolist()

# ---- 06: schedules of the JAX code, which computes in float32

LATE = {150: {202553, 316568, 350783, 522174, 620608, 747888, 758170}, 200: {685041}}   # float32 changes one step late here

@pytest.mark.parametrize('case, s1, mu0', [('adaptive_cifar', 150, 0.9), ('adaptive_200', 200, 0.95)])
def test_jax_steps_and_mu(jax, case, s1, mu0):
    K, ks = 800_000, jax[f'in.{case}.steps']
    inside = [i for i, k in enumerate(ks.tolist()) if k <= K and k not in LATE[s1]]
    N = [steps(k, K, 2, s1) for k in ks[inside].tolist()]
    assert N == jax[f'out.{case}.scales'][inside].tolist()
    mus = torch.tensor([mu_as_coded(n, 2, mu0) for n in N], dtype=torch.float32)
    assert_close(mus, jax[f'out.{case}.target_ema'][inside], atol=0, rtol=1e-5)

@pytest.mark.parametrize('case, s1', [('adaptive_cifar', 150), ('adaptive_200', 200)])
def test_jax_every_change(jax, case, s1):
    ks, N = jax[f'out.{case}.change_steps'].tolist(), jax[f'out.{case}.change_scales'].tolist()
    late = {k for k, n in zip(ks, N) if steps(k - 1, 800_000, 2, s1) == n}   # we changed one step earlier
    assert late == {k + 1 for k in LATE[s1]}
    assert [steps(k, 800_000, 2, s1) for k in ks] == N

def test_jax_progressive_distillation(jax):
    assert [pd_steps(k) for k in jax['in.progdist_cifar.steps'].tolist()] == jax['out.progdist_cifar.scales'].tolist()
