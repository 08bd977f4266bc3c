"""The presets against Table 3 of the paper (appendix C), cell by cell, and their networks against the published sizes."""
import pytest
from consistency_nb.presets import LATER, PAPER, PRESETS, preset

COLUMNS = 'cifar10_cd cifar10_ct imagenet64_cd imagenet64_ct lsun_cd lsun_ct'.split()
TABLE = dict(
    lr=(4e-4, 4e-4, 8e-6, 8e-6, 1e-5, 1e-5),
    batch=(512, 512, 2048, 2048, 2048, 2048),
    mu=(0., None, 0.95, None, 0.95, None),
    mu0=(None, 0.9, None, 0.95, None, 0.95),
    s0=(None, 2, None, 2, None, 2),
    s1=(None, 150, None, 200, None, 150),
    N=(18, None, 40, None, 40, None),
    solver=('heun', None, 'heun', None, 'heun', None),
    ema=(0.9999, 0.9999, 0.999943, 0.999943, 0.999943, 0.999943),
    iterations=(800_000, 800_000, 600_000, 800_000, 600_000, 1_000_000),
    precision=('fp32', 'fp32', 'fp16', 'fp16', 'fp16', 'fp16'),
    dropout=(0., 0., 0., 0., 0., 0.),
    gpus=(8, 8, 64, 64, 64, 64),
    optimizer=('radam',) * 6)
CELLS = [(name, field, value) for field, row in TABLE.items() for column, value in zip(COLUMNS, row, strict=True) if value is not None
         for name in ([column] if 'lsun' not in column else [column.replace('lsun', f'lsun_{scene}') for scene in ('bedroom', 'cat')])]

@pytest.mark.parametrize('name, field, value', CELLS)
def test_table_3(name, field, value): assert getattr(preset(name), field) == value

@pytest.mark.parametrize('name', [p.name for p in PAPER])
def test_what_all_published_runs_share(name):
    p = preset(name)
    assert (p.sigma_data, p.eps, p.T, p.rho, p.flip, p.growth, p.lr_decay, p.weight, p.draw) == (0.5, 0.002, 80., 7., True, (), 0., 'uniform', 'uniform')
    if p.method in ('cd', 'ct'): assert p.distance == 'lpips'
    if p.method == 'ct': assert p.init == 'random' and not p.mu   # mu(k) and N(k) follow the schedules

# What was published of the later runs: batch, steps, rate, dropout, law of ln t, average of the weights.
LATER_TABLE = dict(
    cifar10_ict=(1024, 400_000, 1e-4, .3, -1.1, 2., .99993), cifar10_ect=(128, 200_000, 1e-4, .2, -1.1, 2., .9999), cifar10_ecd=(512, 350_000, 1e-4, .2, -1.1, 2., .9999),
    cifar10_tcm=(1024, 300_000, 5e-5, .2, -1.1, 2., .9999), cifar10_sct=(512, 350_000, 1e-4, .2, -1., 1.4, .5**(512 / 500_000)), cifar10_scd=(512, 500_000, 1e-4, 0., -1., 1.4, .5**(512 / 500_000)),
    cifar10_mf=(1024, 1_000_000, 6e-4, .2, -.6, 1.6, .9999), imagenet64_ict=(4096, 800_000, 1e-4, .2, -1.1, 2., .99997), imagenet64_ect=(1024, 150_000, 1e-4, .4, -.8, 1.6, .999943),
    imagenet64_tcm=(1024, 400_000, 1e-4, .4, -.8, 1.6, .999943), imagenet64_sct=(2048, 400_000, 1e-4, .45, -1., 1.6, .999943), imagenet64_scd=(2048, 400_000, 1e-4, 0., -1., 1.6, .999943))

@pytest.mark.parametrize('name', [p.name for p in LATER])
def test_later_runs(name):
    p = preset(name)
    assert (p.batch, p.iterations, p.lr, p.dropout, p.t_mean, p.t_std, p.ema) == LATER_TABLE[name]
    assert (p.sigma_data, p.eps, p.T, p.mu, p.mu0) == (.5, .002, 80., 0., 0.) and p.optimizer == ('adam' if 'mf' in name else 'radam') and p.beta2 == (.99 if '_sc' in name else .999)
    if 'ict' in name: assert p.init == 'random' and p.growth == (11, 21, 41, 81, 161, 321, 641, 1281)

@pytest.mark.parametrize('name', [p.name for p in LATER])
def test_dry_runs_of_later_methods(name):
    from consistency_nb.cost import estimate
    c = estimate(preset(name), 1e14)
    assert 50e6 < c.parameters < 300e6 and c.train_flops > 3.9 * c.forward_flops and c.device_hours > 10

SIZES = dict(cifar10=56_395_523, imagenet64=295_899_267, lsun_bedroom=526_304_771, lsun_cat=526_304_771)

@pytest.mark.parametrize('name', [p.name for p in PAPER])
def test_network_sizes(name):
    import torch
    from consistency_nb.checkpoints import make_net
    with torch.device('meta'): net = make_net(preset(name).net)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == SIZES[name.rsplit('_', 1)[0]]
