"One, two and four processes make the same run; accumulation makes the same run; a lost process ends it with its error."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from torch.testing import assert_close

from consistency_nb.files import read_state
from consistency_nb.launch import environments, start
from processes import ROOT, environment

SCRIPT = ROOT/'tests/processes.py'

def run(out, n=1, **options):
    "Losses and final tensors of a run in n processes."
    command = [sys.executable, str(SCRIPT), '--out', str(out)] + [s for k, v in options.items() for s in (f'--{k}', v if isinstance(v, str) else json.dumps(v))]
    if n == 1: subprocess.run(command, check=True)   # nothing in the environment says that there could be others
    else: start(command, n)
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

def test_two_processes(alone, tmp_path): same(run(tmp_path, 2), alone)

def test_four_processes(alone, tmp_path): same(run(tmp_path, 4), alone)

@pytest.mark.slow
def test_two_processes_of_two_portions(alone, tmp_path): same(run(tmp_path, 2, accumulate=2), alone)

@pytest.mark.slow
@pytest.mark.parametrize('method', ['edm', 'pd'])
def test_other_methods(method, tmp_path): same(run(tmp_path/'2', 2, preset=dict(method=method)), run(tmp_path/'1', 1, preset=dict(method=method)))

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

@pytest.mark.parametrize('how, said', [('kill', 'process 1 was killed by SIGKILL'), pytest.param('raise', 'the disk of this machine is gone', marks=pytest.mark.slow),
                                       pytest.param('nan', 'at step 6: 4 of 8 images, at noise levels', marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_run(how, said, tmp_path):
    began = time.monotonic()
    with pytest.raises(RuntimeError) as e: run(tmp_path, 2, die=f'1:5:{how}')
    assert said in (str(e.value) if how == 'nan' else str(e.value).split('process 0')[0]), 'the process that was lost is named first'
    assert time.monotonic() - began < 120, 'a hang'
    assert read_state(tmp_path/'checkpoint.safetensors')[0]['k'] <= 5

@pytest.mark.slow
def test_sigterm_ends_all_processes(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r}); from consistency_nb.launch import start; start(sys.argv[1:], 2)"
    p = subprocess.Popen([sys.executable, '-c', code, sys.executable, str(SCRIPT), '--out', str(tmp_path), '--pause', '0.1', '--preset', '{"iterations": 100000}'], env=environment())
    wait_for(tmp_path/'checkpoint.safetensors', p)
    p.send_signal(signal.SIGTERM)
    assert p.wait(60) == 0 and read_state(tmp_path/'checkpoint.safetensors')[0]['k'] > 0

@pytest.mark.slow
def test_no_orphans(tmp_path):
    "When the process that started the others is killed, they end too."
    code = 'import sys; from consistency_nb.launch import start; start(sys.argv[1:], 2)'
    p = subprocess.Popen([sys.executable, '-c', code, sys.executable, str(SCRIPT), '--out', str(tmp_path), '--pause', '0.1', '--preset', '{"iterations": 100000}'], env=environment())
    wait_for(tmp_path/'checkpoint.safetensors', p)
    p.kill(); p.wait(); time.sleep(3)
    k = read_state(tmp_path/'checkpoint.safetensors')[0]['k']; time.sleep(3)
    assert read_state(tmp_path/'checkpoint.safetensors')[0]['k'] == k

def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < until: time.sleep(0.05)
    assert path.exists()

@pytest.mark.slow
@pytest.mark.parametrize('way', ['own', 'accelerate'])
def test_command_line(way, tmp_path):
    length, K = ('--minutes 0.001', 10) if way == 'own' else ('--iterations 3', 3)   # by the clock: the shortest run there is
    options = f'--preset openmoji32_ct --batch 8 {length} --device cpu --out_dir {tmp_path}'.split()
    command = {'own': [sys.executable, '-m', 'consistency_nb.launch', '--num_processes', '2'],
               'accelerate': [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '-m', 'consistency_nb.train']}[way]
    done = subprocess.run(command + options, env=environment(), capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_state(tmp_path/'checkpoint.safetensors')[0]['k'] == K and (tmp_path/'model.safetensors').stat().st_size > 10**6

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
    port = environments(1)[0]['MASTER_PORT']
    code = f"import sys; from consistency_nb.launch import start; start(sys.argv[2:], 2, 2, int(sys.argv[1]), '127.0.0.1', {port})"
    nodes = [subprocess.Popen([sys.executable, '-c', code, str(r), sys.executable, str(SCRIPT), '--out', str(tmp_path)]) for r in range(2)]
    assert [p.wait(300) for p in nodes] == [0, 0]
    same((json.loads((tmp_path/'losses.json').read_text()), read_state(tmp_path/'checkpoint.safetensors')[1]), alone)
