"""The package is what the notebooks export, to the letter, and the notebooks are clean. Nothing in the tree is touched."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from execnb.nbio import nb2str, read_nb
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BY_HAND = {'_showdoc.py'}

def sources(lib): return {p.relative_to(lib).as_posix(): p.read_text(encoding='utf-8') for p in lib.rglob('*.py') if p.name not in BY_HAND}

def test_package_is_exported(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}
    run = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    made, here = sources(tmp_path/'consistency_nb'), sources(ROOT/'consistency_nb')
    assert made.keys() == here.keys(), f'only exported: {made.keys() - here.keys()}; only here: {here.keys() - made.keys()}'
    stale = [k for k in made if made[k] != here[k]]
    assert not stale, f'edited by hand or not exported: {stale}; edit the notebook and run nbdev_export'

@pytest.mark.parametrize('path', NBS, ids=lambda p: p.relative_to(ROOT/'nbs').as_posix())
def test_notebook_is_clean(path):
    cfg, nb = get_config(), read_nb(path)
    clean_nb(nb, False, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids)
    assert nb2str(nb) == path.read_text(encoding='utf-8'), 'run nbdev_clean'

@pytest.mark.parametrize('method', ['edm', 'cd', 'ct'])
def test_page_is_of_the_shipped_model(method):
    "The run page shows the report that lies beside the weights: who changes one must execute the other."
    report = json.loads((ROOT/f'consistency_nb/weights/avatars32-{method}.json').read_text())
    cells = json.loads((ROOT/f'nbs/train_{method}.ipynb').read_text(encoding='utf-8'))['cells']
    shown = ' '.join(t for c in cells for o in c.get('outputs', []) for t in o.get('data', {}).get('text/plain', []))
    for name, row in report['measured'].items(): assert f"'fd': {row['fd']}" in shown, name
