"Faults that people met with runs of comparable tools: on pictures of their own, twice in one folder, gone on with."
import json, os, shlex, subprocess, sys, time
from pathlib import Path

import numpy as np
import papermill, pytest
import torch
from PIL import Image

from consistency_nb.checkpoints import load, save
from consistency_nb.data import Images
from consistency_nb.files import HELD, go_on, run_folder
from consistency_nb.assemble import adapted, parts_of
from consistency_nb.launch import fit_in, launch, main as launch_main
from consistency_nb.nets import UNet
from consistency_nb.place import Options, Parts
from consistency_nb.presets import override, preset

ROOT = Path(__file__).resolve().parent.parent
FEW = dict(iterations=4, minutes=0, batch=4, samples=0, device='cpu')
ENV = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
RNG = np.random.default_rng(0)
BRIEF = ['--preset', 'avatars32_ct', '--data', 'avatars32-100', '--batch', '4', '--device', 'cpu']   # of the command line

def run(name, out, cwd=None, **parameters):
    "A notebook with parameters, in a working directory; everything lands in `out`."
    out.mkdir(exist_ok=True)
    papermill.execute_notebook(ROOT/f'nbs/{name}.ipynb', out/f'{name}.ipynb', dict(out_dir=str(out), **parameters),
                               cwd=cwd or out, progress_bar=False, kernel_name='python3')

# ---- pictures of one's own

@pytest.fixture
def grey_pictures(tmp_path):
    "Fewer than 32, of one channel, in a folder whose name has a space."
    where = tmp_path/'my pictures'
    where.mkdir()
    for i in range(12): Image.fromarray(RNG.integers(0, 256, (20, 24), dtype=np.uint8)).save(where/f'{i}.png')
    return where

def test_the_commands_of_the_refusal_work(grey_pictures, tmp_path):
    "Word for word, as the error prints them; the page on pictures of one's own goes on to draw, with the folder as reference."
    p = override(preset('avatars32_cd'), data=str(grey_pictures), image_size=16)
    with pytest.raises(ValueError, match='knows avatars32') as e: parts_of(p, Options(device='cpu'))
    (tmp_path/'nbs').symlink_to(ROOT/'nbs')
    commands = [line for line in str(e.value).splitlines() if line.strip().startswith('papermill')]
    assert len(commands) == 2
    few = [w for n, v in FEW.items() for w in ('-p', n, str(v))]
    for line in commands:
        words = [sys.executable, '-m', *shlex.split(line), *few, '-k', 'python3', '--no-progress-bar']
        subprocess.run(words, cwd=tmp_path, env=ENV, check=True, capture_output=True)
    teacher, student = load(tmp_path/'runs/edm'), load(tmp_path/'runs/cd')
    assert teacher.shape == student.shape == (3, 16, 16); assert student.facts['data'] == teacher.facts['data']

def test_one_channel_from_the_first_step_to_the_last(tmp_path):
    np.save(tmp_path/'grey.npy', RNG.integers(0, 256, (12, 16, 16, 1), dtype=np.uint8))
    few = FEW | dict(data=str(tmp_path/'grey.npy'), image_size=16)
    run('train_ct', tmp_path/'ct', cwd=tmp_path, init='random', **few | dict(samples=4))
    f = load(tmp_path/'ct')
    assert f.shape == (1, 16, 16) and json.loads((tmp_path/'ct/metrics.json').read_text())['measured']
    run('edit_images', tmp_path/'edit', cwd=tmp_path, model=str(tmp_path/'ct'), teacher='', task='inpaint', n=1, seeds=1,
        levels='80,1', device='cpu')
    assert Image.open(tmp_path/'edit/after.png').size == (16, 16)

def test_other_classes_begin_anew(tmp_path, capfd):
    "A diffusion model that begins from another keeps all but its classes; a student must have its teacher's."
    for k in 'ab':
        (tmp_path/k).mkdir()
        for i in range(3): Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path/k/f'{i}.png')
    p = adapted(preset('avatars32_edm'), dict(data=str(tmp_path), image_size=16, init='avatars32-edm'))
    net, old = parts_of(p, Options(device='cpu')).net, load('avatars32-edm').net
    assert net.spec == old.spec | dict(num_classes=2) and net.label.weight.shape == (2, 96)
    assert 'it knows 10 classes, the pictures have 2: those begin anew' in capfd.readouterr().out
    assert all(torch.equal(v, net.state_dict()[n]) for n, v in old.state_dict().items() if n != 'label.weight')
    assert all(v.requires_grad for v in net.parameters())
    p = override(preset('avatars32_cd'), net=preset('avatars32_cd').net | dict(num_classes=2))
    with pytest.raises(ValueError, match='num_classes of net is 2, and 10 in the model whose weights begin the run'):
        parts_of(p, Options(device='cpu'))

# ---- a turned photo

def test_a_mask_is_compared_with_the_picture_as_shown(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path/'phone.jpg', exif=turned)
    mask = np.zeros((40, 30), np.uint8)
    mask[20:] = 255
    Image.fromarray(mask).save(tmp_path/'as_shown.png')
    Image.fromarray(mask.T).save(tmp_path/'as_stored.png')
    few = dict(task='inpaint', image='phone.jpg', seeds=1, levels='80,1', teacher='', device='cpu')
    run('edit_images', tmp_path, mask='as_shown.png', **few)
    before, after = (np.asarray(Image.open(tmp_path/f'{n}.png').convert('RGB')) for n in ('before', 'after'))
    assert (before == after)[:16].all() and not (before == after)[16:].all()   # the lower half is new
    with pytest.raises(papermill.PapermillExecutionError, match=r'as_stored.png has 40 x 30.*\(30, 40\)'):
        run('edit_images', tmp_path, mask='as_stored.png', **few)

# ---- two runs in one folder

def start(out, *words):
    command = [sys.executable, '-m', 'consistency_nb.launch', '--preset', 'avatars32_ct', '--data', 'avatars32-100',
               '--batch', '4', '--device', 'cpu', '--out_dir', str(out), *words]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def until(there, seconds=120):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.1)

def test_a_second_run_is_refused_and_harms_nothing(tmp_path):
    first = start(tmp_path, '--iterations', '100000')
    try:
        until((tmp_path/'metrics.jsonl').exists)
        told, wanted = json.loads((tmp_path/'running.json').read_text()), (tmp_path/'preset.json').read_bytes()
        assert told['process'] == first.pid
        second = start(tmp_path, '--iterations', '5')
        said, _ = second.communicate(timeout=120)
        assert second.returncode and f"in use by process {first.pid} on {told['host']}, since {told['since']}" in said
        with pytest.raises(RuntimeError, match=f'in use by process {first.pid}'): run_folder(tmp_path)
        assert (tmp_path/'preset.json').read_bytes() == wanted and first.poll() is None
    finally: first.kill()
    first.communicate()
    assert run_folder(tmp_path) == tmp_path   # dead: free again
    HELD.pop(tmp_path.resolve()).release()

def test_several_processes_share_the_folder_of_their_run(tmp_path):
    p, options = override(preset('avatars32_ct'), data='avatars32-100', batch=4, iterations=4), Options(device='cpu', num_processes=2)
    run_folder(tmp_path)   # as a notebook does
    assert launch(tmp_path, p, parts_of(p, options), options).k == 4
    HELD.pop(tmp_path.resolve()).release()

def test_a_run_is_held_while_it_measures(tmp_path):
    "The lock outlives the training: in front of the report a second process finds the folder taken."
    script = f"""
import sys, time
from consistency_nb import runs
from consistency_nb.assemble import parts_of
given = dict(preset='avatars32_ct', out_dir={str(tmp_path)!r}, minutes=0., seed=0, samples=0, device='cpu', dry_run=False)
b = runs.begin(given, dict(given, data='avatars32-100', iterations=2, batch=4), 'ct', 8.)
runs.train(b, parts_of(b.p, b.options))
print('trained', flush=True)
time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, '-c', script], env=ENV, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line == 'trained\n' for line in first.stdout)
        with pytest.raises(RuntimeError, match=f'in use by process {first.pid}'): run_folder(tmp_path)
    finally: first.kill()
    first.communicate()

# ---- a run that goes on

TINY = override(preset('avatars32_ct'), image_size=8, batch=4, iterations=3, init='random', distance='l2', sigma_data=0.58,
                net=dict(cls='UNet'))

def go(out, pictures, p=TINY):
    torch.manual_seed(0)
    net = UNet((8, 16), blocks=1, patch=1, attention=())
    return fit_in(out, p, Parts(net, pictures, distance=lambda a, b: (a - b).square().flatten(1).mean(1)),
                  Options(device='cpu'))

def pictures(n, seed=0):
    made = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=made), f'set{seed}')

@pytest.mark.parametrize('now, said', [(pictures(16), None), (pictures(17), '16 of set0 then, 17 of set0 now'),
                                       (pictures(16, 1), '16 of set0 then, 16 of set1 now')])
def test_pictures_that_changed_are_said(now, said, tmp_path, capfd):
    go(tmp_path, pictures(16))
    assert 'pictures' not in capfd.readouterr().out
    assert go(tmp_path, now, override(TINY, iterations=5)).k == 5
    out = capfd.readouterr().out
    assert 'continuing avatars32_ct at step 3 of 5, 2 more than it was meant to have' in out
    assert ('its pictures are not those it began with' in out) == bool(said) and (not said or said in out)
    go(tmp_path, now, override(TINY, iterations=5))
    assert 'it has reached its end: with more iterations it goes on' in capfd.readouterr().out
    assert go(tmp_path, now, override(TINY, iterations=4)).k == 5
    assert 'it keeps its 5 steps, though 4 were asked for: a run can only be made longer' in capfd.readouterr().out

# ---- what a folder says of its run

def test_a_refused_call_leaves_the_preset_alone(tmp_path):
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '3'])
    wanted = (tmp_path/'preset.json').read_bytes()
    HELD.pop(tmp_path.resolve()).release()
    with pytest.raises(ValueError, match=r'another lr \(0.0\d*, not 0.5\)'): launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '3', '--lr', '0.5'])
    assert (tmp_path/'preset.json').read_bytes() == wanted
    HELD.pop(tmp_path.resolve()).release()
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '2'])   # shorter than it is: it keeps its three
    assert (tmp_path/'preset.json').read_bytes() == wanted
    HELD.pop(tmp_path.resolve()).release()

def test_a_model_of_the_command_line_knows_its_pictures(tmp_path):
    where = tmp_path/'mine'
    for k in 'ab':
        (where/k).mkdir(parents=True)
        for i in range(3): Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(where/k/f'{i}.png')
    words = ['--preset', 'avatars32_ct', '--data', str(where), '--image_size', '16', '--init', 'random', '--batch', '4', '--device', 'cpu', '--out_dir', str(tmp_path/'run')]
    launch_main(words + ['--iterations', '2'])
    f = load(tmp_path/'run')
    assert f.classes == ('a', 'b') and f.facts['data'] == 'mine' and f.shape == (3, 16, 16)
    f.facts['levels'] = {'2': [80., .5]}
    save(f, tmp_path/'run/model.safetensors')
    HELD.pop((tmp_path/'run').resolve()).release()
    launch_main(words + ['--iterations', '3'])   # goes on, and keeps what the notebook had added
    assert load(tmp_path/'run').levels == {1: (80.,), 2: (80., .5)}
    HELD.pop((tmp_path/'run').resolve()).release()
    p = override(preset('avatars32_ct'), init=str(tmp_path/'run'))
    with pytest.raises(ValueError, match='knows mine at 16 pixels, not avatars32'): parts_of(p, Options(device='cpu'))

def test_a_grown_folder_says_with_which_number_it_goes_on(tmp_path):
    where = tmp_path/'mine'
    where.mkdir()
    for i in range(4): Image.fromarray(RNG.integers(100, 156, (16, 16, 3), dtype=np.uint8)).save(where/f'{i}.png')
    words = ['--preset', 'avatars32_ct', '--data', str(where), '--image_size', '16', '--init', 'random', '--batch', '4', '--device', 'cpu', '--out_dir', str(tmp_path/'run'), '--iterations']
    launch_main(words + ['2'])
    had = json.loads((tmp_path/'run/preset.json').read_text())['sigma_data']
    for i in range(4, 8): Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(where/f'{i}.png')
    HELD.pop((tmp_path/'run').resolve()).release()
    with pytest.raises(ValueError, match=rf'another sigma_data \({had}, not .*more pictures, sigma_data={had} goes on'): launch_main(words + ['3'])
    HELD.pop((tmp_path/'run').resolve()).release()
    launch_main(words + ['3', '--sigma_data', str(had)])
    assert json.loads((tmp_path/'run/preset.json').read_text())['iterations'] == 3
    HELD.pop((tmp_path/'run').resolve()).release()

def test_a_new_run_has_no_levels_of_the_old_one(tmp_path):
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '2'])
    f = load(tmp_path)
    f.facts['levels'] = {'2': [80., .5]}
    save(f, tmp_path/'model.safetensors')
    for c in tmp_path.glob('checkpoint*'): c.unlink()
    HELD.pop(tmp_path.resolve()).release()
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '2', '--T', '40'])
    assert load(tmp_path).levels == {1: (40.,)}
    HELD.pop(tmp_path.resolve()).release()

def test_the_preset_says_the_length_that_the_run_has(tmp_path):
    said = lambda: json.loads((tmp_path/'preset.json').read_text())['iterations']
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '2'])
    assert said() == 2
    HELD.pop(tmp_path.resolve()).release()
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--minutes', '1'])   # it has reached its end
    assert said() == 2
    HELD.pop(tmp_path.resolve()).release()

def test_somebodys_model_in_the_folder_loses_nothing(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(a=torch.zeros(2)), tmp_path/'model.safetensors')
    launch_main(BRIEF + ['--out_dir', str(tmp_path), '--iterations', '2'])
    assert load(tmp_path).T == 80.
    HELD.pop(tmp_path.resolve()).release()

def test_a_stopped_run_can_be_opened(tmp_path):
    run = start(tmp_path, '--iterations', '100000')
    until((tmp_path/'metrics.jsonl').exists)
    run.send_signal(2)
    said, _ = run.communicate(timeout=120)
    assert 'stopped by SIGINT' in said and 'the model in' in said and load(tmp_path).T == 80.

def test_a_student_is_no_teacher():
    p = override(preset('avatars32_cd'), data='avatars32-100', teacher='avatars32-cd')
    with pytest.raises(ValueError, match='is a consistency function, a student itself: pass a diffusion model'): parts_of(p, Options(device='cpu'))

def test_more_classes_than_the_teacher_knows(tmp_path):
    for k in range(11):
        (tmp_path/'mine'/f'{k:02d}').mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path/'mine'/f'{k:02d}'/'0.png')
    f = load('avatars32-edm')
    f.facts['data'] = 'mine'
    save(f, tmp_path/'teacher.safetensors')
    p = override(preset('avatars32_cd'), data=str(tmp_path/'mine'), teacher=str(tmp_path/'teacher.safetensors'))
    with pytest.raises(ValueError, match='knows 10 classes, mine has 11. Train a diffusion model of your pictures'): parts_of(p, Options(device='cpu'))
