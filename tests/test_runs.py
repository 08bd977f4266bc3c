"The run notebooks as a user starts them, made short; and a training run that is killed."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import papermill, pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from consistency_nb.checkpoints import load
from consistency_nb.runs import begin

ROOT = Path(__file__).resolve().parent.parent
SHORT = dict(iterations=8, minutes=0, samples=0, device='cpu', data='avatars32-100')

def run(name, out, **parameters):
    return papermill.execute_notebook(ROOT/f'nbs/{name}.ipynb', out/'out.ipynb', dict(out_dir=str(out), **parameters), cwd=out, progress_bar=False, kernel_name='python3')

@pytest.mark.parametrize('name', ['train_edm', 'train_cd', 'train_ct', 'train_pd'])
def test_training_notebook(name, tmp_path):
    run(name, tmp_path, **SHORT | dict(samples=10), batch=8)
    report = json.loads((tmp_path/'metrics.json').read_text())
    assert report['finished'] and report['iterations'] == 8 and report['images'] == 64 and 0 <= report['measured']['real images']['class_rate'] <= 1
    assert all(r['n'] == 10 and r['fd'] > 10 for r in report['measured'].values()) and len(report['measured']) == dict(train_edm=2, train_cd=6, train_ct=4, train_pd=6)[name]
    assert json.loads((tmp_path/'preset.json').read_text())['batch'] == 8
    for made in 'model_1.safetensors' if name == 'train_pd' else 'model.safetensors', 'checkpoint.safetensors', 'metrics.jsonl', 'samples.png', 'progress.png': assert (tmp_path/made).stat().st_size > 100

def test_generate_notebook(tmp_path):
    import numpy as np
    run('generate', tmp_path, n=5, steps=2, batch=3, device='cpu', png=True)
    images = np.load(tmp_path/'images.npz')['arr_0']
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 20
    assert np.array_equal(np.asarray(Image.open(tmp_path/'png/000004.png')), images[4])

def test_levels_that_are_found_are_used(tmp_path):
    run('tune_levels', tmp_path, reference='avatars32-100', steps=2, samples=4, seed=9, N=5, device='cpu')
    report, f = json.loads((tmp_path/'metrics.json').read_text()), load(tmp_path)
    found = report['steps']['2']
    assert report['tried'] >= 3 and tuple(f.facts['levels']['2']) == tuple(found['levels'])
    torch.testing.assert_close(f.sample(2, steps=2), load('avatars32-cd').sample(2, levels=found['levels']))

def test_evaluate_notebook(tmp_path):
    "Two runs of the same: the second finds every number that the first wrote down."
    import numpy as np
    few = dict(samples=6, seeds=2, steps='1,3', evaluations='3', ways='heun', reference='avatars32-300', reference_images=200, npz=True, device='cpu', model='avatars32-cd')
    run('evaluate_model', tmp_path, **few)
    first = json.loads((tmp_path/'metrics.json').read_text())
    rows = first['rows']
    assert rows.keys() == {'avatars32-cd, 1 call', 'avatars32-cd, 3 calls', 'avatars32-edm, heun, 3 calls'}
    for r in rows.values(): assert r['fd']['mean'] > 100 and r['fd']['std'] > 0 and r['seed'] == [0, 1_000_000] and (r['n'], r['n_reference'], r['reference'], r['rounding']) == (6, 200, 'avatars32-300, seeds from 1,000,000', 'nearest')
    assert len(first['levels']['avatars32-cd, 3 calls']) == 3 and len(first['floor']) == 2 and min(first['floor']) > 10
    assert first['copies'].keys() == {'avatars32-cd, 1 call', 'avatars32-edm, heun, 3 calls'} and not (tmp_path/'samples').exists()
    assert np.load(tmp_path/'samples.npz')['arr_0'].shape == (6, 32, 32, 3)
    for made in 'quality.png', 'samples.png', 'nearest-avatars32-cd.png', 'table.txt': assert (tmp_path/made).stat().st_size > 100
    (tmp_path/'quality.png').unlink()
    again = run('evaluate_model', tmp_path, **few)
    assert json.loads((tmp_path/'metrics.json').read_text())['rows'] == rows and (tmp_path/'quality.png').exists(), 'to the last digit of the seconds: nothing was drawn again'

def test_averages_are_compared(tmp_path):
    "A run by the command line, and two averages that it has not stored beside its model."
    from consistency_nb.launch import main
    main(f'--preset avatars32_ect --data avatars32-20 --batch 2 --iterations 8 --snapshots 8 --device cpu --out_dir {tmp_path}/mine'.split())
    run('evaluate_model', tmp_path, model=str(tmp_path/'mine'), widths='0.07,.2', teacher='', steps='1', samples=6, seeds=1, reference='avatars32-300', reference_images=200, device='cpu')
    rows = json.loads((tmp_path/'metrics.json').read_text())['rows']
    assert rows.keys() == {'mine, 1 call', 'mine-0.07, 1 call', 'mine-.2, 1 call'} and len({r['fd']['mean'] for r in rows.values()}) == 3
    average = load(tmp_path/'mine-0.07.safetensors')
    assert average.facts['average']['step'] == 8 and average.facts['average']['left'] < 0.05 and average.facts['data'] == 'avatars32-20'

def test_wrong_evaluation_stops_at_once(tmp_path):
    said = "unknown parameter 'sample'; valid ones are: model, teacher"   # more of the kind: tests/test_advice.py
    with pytest.raises(papermill.PapermillExecutionError, match=said): run('evaluate_model', tmp_path, sample=5)
    assert not (tmp_path/'reports.json').exists()

def test_edit_notebook(tmp_path):
    import numpy as np
    from PIL import Image
    run('edit_images', tmp_path, task='inpaint', mask='half', n=1, seeds=1, levels='80,1', teacher_steps=2, device='cpu')
    before, masked, after = (np.asarray(Image.open(tmp_path/f'{n}.png').convert('RGB')).astype(int) for n in ('before', 'masked', 'after'))
    known = (before == masked).all(-1)
    assert before.shape == after.shape == (32, 32, 3) and 0.3 < known.mean() < 1
    same = (before == after).all(-1)
    assert same[:, :16].all() or same[:, 16:].all() or same[:16].all() or same[16:].all()
    report = json.loads((tmp_path/'metrics.json').read_text())
    assert 'inpaint' in json.dumps(report) and not same.all()

@pytest.mark.parametrize('wrong, said', [(dict(iteration=8), "unknown parameter 'iteration'; valid ones are: preset, out_dir, minutes"), (dict(tracker='tensorbord'), 'valid ones are: aim')])
def test_wrong_parameter_stops_at_once(wrong, said, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as e: run('train_cd', tmp_path, **{**SHORT, **wrong})
    assert said in str(e.value)
    assert not (tmp_path/'checkpoint.safetensors').exists()

DECLARED = dict(preset='avatars32_cd', out_dir='', minutes=-1., samples=300, seed=0, device='cpu', dry_run=False)

@pytest.mark.parametrize('wrong, said', [(dict(lr='fast'), "'lr' must be float"), (dict(preset='avatars_cd'), 'valid ones are: avatars32_'), (dict(preset='avatars32_ct'), 'use nbs/train_ct.ipynb')])
def test_wrong_parameters_are_refused_where_a_run_begins(wrong, said, tmp_path):
    with pytest.raises(ValueError, match=said): begin(DECLARED, DECLARED | dict(out_dir=str(tmp_path/'run')) | wrong, 'cd', 8.)
    assert not (tmp_path/'run').exists()

PRESETS = [('cifar10_cd', '56,395,523'), ('imagenet64_edm', '295,899,267'), ('lsun_cat_ct', '526,304,771'), ('cifar10_pd', '750,000 steps of 512')]

@pytest.mark.parametrize('preset, says', PRESETS)
def test_dry_run_counts_and_stops(preset, says, tmp_path, capsys):
    given = DECLARED | dict(preset=preset, dry_run=True, out_dir=str(tmp_path/'run'))
    with pytest.raises(SystemExit): begin(DECLARED, given, preset.rsplit('_', 1)[1], 8.)
    text = capsys.readouterr().out
    assert says in text and 'GiB per device' in text and 'device-hours' in text
    assert not (tmp_path/'run').exists()

def test_dry_run_of_a_notebook(tmp_path):
    run('train_ct', tmp_path, dry_run=True)
    assert 'device-hours' in (tmp_path/'out.ipynb').read_text() and not (tmp_path/'preset.json').exists()

KILLED = """
import sys, torch
from torch import nn
from consistency_nb.data import Images
from consistency_nb.distances import l2
from consistency_nb.presets import override, preset
from consistency_nb.launch import fit_in
from consistency_nb.place import Options, Parts
class Net(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x, c, y=None): return self.a(x)
torch.set_num_threads(1); torch.manual_seed(0)
p = override(preset('avatars32_ct'), iterations=400, image_size=8, batch=2, mu=0.9, snapshots=50, sigma_data=0.58, net=dict(cls='UNet'))
data = Images(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
fit_in(sys.argv[1], p, Parts(Net(), data, distance=l2), Options(device='cpu'), log_every=0.2, save_every=0.)
"""

def start(folder):
    return subprocess.Popen([sys.executable, '-c', KILLED, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})

def test_kill_at_any_moment(tmp_path):
    "A checkpoint is written after every step here, so that a kill hits the middle of writing one as often as not."
    whole = start(tmp_path/'whole'); assert whole.wait(240) == 0, whole.stdout.read()
    for delay in (0.02, 0.3, 0.9):
        p, file = start(tmp_path/'killed'), tmp_path/'killed/checkpoint.safetensors'
        before = file.stat().st_mtime_ns if file.exists() else 0
        while not (file.exists() and file.stat().st_mtime_ns > before) and p.poll() is None: time.sleep(0.01)
        time.sleep(delay); p.send_signal(signal.SIGKILL); p.wait()
    last = start(tmp_path/'killed'); said = last.communicate(timeout=240)[0]
    assert last.returncode == 0 and 'continuing avatars32_ct at step' in said, said
    a, b = (load_file(tmp_path/f'{n}/checkpoint.safetensors') for n in ('whole', 'killed'))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    kept = [{f.name: load_file(f) for f in (tmp_path/f'{n}/averages').glob('*.safetensors')} for n in ('whole', 'killed')]
    assert len(kept[0]) == 100 and kept[0].keys() == kept[1].keys() and all(torch.equal(v, kept[1][f][n]) for f in kept[0] for n, v in kept[0][f].items())

@pytest.mark.slow
def test_compare_notebook(tmp_path):
    "Rows are trained and measured once; a row whose first stage is another's, one that jumps, one that only draws its last steps well."
    few = dict(rows='ect,tcm,mf,pd', budget=6, samples=8, moments=2, data='avatars32-100', known='', device='cpu')
    run('compare_methods', tmp_path, **few)
    rows = {r['name']: r for r in json.loads((tmp_path/'metrics.json').read_text())['rows']}
    assert rows.keys() == {'ect', 'tcm', 'mf', 'pd'} and all(len(r['curve']) in (1, 2) and r['measured'].keys() == {'1', '2', '4'} for r in rows.values())
    assert rows['tcm']['preset']['init'].endswith('tcm-first-0') and rows['tcm']['steps'] < rows['ect']['steps']
    assert all(r['cost']['memory'] > 200 and r['cost']['step'] > .1 and m['fd'] > 100 for r in rows.values() for m in r['measured'].values())
    for made in 'race.png', 'samples.png': assert (tmp_path/made).stat().st_size > 1000
    (tmp_path/'ect-0/checkpoint.safetensors').unlink()
    run('compare_methods', tmp_path, **few | dict(rows='ect'))
    assert not (tmp_path/'ect-0/checkpoint.safetensors').exists(), 'a row that is there is not trained again'
    with pytest.raises(papermill.PapermillExecutionError, match="choose of cd, ct, cd2023"): run('compare_methods', tmp_path, rows='ecd,scm')

@pytest.mark.slow
@pytest.mark.parametrize('preset, ways', [('avatars32_tcm', {'model, 1 step', 'model, 2 steps', 'model, 4 steps'}), ('avatars32_mf', {'model, 1 step', 'model, 2 steps', 'model, 2 jumps', 'model, 4 steps', 'model, 4 jumps'})])
def test_runs_that_draw_their_own_way(preset, ways, tmp_path):
    "A second stage is not asked below its cut; jumps are measured beside steps."
    run('train_ct', tmp_path, **SHORT | dict(samples=10), batch=8, preset=preset)
    assert json.loads((tmp_path/'metrics.json').read_text())['measured'].keys() - {'real images'} == ways
    assert load(tmp_path).sample(2, steps=4).isfinite().all()
