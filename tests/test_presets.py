"""The presets against Table 3 of the paper (appendix C), cell by cell, and their networks against the published sizes."""
import pytest
from consistency_nb.presets import PRESETS, preset

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

@pytest.mark.parametrize('name', [n for n in PRESETS if 'avatars' not in n])
def test_what_all_published_runs_share(name):
    p = preset(name)
    assert (p.sigma_data, p.eps, p.T, p.rho, p.flip, p.growth, p.lr_decay, p.weight, p.draw) == (0.5, 0.002, 80., 7., True, (), 0., 'uniform', 'uniform')
    if p.method in ('cd', 'ct'): assert p.distance == 'lpips'
    if p.method == 'ct': assert p.init == 'random' and not p.mu   # mu(k) and N(k) follow the schedules

SIZES = dict(cifar10=56_395_523, imagenet64=295_899_267, lsun_bedroom=526_304_771, lsun_cat=526_304_771)

@pytest.mark.parametrize('name', [n for n in PRESETS if 'avatars' not in n])
def test_network_sizes(name):
    import torch
    from consistency_nb.checkpoints import make_net
    with torch.device('meta'): net = make_net(preset(name).net)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == SIZES[name.rsplit('_', 1)[0]]
