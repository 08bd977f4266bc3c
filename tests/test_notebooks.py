"""Every notebook runs from top to bottom, keeps its outputs, and stays small. Runs are skipped: `skip_exec: true`."""
import json, re
from pathlib import Path

import pytest
from fastcore.basics import str2bool
from execnb.shell import CaptureShell
from nbdev import test as nbdev_test_module
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted([*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/tutorials/*.ipynb')])
ROAD = [p for p in NBS if p.name[0].isdigit()]
TUTORIALS = [p for p in NBS if p.parent.name == 'tutorials']
RUNS = [p for p in NBS if p.parent.name == 'nbs' and p.name[0].isalpha() and p.stem != 'index']
PLACES = re.compile(r'site-packages|/home/|/root/|/tmp/|/work/|/Users/')

def name(path): return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def heavy(path):
    "Does the notebook say `skip_exec: true` under its title?"
    return str2bool(NBProcessor(path, procs=FrontmatterProc, process=True).nb.frontmatter_.get('skip_exec', False))

@pytest.fixture
def fresh_state():
    "What one notebook sets shall not reach the next."
    import matplotlib, matplotlib.pyplot as plt, torch
    dtype, rng = torch.get_default_dtype(), torch.get_rng_state()
    with matplotlib.rc_context(): yield
    plt.close('all')
    torch.set_default_dtype(dtype); torch.set_grad_enabled(True); torch.set_rng_state(rng)

def test_there_are_notebooks(): assert ROAD and (ROOT/'nbs'/'index.ipynb') in NBS

@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    "What a page gives to a class of the package, as that on sampling does, is taken back when it ends."
    from consistency_nb import sample   # gives it first
    from consistency_nb.precond import Denoiser
    monkeypatch.setattr(Denoiser, 'sample', Denoiser.sample)

class Kept(CaptureShell):
    "nbdev's shell, which keeps the notebook that it has run, with its outputs."
    def run_all(self, nb, *args, **kwargs):
        Kept.nb = nb
        return super().run_all(nb, *args, **kwargs)

def words(cell):
    "What a cell shows, without names of temporary folders, and with # for every number: it may differ in its last digits, or tell the time."
    outputs = [o for o in cell.get('outputs', []) if o.get('name') != 'stderr']
    texts = [o.get('text') or next((o['data'][k] for k in ('text/markdown', 'text/plain') if k in o.get('data', {})), '') for o in outputs]
    texts = [re.sub(r'\btmp\w{8}\b|<Figure.*>', '', ''.join(t)) for t in texts]
    return ' '.join(re.sub(r'[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?', '#', ''.join(texts)).split())

BRIEF = {'tutorials/own_pictures'}   # trains for a few steps when it is tested

@pytest.mark.parametrize('path', NBS, ids=name)
def test_notebook(path, monkeypatch, capfd, fresh_state):
    "A page runs from top to bottom, and what it says is what its saved outputs say."
    if heavy(path): pytest.skip('a run: skip_exec is set')
    monkeypatch.setenv('IN_TEST', '1'); monkeypatch.chdir(ROOT); monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(nbdev_test_module, 'CaptureShell', Kept)
    passed, _ = nbdev_test_module.test_nb(path, skip_flags=get_config().tst_flags.split())
    assert passed, capfd.readouterr().err
    if name(path) in BRIEF: return
    for saved, now in zip(cells(path), Kept.nb.cells, strict=True):
        assert words(saved) == words(now), 'its saved output is of other code: run python tools/execute.py on the notebook'

@pytest.mark.parametrize('path', NBS, ids=name)
def test_outputs(path):
    "Outputs are saved, hold no error and name no place on a machine."
    outputs = [o for c in cells(path) for o in c.get('outputs', [])]
    if path in ROAD + TUTORIALS: assert outputs, 'no saved outputs: run python tools/execute.py on it'
    for o in outputs:
        assert o['output_type'] != 'error', o.get('evalue')
        text = ''.join(''.join(t) for t in [o.get('text', ''), *(v for k, v in o.get('data', {}).items() if k.startswith('text/'))])
        assert not PLACES.search(text), text
        assert not any('widget' in k for k in o.get('data', {})), 'a widget cannot be shown without a kernel: run python tools/execute.py on it'

@pytest.mark.parametrize('path', ROAD + TUTORIALS, ids=name)
def test_budget(path):
    "At most 70 cells, 400 KB, and 40 lines in an exported cell."
    assert path.stat().st_size <= 400_000
    assert len(cells(path)) <= 70
    for c in cells(path):
        if c['cell_type'] == 'code' and re.match(r'#\| *exports?\b', ''.join(c['source'])):
            assert len(c['source']) - 1 <= 40, f'{len(c["source"]) - 1} lines: {"".join(c["source"][:2])}'

AT_HOME = {'index', '16_presets', '17a_files', 'compare_methods', 'benchmark', 'scaling', 'tutorials/own_pictures', 'tutorials/editing'}   # use files of the repository
ALONE = {'tutorials/plane'}   # does without the package
COLAB = """#| hide
#| eval: false
if 'google.colab' in str(get_ipython()):   # Colab has torch, but not this package
    %pip install -q 'consistency_nb[train] @ git+https://github.com/consistency-nb/consistency_nb'"""

@pytest.mark.parametrize('path', [p for p in NBS if name(p) not in AT_HOME | ALONE], ids=name)
def test_colab(path):
    "The first code cell brings the package to Colab, and does nothing elsewhere."
    assert ''.join(next(c for c in cells(path) if c['cell_type'] == 'code')['source']) == COLAB

@pytest.mark.parametrize('path', TUTORIALS, ids=name)
def test_tutorial(path):
    "A tutorial exports nothing and bears no number: it has no place on the road."
    assert not path.stem[0].isdigit()
    assert not any(re.search(r'^#\| *(default_exp|exports?)\b', ''.join(c['source']), re.M) for c in cells(path) if c['cell_type'] == 'code')

@pytest.mark.parametrize('path', RUNS, ids=name)
def test_run_parameters(path):
    "A run has exactly one cell tagged `parameters`, of plain assignments, and a kernel that papermill finds."
    import ast
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1 and tagged[0]['cell_type'] == 'code'
    assert all(isinstance(n, (ast.Assign, ast.AnnAssign)) for n in ast.parse(''.join(tagged[0]['source'])).body)
    kernel = json.loads(path.read_text(encoding='utf-8'))['metadata']['kernelspec']
    assert (kernel['name'], kernel['language']) == ('python3', 'python')
    assert not any('default_exp' in ''.join(c['source']) for c in cells(path)), 'a run exports nothing'
