"What a long run meets: kills at any moment, damaged files, a full disk, SIGTERM, a loss that is not finite."
import json, os, random, resource, shutil, signal, subprocess, sys, time
from functools import partial
from pathlib import Path

import pytest
import torch

from consistency_nb.files import before, latest_state, read_state, write_state
from consistency_nb.place import Options, Parts
from consistency_nb.train import Run, resume, tensors_of
from processes import DATA, ROOT, Net, environment, l2, last_step, line_with, survived, tiny, train

SCRIPT = ROOT/'tests/processes.py'
WIDE = 300   # width of a network whose checkpoint takes about as long to write as a step takes

def start(out, limit=None, **options):
    "A run in a process of its own; `limit`: bytes that a file may have."
    command = [sys.executable, str(SCRIPT), '--out', str(out)] + [s for k, v in options.items() for s in (f'--{k}', v if isinstance(v, str) else json.dumps(v))]
    bound = None if limit is None else partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=bound)

def end(p):
    said = p.communicate(timeout=300)[0]
    return p.returncode, said

def fit_here(out, p=None, **args): return train(p or tiny(), out, log_every=0., save_every=0., **args)

def equal(run, out):
    "Does the newest checkpoint in `out` hold what `run` holds, to the last bit?"
    a, b = tensors_of(run), read_state(out/'checkpoint.safetensors')[1]
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return fit_here(tmp_path_factory.mktemp('whole'))

@pytest.fixture
def stopped(tmp_path):
    "A run of twelve steps that lost its process after the sixth; checkpoints of steps 5 and 6 are there."
    def on_log(run, record):
        if run.k == 7: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit_here(tmp_path, on_log=on_log)
    assert [read_state(f)[0]['k'] for f in files(tmp_path)] == [6, 5]
    return tmp_path

def files(out): return out/'checkpoint.safetensors', before(out/'checkpoint.safetensors')

@pytest.mark.parametrize('share', [0., 0.001, 0.3, 0.999])
def test_truncated(share, stopped, whole, capfd):
    latest, older = files(stopped)
    content, k = latest.read_bytes(), last_step(stopped); latest.write_bytes(content[:int(share * len(content))])
    fit_here(stopped)
    said = capfd.readouterr().out
    assert 'checkpoint.safetensors is not a whole checkpoint' in said and 'checkpoint_before.safetensors, is used' in said and 'at step 5 of 12' in said
    assert equal(whole, stopped) and (stopped/'checkpoint_damaged.safetensors').exists()
    survived('the newest checkpoint is cut short', f'{share:.1%} of it is left', line_with(said, 'is not a whole checkpoint'), k, step_of(said))

@pytest.mark.parametrize('seed', range(8))
def test_bit_flipped(seed, stopped, whole, capfd):
    (latest, _), k = files(stopped), last_step(stopped)
    content, at = bytearray(latest.read_bytes()), random.Random(seed)
    where = at.randrange(len(content) if seed else 8)   # the first one lies in the length of the header
    content[where] ^= 1 << at.randrange(8); latest.write_bytes(content)
    fit_here(stopped)
    said = capfd.readouterr().out
    assert 'at step 5 of 12' in said and equal(whole, stopped)
    survived('a bit of the newest checkpoint has flipped', f'byte {where:,} of {len(content):,}', line_with(said, 'is not a whole checkpoint'), k, step_of(said))

def test_both_damaged(stopped):
    k = last_step(stopped)
    for f in files(stopped): f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(ValueError, match='there is no whole one before it: remove checkpoint.safetensors and checkpoint_before.safetensors to begin') as e: fit_here(stopped)
    survived('both checkpoints are damaged', 'one byte is missing in each', str(e.value), k, None)

def test_newest_is_missing(stopped, whole, capfd):
    k = last_step(stopped); files(stopped)[0].unlink()
    fit_here(stopped)
    said = capfd.readouterr().out
    assert 'checkpoint.safetensors is not there' in said and equal(whole, stopped)
    survived('SIGKILL', 'between the two renames of a checkpoint', line_with(said, 'is not there'), k, step_of(said))

def test_left_over_part(stopped, whole, capfd):
    k = last_step(stopped); (stopped/'.checkpoint.safetensors').write_bytes(b'half')
    assert fit_here(stopped) and equal(whole, stopped) and not (stopped/'.checkpoint.safetensors').exists()
    said = capfd.readouterr().out
    survived('SIGKILL', 'a half-written checkpoint is left behind', line_with(said, 'continuing'), k, step_of(said))

def step_of(said): return int(line_with(said, 'continuing').split('at step ')[1].split(' ')[0])

def bytes_of(folder): return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix == '.safetensors'}

def test_full_disk_by_limit(stopped, whole):
    "No file may grow beyond half a checkpoint: the run ends with an error, and both checkpoints are what they were."
    kept = bytes_of(stopped)
    code, said = end(start(stopped, limit=len(kept['checkpoint.safetensors']) // 2))
    assert code == 1 and 'could not write checkpoint.safetensors' in said and 'checkpoint.safetensors, from before, is whole' in said, said
    assert bytes_of(stopped) == kept and not (stopped/'.checkpoint.safetensors').exists()
    k, left = last_step(stopped), read_state(files(stopped)[0])[0]['k']
    assert fit_here(stopped) and equal(whole, stopped)
    survived('no file may grow further', 'half a checkpoint is written', line_with(said, 'OSError: could not write'), k, left)

@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)], capture_output=True, text=True)
    if made.returncode: pytest.skip(f'a small disk cannot be mounted here ({made.stderr.strip()}); the limit of a file stands for it')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)

@pytest.mark.parametrize('room', [0.5, pytest.param(0., marks=pytest.mark.slow)])
def test_full_disk(room, small_disk, stopped, whole):
    "A disk of 1 MB, filled up between two calls to leave room for half a checkpoint or for nothing, and emptied."
    for f in files(stopped): shutil.copy(f, small_disk)
    kept = bytes_of(small_disk)
    free = shutil.disk_usage(small_disk).free - int(room * len(kept['checkpoint.safetensors']))
    (small_disk/'filler').write_bytes(bytes(free))
    code, said = end(start(small_disk))
    assert code == 1 and 'No space left' in said and 'mend that, and make the same call again' in said, said
    assert bytes_of(small_disk) == kept
    left = read_state(files(small_disk)[0])[0]['k']
    log = small_disk/'metrics.jsonl'   # without room for preset.json no step is begun
    k = left if not log.exists() else last_step(small_disk) if log.stat().st_size else left + 1
    (small_disk/'filler').unlink()
    assert fit_here(small_disk) and equal(whole, small_disk)
    survived('the disk is full', f'room for {room:.0%} of a checkpoint', line_with(said, 'OSError: could not write'), k, left)

def test_nan_stops_before_the_step(stopped, whole, capfd):
    "The step is named, the state is that before it, and the failure can be repeated."
    kept, batch, calls = bytes_of(stopped), type(DATA).batch, []
    def poison(self, index, flip=None):
        x = batch(self, index, flip)
        if len(x) == 8: calls.append(1)   # batches of the run, not of the look at sigma_data
        if len(calls) == 3: x[3] = float('nan')
        return x
    with pytest.MonkeyPatch.context() as m:
        m.setattr(type(DATA), 'batch', poison)
        with pytest.raises(FloatingPointError) as e: train(tiny(), stopped, log_every=1e9, save_every=1e9)
    said = str(e.value)
    assert 'the loss of avatars32_ct is nan at step 9: 1 of 8 images, at noise levels' in said and 'norm of the gradient nan' in said and 'failed.safetensors' in said
    assert {n: b for n, b in bytes_of(stopped).items() if n != 'failed.safetensors'} == kept
    facts, tensors = read_state(stopped/'failed.safetensors')
    assert facts['k'] == 8 and all(v.isfinite().all() for v in tensors.values())
    level = float(said.split('at noise levels ')[1].split(';')[0])
    again = resume(Run(tiny(), Parts(Net(), DATA, distance=l2), Options(device='cpu')), *read_state(stopped/'failed.safetensors'))
    assert abs(again.step()[1][3].item() / level - 1) < 1e-3   # the same draw: image 3 stands at that level
    capfd.readouterr()
    assert fit_here(stopped) and equal(whole, stopped)
    survived('a picture is nan', 'in step 9', said, facts['k'], step_of(capfd.readouterr().out))

def test_infinite_loss(tmp_path):
    with pytest.raises(FloatingPointError, match='is (inf|nan) at step') as e: fit_here(tmp_path, tiny('edm', lr=1e30))
    survived('the weights explode', 'learning rate 1e30', str(e.value), last_step(tmp_path), read_state(files(tmp_path)[0])[0]['k'])

@pytest.mark.slow
def test_sigterm_saves_and_exits_0(tmp_path):
    p = start(tmp_path, preset=dict(iterations=100_000), save_every=1e9, pause=0.05)
    line = p.stdout.readline()
    began = time.monotonic(); p.send_signal(signal.SIGTERM)
    code, said = end(p)
    assert code == 0 and 'stopped by SIGTERM' in said and time.monotonic() - began < 30, line + said
    k = read_state(files(tmp_path)[0])[0]['k']
    assert k > 0
    survived('SIGTERM', 'in the middle of a step', line_with(said, 'stopped by SIGTERM'), last_step(tmp_path), k)

@pytest.mark.slow
def test_kill_in_the_middle_of_writing(tmp_path):
    "A checkpoint of 16 MB after every step: kills at any moment, and two that are aimed at the writing of one."
    part, (latest, older), hits, reached = tmp_path/'.checkpoint.safetensors', files(tmp_path), 0, 0
    seen = []
    def written():   # the name is gone for an instant while the files change places
        try: return latest.stat().st_mtime_ns
        except FileNotFoundError: return 0
    for delay in (0., 0.03, None, 0.1, None, 0.3):
        old = written()
        p, until = start(tmp_path, width=WIDE, preset=dict(iterations=5000)), time.monotonic() + 200
        while written() <= old and p.poll() is None and time.monotonic() < until: time.sleep(0.005)
        if delay is None:
            while not part.exists() and p.poll() is None and time.monotonic() < until: time.sleep(0.0005)
        else: time.sleep(delay)
        p.kill(); p.wait()
        hits += part.exists()
        said = []
        k = latest_state(latest, said.append)[0]['k']
        assert k > reached, 'steps that a checkpoint held were lost'
        reached = k
        seen.append((part.exists(), ' '.join(said) or 'nothing: the newest checkpoint is whole', last_step(tmp_path), k))
    assert hits
    for writing, *what in seen: survived('SIGKILL', 'in the middle of writing a checkpoint' if writing else 'at any moment', *what)
