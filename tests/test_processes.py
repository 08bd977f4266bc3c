"One, two and four processes make the same run; accumulation makes the same run; a lost process ends it with its error."
import json, os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from consistency_nb.cache import read_tensors
from consistency_nb.checkpoints import load
from consistency_nb.files import read_state
from consistency_nb.place import Options
from consistency_nb.processes import start
from processes import ROOT, environment, last_step, line_with, survived

SCRIPT = ROOT/'tests/processes.py'

def run(out, n=1, **options):
    "Losses and final tensors of a run in n processes."
    command = [sys.executable, str(SCRIPT), '--out', str(out)] + [s for k, v in options.items() for s in (f'--{k}', v if isinstance(v, str) else json.dumps(v))]
    if n == 1: subprocess.run(command, check=True)   # nothing in the environment says that there could be others
    else: start(command, Options(num_processes=n))
    return json.loads((out/'losses.json').read_text()), read_state(out/'checkpoint.safetensors')[1]

@pytest.fixture(autouse=True)
def here(monkeypatch):
    for n, v in environment().items(): monkeypatch.setenv(n, v)

def same(a, b):
    "float32 sums in another order, carried through twelve steps of the optimiser"
    assert len(a[0]) == 12
    assert_close(a[0], b[0], rtol=2e-4, atol=1e-6)
    assert_close(a[1], b[1], rtol=2e-3, atol=2e-5)

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return run(tmp_path_factory.mktemp('alone'))

def test_two_processes(alone, tmp_path, monkeypatch):
    "Whatever Accelerate's variables say: the preset holds."
    for n, v in dict(MIXED_PRECISION='bf16', GRADIENT_ACCUMULATION_STEPS='2', USE_FSDP='true').items(): monkeypatch.setenv(f'ACCELERATE_{n}', v)
    same(run(tmp_path, 2), alone)

def test_four_processes(alone, tmp_path): same(run(tmp_path, 4), alone)

@pytest.mark.slow
def test_two_processes_of_two_portions(alone, tmp_path): same(run(tmp_path, 2, accumulate=2), alone)

@pytest.mark.slow
@pytest.mark.parametrize('method', ['edm', 'pd'])
def test_other_methods(method, tmp_path): same(run(tmp_path/'2', 2, preset=dict(method=method)), run(tmp_path/'1', 1, preset=dict(method=method)))

@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('c++', 'g++', 'clang++'))), reason='needs a C++ compiler')
def test_a_compiled_run_is_the_same(alone, tmp_path): same(run(tmp_path, compile=1), alone)

@pytest.mark.slow
def test_dropout_masks_belong_to_portions(tmp_path):
    p = dict(dropout=0.3)
    same(run(tmp_path/'2', 2, preset=p), run(tmp_path/'1', 1, preset=p, accumulate=2))

@pytest.mark.slow
def test_another_number_of_processes_goes_on(alone, tmp_path):
    with pytest.raises(RuntimeError): run(tmp_path, 2, die='1:5:raise')
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']
    assert 0 < k <= 5
    losses, tensors = run(tmp_path, 1)
    assert_close(losses, alone[0][k:], rtol=2e-4, atol=1e-6); assert_close(tensors, alone[1], rtol=2e-3, atol=2e-5)

def test_shards(alone, tmp_path): same(run(tmp_path, 2, shard=1), alone)

@pytest.mark.slow
@pytest.mark.parametrize('shard', [0, 1])
def test_averages_of_many_processes(shard, tmp_path):
    "Stored by one, whole, and those of a single process."
    preset, kept = dict(snapshots=3), []
    for n in 1, 2:
        run(tmp_path/f'{n}', n, preset=preset, **dict(shard=shard) if n > 1 else {})
        kept.append({f.name: read_tensors(f)[1] for f in (tmp_path/f'{n}/averages').iterdir()})
    assert kept[0].keys() == {f'{k:08d}-{w}.safetensors' for k in (4, 8, 12) for w in (.05, .1)}
    assert_close(*kept, rtol=2e-3, atol=2e-5)

NETS = dict(UNet=dict(channels=[16, 32], blocks=1, patch=2), SongUNet=dict(image_size=8, model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4]),
            ADMUNet=dict(image_size=8, model_channels=32, channel_mult=[1, 2], num_res_blocks=1, attention_resolutions=[4], num_head_channels=16))

@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_networks_in_shards(name, tmp_path):
    "Blocks gathered and let go one by one, in two portions, with the gradient clipped and blocks computed again."
    more = dict(net=dict(cls=name, **NETS[name]), accumulate=2, preset=dict(clip=1., iterations=6, lr=1e-4, checkpointing=True, dropout=0.2))
    a, b = run(tmp_path/'2', 2, shard=1, **more), run(tmp_path/'1', 1, **{**more, 'accumulate': 4})
    assert_close(a[0], b[0], rtol=1e-3, atol=1e-5); assert_close(a[1], b[1], rtol=2e-3, atol=1e-4)

@pytest.mark.slow
@pytest.mark.parametrize('preset', [dict(method='pd'), dict(precision='fp16')], ids=str)
def test_other_runs_in_shards(preset, tmp_path):
    "In float16 sums differ in the third digit; the scale of the gradients and the number of skipped steps are the same."
    a, b = run(tmp_path/'2', 2, shard=1, preset=preset), run(tmp_path/'1', 1, preset=preset)
    if 'method' in preset: return same(a, b)
    facts = [read_state(tmp_path/n/'checkpoint.safetensors')[0] for n in '12']
    assert facts[0]['scaler'] == facts[1]['scaler'] and facts[0]['scaler']['scale'] > 0
    assert_close(a[0], b[0], rtol=2e-2, atol=1e-3)

@pytest.mark.slow
@pytest.mark.parametrize('first, then', [((2, 1), (1, 0)), ((1, 0), (2, 1)), ((2, 1), (2, 0))], ids=str)
def test_shards_come_and_go(first, then, alone, tmp_path):
    "(processes, shards): a run that is lost in step 6 goes on in another way."
    with pytest.raises((RuntimeError, subprocess.CalledProcessError)): run(tmp_path, first[0], shard=first[1], die='0:5:raise')
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']
    assert 0 < k <= 5
    losses, tensors = run(tmp_path, then[0], shard=then[1])
    assert_close(losses, alone[0][k:], rtol=2e-4, atol=1e-6); assert_close(tensors, alone[1], rtol=2e-3, atol=2e-5)

@pytest.mark.slow
def test_nan_in_shards(tmp_path):
    with pytest.raises(RuntimeError, match='at step 6: 4 of 8 images, at noise levels'): run(tmp_path, 2, shard=1, die='1:5:nan')
    facts, tensors = read_state(tmp_path/'failed.safetensors')
    assert facts['k'] == 5 and all(v.isfinite().all() for v in tensors.values())

@pytest.mark.parametrize('how, said', [('kill', 'process 1 was killed by SIGKILL'), pytest.param('raise', 'the disk of this machine is gone', marks=pytest.mark.slow),
                                       pytest.param('nan', 'at step 6: 4 of 8 images, at noise levels', marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_run(how, said, tmp_path):
    began = time.monotonic()
    with pytest.raises(RuntimeError) as e: run(tmp_path, 2, die=f'1:5:{how}')
    assert said in (str(e.value) if how == 'nan' else str(e.value).split('process 0')[0]), 'the process that was lost is named first'
    assert time.monotonic() - began < 120, 'a hang'
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']
    assert k <= 5
    fault = dict(kill='one process of two is killed', nan='a picture of one process of two is nan', **{'raise': 'one process of two fails'})[how]
    survived(fault, 'in step 6', line_with(str(e.value), 'RuntimeError: ' + said if how == 'raise' else said), last_step(tmp_path), k)

@pytest.mark.slow
def test_sigterm_ends_all_processes(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r}); from consistency_nb.place import Options; from consistency_nb.processes import start; start(sys.argv[1:], Options(num_processes=2))"
    p = subprocess.Popen([sys.executable, '-c', code, sys.executable, str(SCRIPT), '--out', str(tmp_path), '--pause', '0.1', '--preset', '{"iterations": 100000}'], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path/'checkpoint.safetensors', p)
    p.send_signal(signal.SIGTERM)
    said = p.communicate(timeout=60)[0]
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']
    assert p.returncode == 0 and k > 0
    survived('SIGTERM to the starter of two processes', 'in the middle of a step', line_with(said, 'stopped by'), last_step(tmp_path), k)

@pytest.mark.slow
def test_no_orphans(tmp_path):
    "When the process that started the others is killed, they end too."
    code = 'import sys; from consistency_nb.place import Options; from consistency_nb.processes import start; start(sys.argv[1:], Options(num_processes=2))'
    p = subprocess.Popen([sys.executable, '-c', code, sys.executable, str(SCRIPT), '--out', str(tmp_path), '--pause', '0.1', '--preset', '{"iterations": 100000}'], env=environment())
    wait_for(tmp_path/'checkpoint.safetensors', p)
    p.kill(); p.wait(); time.sleep(3)
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']; time.sleep(3)
    assert read_state(tmp_path/'checkpoint.safetensors')[0]['k'] == k
    survived('SIGKILL to the starter of two processes', 'at any moment', 'nothing: both end with it', last_step(tmp_path), k)

def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < until: time.sleep(0.05)
    assert path.exists()

@pytest.mark.slow
@pytest.mark.parametrize('way', ['own', 'accelerate', 'shards'])
def test_command_line(way, tmp_path):
    length, K = ('--minutes 0.001', 10) if way == 'own' else ('--iterations 3 --shard True --tracker tensorboard', 3) if way == 'shards' else ('--iterations 3', 3)   # by the clock: the shortest run there is
    options = f'--preset avatars32_ct --batch 8 {length} --device cpu --out_dir {tmp_path}'.split()
    command = {'own': [sys.executable, '-m', 'consistency_nb.launch', '--num_processes', '2'],
               'shards': [sys.executable, '-m', 'consistency_nb.launch', '--num_processes', '2'],
               'accelerate': [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '-m', 'consistency_nb.train']}[way]
    done = subprocess.run(command + options, env=environment(), capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_state(tmp_path/'checkpoint.safetensors')[0]['k'] == K and (tmp_path/'model.safetensors').stat().st_size > 10**6
    state, model = read_state(tmp_path/'checkpoint.safetensors')[1], load(tmp_path/'model.safetensors').net.state_dict()
    assert all(torch.equal(v, state[f'ema.{n}']) for n, v in model.items()), 'the model is the average of the checkpoint'
    assert (tmp_path/'latest.png').stat().st_size > 1000 and (tmp_path/'tensorboard').exists() == (way == 'shards')

@pytest.mark.slow
def test_notebook_with_two_processes(tmp_path):
    papermill = pytest.importorskip('papermill')
    papermill.execute_notebook(ROOT/'nbs/train_ct.ipynb', tmp_path/'out.ipynb', dict(out_dir=str(tmp_path), iterations=3, minutes=0, samples=0, device='cpu', batch=8, num_processes=2),
                               cwd=tmp_path, progress_bar=False, kernel_name='python3')
    report = json.loads((tmp_path/'metrics.json').read_text())
    assert report['finished'] and report['iterations'] == 3 and (tmp_path/'samples.png').stat().st_size > 100
    assert '3/3' in (tmp_path/'out.ipynb').read_text(), 'the lines of the first process are shown'

@pytest.mark.slow
def test_two_machines(alone, tmp_path):
    "Two starters with a process each, as on two nodes; here both live on one."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = f"import sys; from consistency_nb.place import Options; from consistency_nb.processes import start; start(sys.argv[2:], Options(num_processes=2, num_nodes=2, node_rank=int(sys.argv[1]), address='127.0.0.1', port={port}))"
    nodes = [subprocess.Popen([sys.executable, '-c', code, str(r), sys.executable, str(SCRIPT), '--out', str(tmp_path)]) for r in range(2)]
    assert [p.wait(300) for p in nodes] == [0, 0]
    same((json.loads((tmp_path/'losses.json').read_text()), read_state(tmp_path/'checkpoint.safetensors')[1]), alone)
