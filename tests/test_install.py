"""The package installs from a copy of the tree, and its core works with torch alone."""
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALONE = '''
import sys
sys.path.insert(0, {target!r})
blocked = {{"nbdev", "fastcore", "accelerate", "torchvision", "matplotlib", "lpips", "safetensors", "IPython"}}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked: raise ImportError(name + " is blocked here")
sys.meta_path.insert(0, Block())
import torch, consistency_nb
from consistency_nb.sample import multistep
assert consistency_nb.__file__.startswith({target!r}), consistency_nb.__file__
x = multistep(lambda x, t: x * 0 + 0.5, 80 * torch.ones(2, 1, 4, 4), [80., 1.], generator=torch.Generator().manual_seed(0))
assert x.shape == (2, 1, 4, 4) and bool((x == 0.5).all())
try: import nbdev
except ImportError: print("alone")
'''

def test_install(tmp_path):
    src, target = tmp_path/'src', tmp_path/'target'
    src.mkdir()
    for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE', 'NOTICE', 'MANIFEST.in'): shutil.copy(ROOT/f, src)
    shutil.copytree(ROOT/'consistency_nb', src/'consistency_nb', ignore=shutil.ignore_patterns('__pycache__'))
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')}
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', '--no-index']
    run = subprocess.run([*pip, '--target', str(target), str(src)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    shipped = {p.relative_to(target).as_posix() for p in (target/'consistency_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT/'consistency_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert shipped == wanted
    run = subprocess.run([sys.executable, '-c', ALONE.format(target=str(target))], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == 'alone', run.stdout + run.stderr
