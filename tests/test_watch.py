"A run that is watched: TensorBoard's file read back, Weights & Biases without a network, a bar where a person looks."
import json, subprocess, sys

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from processes import ROOT, environment, tiny, train

def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder), size_guidance=dict(scalars=0, images=0))
    found.Reload()
    return found

def stop_in_step(k):
    def on_log(run, record):
        if run.k == k: raise KeyboardInterrupt
        return run.data.batch(torch.arange(3))
    return on_log

def test_tensorboard_and_a_resumed_run(tmp_path):
    "Steps 6 to 8 are made twice, and shown once."
    pytest.importorskip('tensorboard')
    args = dict(log_every=0., tracker='tensorboard')
    train(tiny(iterations=5), tmp_path/'short', save_every=0., **args)   # a run that ends
    with pytest.raises(KeyboardInterrupt): train(tiny(), tmp_path, save_every=0., on_log=stop_in_step(6), **args)
    with pytest.raises(KeyboardInterrupt): train(tiny(), tmp_path, save_every=1e9, on_log=stop_in_step(9), **args)
    run = train(tiny(), tmp_path, save_every=1e9, on_log=stop_in_step(None), **args)
    folder = tmp_path/'tensorboard'/run.p.name
    found, lines = events(folder), [json.loads(s) for s in (tmp_path/'metrics.jsonl').read_text().splitlines()]
    assert {'loss', 'grad_norm', 'lr', 'N', 'mu', 'images_per_s'} <= {*found.Tags()['scalars']} and any(t.startswith('loss/t_above_10') for t in found.Tags()['scalars'])
    for name in 'loss', 'N', 'mu', 'grad_norm':
        seen = [(e.step, e.value) for e in found.Scalars(name)]
        assert [s for s, _ in seen] == [r['step'] for r in lines] == [*range(1, 13)]
        assert all(abs(v - r[name]) <= 1e-6 * abs(v) for (_, v), r in zip(seen, lines)), name
    image = found.Images('samples')[-1]
    assert image.step == 12 and (image.width, image.height) == (3 * 10 + 2, 8 + 4)
    assert len([*folder.glob('*/hparams.yml')]) == 1

def test_gradient_norm_is_that_of_the_gradient(tmp_path):
    norms, step = [], torch.optim.RAdam.step
    def look(opt, *args, **kw):
        norms.append(torch.cat([v.grad.flatten() for g in opt.param_groups for v in g['params']]).norm().item())
        return step(opt, *args, **kw)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.optim.RAdam, 'step', look)
        train(tiny(), tmp_path, log_every=0., save_every=1e9)
    lines = [json.loads(s) for s in (tmp_path/'metrics.jsonl').read_text().splitlines()]
    assert [r['grad_norm'] for r in lines] == pytest.approx(norms, rel=1e-5)

def test_wandb_without_network(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline'); monkeypatch.setenv('WANDB_SILENT', 'true')
    train(tiny(), tmp_path, log_every=0., save_every=1e9, tracker='wandb', on_log=stop_in_step(None))
    (run,) = (tmp_path/'wandb').glob('offline-run-*')
    assert len([*run.glob('*.wandb')]) == 1 and len([*run.rglob('samples_*.png')]) == 12
    said = (run/'files/output.log').read_text()
    assert '12/12' in said

def test_wrong_tracker_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; valid ones are: .*tensorboard.*wandb"): train(tiny(), tmp_path/'a', tracker='tensorbord')
    missing = next(n for n in LOGGER_TYPE_TO_CLASS if n not in map(str, get_available_trackers()))
    with pytest.raises(ValueError, match=f'{missing}.* is not installed: pip install {missing}'): train(tiny(), tmp_path/'a', tracker=missing)
    said = subprocess.run([sys.executable, '-m', 'consistency_nb.launch', '--preset', 'avatars32_ct', '--out_dir', str(tmp_path/'a'), '--num_processes', '2', '--device', 'cpu', '--tracker', 'x'],
                          env=environment(), capture_output=True, text=True, timeout=300)
    assert said.returncode and "unknown tracker 'x'" in said.stderr and not (tmp_path/'a').exists()

def test_bar_where_a_person_looks(tmp_path, capsys):
    "A kernel whose front end takes input has a person in front of it; papermill's takes none."
    papermill = pytest.importorskip('papermill')
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('from consistency_nb.watch import somebody_watches; print(somebody_watches())')], metadata=dict(kernelspec=dict(name='python3', display_name='', language='python')))
    nbformat.write(nb, tmp_path/'nb.ipynb')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', str(ROOT))
        assert 'False' in str(papermill.execute_notebook(tmp_path/'nb.ipynb', None, progress_bar=False).cells[-1].outputs)
        client = NotebookClient(nb, kernel_name='python3'); client.create_kernel_manager()
        with client.setup_kernel():
            client.kc.allow_stdin = True
            client.execute_cell(nb.cells[0], 0)
    assert 'True' in str(nb.cells[0].outputs)
    train(tiny(), tmp_path/'bar', log_every=0., save_every=1e9, bar=True)
    shown = capsys.readouterr()
    assert '12/12' in shown.err and 'images/s' not in shown.out
    train(tiny(), tmp_path/'lines', log_every=0., save_every=1e9)
    shown = capsys.readouterr()
    assert '12/12' in shown.out and not shown.err
