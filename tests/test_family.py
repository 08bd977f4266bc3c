"Every method since the paper through the same loop: small networks, a few steps, and what must hold whatever is trained."
import copy
import pytest, torch
from torch.testing import assert_close
from consistency_nb.assemble import distance_of, step_of
from consistency_nb.data import Images
from consistency_nb.cache import read_tensors
from consistency_nb.launch import fit_in, load_average, model_of
from consistency_nb.nets import UNet
from consistency_nb.place import Options, Parts
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.presets import FAMILY, override
from consistency_nb.train import Run, train

NAMES = [p.name for p in FAMILY if p.image_size == 32]
CPU = Options(device='cpu')

def two_levels(name): return dict(two_levels=True) if '_mf' in name else {}

def small(name, classes=3, **changes):
    "The preset on 8 pixels, and its parts."
    p = override(next(p for p in FAMILY if p.name == name), **dict(image_size=8, batch=6, iterations=6, precision='fp32', init='random', data='x',
                 net=dict(cls='UNet', channels=[8, 8], blocks=1, patch=1, attention=[1], emb=8, num_classes=classes) | two_levels(name)) | (dict(init='x') if 'tcm' in name else {}) | changes)
    torch.manual_seed(0)
    make = lambda: UNet(channels=(8, 8), blocks=1, patch=1, attention=(1,), emb=8, num_classes=classes, **two_levels(name))
    g = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (30, 3, 8, 8), generator=g, dtype=torch.uint8), 'x', torch.arange(30) % classes if classes else None)
    net, teacher = make(), Denoiser(make().eval().requires_grad_(False), p.sigma_data)
    first = Consistency(make().eval().requires_grad_(False), p.sigma_data)
    with torch.no_grad():
        for v in (*net.parameters(), *teacher.parameters(), *first.parameters()):
            if v.ndim > 1: v.normal_(std=.1)
    return p, Parts(net, images, teacher if p.method == 'cd' else None, distance_of(p), step_of(p), first if p.cut else None)

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('changes', [{}, dict(dropout=.2), dict(precision='bf16'), dict(classes=None)], ids=['plain', 'dropout', 'bf16', 'no classes'])
def test_it_trains(name, changes):
    p, parts = small(name, **changes)
    before = [v.clone() for v in parts.net.parameters()]
    run = train(Run(p, parts, CPU))
    assert run.k == 6 and torch.isfinite(run.norm) and run.norm > 0
    moved = [not torch.equal(a, b) for a, b in zip(before, run.raw.parameters())]
    assert sum(moved) > .8 * len(moved)
    f, y = model_of(run), torch.arange(2) if p.net.get('num_classes') else None
    x = torch.randn(2, 3, 8, 8)
    assert f(x, 80., y).isfinite().all() and f.eps == (0. if p.form in ('scm', 'meanflow') or p.draw == 'ect' else .002)
    assert_close(f(x, f.eps, y), x, rtol=0, atol=1e-6)

@pytest.mark.parametrize('name', NAMES)
def test_portions_give_the_same(name):
    "A batch in three portions, each with the noise of its places."
    nets = []
    for accumulate in 1, 3:
        p, parts = small(name)
        nets.append(train(Run(p, parts, Options(device='cpu', accumulate=accumulate))).raw.state_dict())
    for n in nets[0]: assert_close(nets[0][n], nets[1][n], rtol=2e-3, atol=2e-4)

@pytest.mark.parametrize('name', NAMES)
def test_a_resumed_run_is_the_same(name, tmp_path):
    p, parts = small(name, dropout=.1)
    whole = fit_in(tmp_path/'whole', p, copy.deepcopy(parts), CPU, bar=False)
    stop = lambda run, record: setattr(run, 'stopping', run.k >= 3)
    first = fit_in(tmp_path/'part', p, copy.deepcopy(parts), CPU, on_log=stop, log_every=0., bar=False)
    assert 0 < first.k < 6
    second = fit_in(tmp_path/'part', p, copy.deepcopy(parts), CPU, bar=False)
    for n, v in whole.raw.state_dict().items(): assert torch.equal(v, second.raw.state_dict()[n]), n

def averages(out): return {f.name: read_tensors(f)[1] for f in (out/'averages').iterdir()}

def test_a_resumed_run_has_the_same_averages(tmp_path):
    "Stopped between two moments, with files of steps that are still to come, as a kill behind a checkpoint leaves them."
    p, parts = small('avatars32_ect', iterations=9, snapshots=4)
    whole = fit_in(tmp_path/'whole', p, copy.deepcopy(parts), CPU, bar=False)
    stop = lambda run, record: setattr(run, 'stopping', run.k >= 4)
    first = fit_in(tmp_path/'part', p, copy.deepcopy(parts), CPU, on_log=stop, log_every=0., bar=False)
    assert first.k == 4 and {n[:8] for n in averages(tmp_path/'part')} == {'00000003'}
    for name in '00000005-0.05', '00000008-0.1': (tmp_path/f'part/averages/{name}.safetensors').write_bytes(b'of another life')
    fit_in(tmp_path/'part', p, copy.deepcopy(parts), CPU, bar=False)
    a, b = averages(tmp_path/'whole'), averages(tmp_path/'part')
    assert a.keys() == b.keys() == {f'{k:08d}-{w}.safetensors' for k in (3, 5, 7, 9) for w in (.05, .1)}
    assert all(v.dtype == torch.float32 and torch.equal(v, b[f][n]) for f in a for n, v in a[f].items())
    assert any(not torch.equal(v, a['00000009-0.05.safetensors'][n]) for n, v in a['00000009-0.1.safetensors'].items())
    with pytest.raises(ValueError, match=r'another snapshots \(4, not 0\); choose another out_dir'): fit_in(tmp_path/'part', override(p, snapshots=0), parts, CPU, bar=False)
    model = load_average(tmp_path/'part', .1, like=model_of(whole))   # one that is stored
    assert_close(model.net.state_dict(), a['00000009-0.1.safetensors'])

def test_a_width_that_is_not_met_is_told(tmp_path):
    p, parts = small('avatars32_ect', iterations=4, snapshots=2)
    run = fit_in(tmp_path, p, parts, CPU, bar=False)
    with pytest.warns(UserWarning, match='of the profile of width 0.01 is not met by 4 averages'): load_average(tmp_path, .01, like=model_of(run))

def test_a_run_begun_anew_keeps_no_averages_of_the_one_before(tmp_path):
    p, parts = small('avatars32_ect', snapshots=2)
    fit_in(tmp_path, p, copy.deepcopy(parts), CPU, bar=False)
    for f in tmp_path.glob('checkpoint*'): f.unlink()
    fit_in(tmp_path, override(p, snapshots=0), parts, CPU, bar=False)
    assert not averages(tmp_path)

def test_the_record_of_a_run_without_a_grid_has_no_levels(tmp_path):
    import json
    for name, has in ('avatars32_sct', False), ('avatars32_ect', False), ('avatars32_ict', True):
        p, parts = small(name)
        fit_in(tmp_path/name, p, parts, CPU, log_every=0., bar=False)
        rows = [json.loads(l) for l in (tmp_path/name/'metrics.jsonl').read_text().splitlines()]
        assert all(('N' in r) == has for r in rows)

@pytest.mark.parametrize('changes, said', [(dict(form='continuous'), "it has no intervals, pass 'uniform' or 'lognormal'"), (dict(form='scm', draw='uniform', weight='uniform', checkpointing=True), 'pass checkpointing=False'),
                                           (dict(form='scm', draw='uniform'), "pass weight='uniform'"), (dict(form='scm', draw='uniform', weight='uniform', mu=.5), 'the target is the model itself'),
                                           (dict(form='continuous', draw='uniform', distance='l1'), 'l1 has no curvature'), (dict(draw='ect'), "pass solver='euler'"), (dict(form='meanflow', weight='uniform'), "its levels are log-normal, pass 'lognormal'"),
                                           (dict(form='meanflow', weight='uniform', draw='lognormal'), 'pass net with two_levels true'), (dict(cut=.3), "it is for draw='ect'")], ids=str)
def test_what_does_not_go_together_is_refused(changes, said):
    from consistency_nb.presets import preset
    with pytest.raises(ValueError, match=said): override(preset('avatars32_cd'), **changes)

@pytest.mark.parametrize('name', ['avatars32_ecd', 'avatars32_scd', 'avatars32_ccd'])
def test_a_guided_teacher(name):
    "Another strength, another student; a strength without classes, or for a method without a teacher, is refused."
    nets = []
    for w in 1., 3.:
        p, parts = small(name, guidance=w)
        nets.append(torch.cat([v.flatten() for v in train(Run(p, parts, CPU)).raw.parameters()]))
    assert torch.isfinite(nets[1]).all() and not torch.equal(*nets)
    with pytest.raises(ValueError, match='whose net has num_classes, pass 1'): small(name, classes=None, guidance=3.)
    with pytest.raises(ValueError, match='whose net has num_classes, pass 1'): small('avatars32_ect', guidance=3.)

def test_a_guided_denoiser_draws():
    from consistency_nb.checkpoints import load
    from consistency_nb.sample import generate, sampler
    D = load('avatars32-edm')
    plain, strong = (generate(sampler(D, 4, guidance=w), range(2), (3, 32, 32), 80.) for w in (1., 2.))
    assert strong.isfinite().all() and not torch.equal(plain, strong)
    with pytest.raises(ValueError, match='it is for denoisers that know classes, leave it out'): sampler(load('avatars32-cd'), guidance=2.)

def test_replicas_say_that_they_carry_no_derivatives():
    from consistency_nb.place import Alone
    class Two(Alone): tangents = False
    p, parts = small('avatars32_sct')
    with pytest.raises(ValueError, match='replicas in several processes carry no derivatives, pass shard=True'): Run(p, parts, CPU, Two('cpu'))

def test_a_checkpoint_from_before_a_field_was_there(tmp_path):
    "Fields that a preset has got since have their defaults."
    from consistency_nb.files import CHECKPOINT, read_state, write_state
    p, parts = small('avatars32_ect')
    stop = lambda run, record: setattr(run, 'stopping', run.k >= 3)
    fit_in(tmp_path, p, copy.deepcopy(parts), CPU, on_log=stop, log_every=0., bar=False)
    facts, tensors = read_state(tmp_path/CHECKPOINT)
    for later in 'cut', 'beta2', 'same': del facts['preset'][later]
    write_state(tmp_path/CHECKPOINT, facts, tensors)
    assert fit_in(tmp_path, p, copy.deepcopy(parts), CPU, bar=False).k == 6
    facts['preset']['lr'] = 1.
    write_state(tmp_path/CHECKPOINT, facts, tensors)
    with pytest.raises(ValueError, match='another lr'): fit_in(tmp_path, p, copy.deepcopy(parts), CPU, bar=False)

@pytest.mark.parametrize('net', [dict(cls='UNet', channels=[8, 8], emb=8), dict(cls='SongUNet', image_size=8, model_channels=8, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[4]),
                                 dict(cls='ADMUNet', image_size=8, model_channels=8, channel_mult=[1, 1], num_res_blocks=1, num_classes=3, attention_resolutions=[4])], ids=lambda n: n['cls'])
def test_networks_of_two_levels(net, tmp_path):
    "Begin as what they were with one, hear the second, take a derivative by it, and survive a file."
    from consistency_nb.checkpoints import load, make_net, save
    torch.manual_seed(0)
    two, y = make_net(net | dict(two_levels=True)), torch.arange(2) if net.get('num_classes') else None
    x, t, r = torch.randn(2, 3, 8, 8), torch.tensor([1., 2.]), torch.tensor([.5, 2.])
    with torch.no_grad():
        for v in two.conv_out.parameters(): v.normal_()
        for v in two.parameters():
            if v.ndim > 1: v.add_(.1 * torch.randn_like(v))
    f = Consistency(two, eps=0.).eval()
    f.facts['image_size'] = 8
    at = lambda r: f(x, t, y, r)
    assert_close(at(torch.zeros(2)), f(x, t, y))
    assert (at(r) - f(x, t, y)).abs().max() > 1e-4
    exact = Consistency(copy.deepcopy(two).double(), eps=0.).eval()
    wide, h = lambda r: exact(x.double(), t.double(), y, r), 1e-4
    value, change = torch.func.jvp(wide, (r.double(),), (torch.ones(2, dtype=torch.float64),))
    assert_close(change, (wide(r.double() + h) - wide(r.double() - h)) / (2 * h), rtol=1e-4, atol=1e-5)
    save(f, tmp_path/'m.safetensors')
    assert_close(load(tmp_path/'m.safetensors', device='cpu')(x, t, y, r), at(r))
    with pytest.raises(ValueError, match='two_levels=True'): make_net(net)(x, t, y, r=r)

def test_a_second_stage_is_asked_from_its_cut_on(tmp_path):
    from consistency_nb.checkpoints import load
    from consistency_nb.launch import write_model
    p, parts = small('avatars32_tcm')
    run = train(Run(p, parts, CPU))
    assert model_of(run).lowest == p.cut
    write_model(model_of(run), tmp_path/'m.safetensors', p, parts.data)
    f = load(tmp_path/'m.safetensors', device='cpu')
    assert f.sample(2, levels=(80., p.cut)).isfinite().all()
    with pytest.raises(ValueError, match='this model has learned none below 0.3'): f.sample(2, levels=(80., .2))

def test_two_levels_and_back():
    "A run on one level begins with a model of two, without its second; a run on two begins with one that has one."
    from consistency_nb.assemble import first_weights
    p, parts = small('avatars32_mf')
    two = Consistency(parts.net, p.sigma_data, 0.)
    one = override(p, form='pairs', draw='uniform', net={n: v for n, v in p.net.items() if n != 'two_levels'})
    net = first_weights(one, two)
    assert net.end is None and net.spec == {n: v for n, v in parts.net.spec.items() if n != 'two_levels'} and torch.equal(net.conv_in.weight, parts.net.conv_in.weight)
    again = first_weights(p, Consistency(net, p.sigma_data, 0.))
    assert again.end is not None and (again.end.dense.weight == 0).all() and torch.equal(again.conv_in.weight, net.conv_in.weight)
    assert 'two_levels' not in UNet((8, 8), emb=8).spec, 'a description is what it was before there were two levels'

@pytest.mark.parametrize('B', [4, 5, 7, 64])
def test_the_border_has_its_share(B):
    "Whatever the batch: the mean over the rest, and a tenth of the mean at the cut."
    from consistency_nb.truncated import BORDER, at_border, border_weight
    t, losses = at_border(torch.rand(B) + .5, .3), torch.rand(B)
    n = int(BORDER * B)
    assert (t[:n] == torch.tensor(.3)).all() and n >= 1
    assert_close((border_weight(t, .3, share=n / B) * losses).mean(), losses[n:].mean() + .1 * losses[:n].mean())
