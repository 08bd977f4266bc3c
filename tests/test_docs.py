"""The pages: markup that every renderer reads, and a strict build of the whole site from a copy of the tree."""
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted([*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/tutorials/*.ipynb')])
LINT = {
    'maths in a heading': r'^#+ .*\$.+\$',
    'a bare \\begin{align}: write $$ \\begin{aligned} ... \\end{aligned} $$': r'\\begin\{(align|equation|gather)\*?\}',
    'an equation label: write \\tag{1}': r'\{#eq-',
    'a cross-reference or citation: write a link': r'(?<![\w`])@(eq|fig|tbl|sec)-|\[@\w',
    'mermaid: save a picture': r'^```\{?mermaid',
    '.columns: use layout-ncol': r'^:{3,}.*\.columns?\b',
}

def name(path): return path.relative_to(ROOT/'nbs').as_posix()

def markdown(path):
    "The text of each markdown cell, without code."
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if c['cell_type'] == 'markdown': yield ''.join(c['source'])

@pytest.mark.parametrize('path', NBS, ids=name)
def test_markup(path):
    for text in markdown(path):
        bare = re.sub(r'^```(?!\{?mermaid).*?^```', '', text, flags=re.M | re.S)
        bare = re.sub(r'`[^`\n]+`', '', bare)
        for fault, pattern in LINT.items(): assert not re.search(pattern, bare, flags=re.M), f'{fault}:\n{text}'

@pytest.mark.parametrize('path', NBS, ids=name)
def test_fences(path):
    "Each `::: {...}` is closed; an open one would swallow the rest of the page."
    text = re.sub(r'^```.*?^```', '', '\n'.join(markdown(path)), flags=re.M | re.S)
    depth = 0
    for line in re.findall(r'^:{3,}.*$', text, flags=re.M):
        depth += -1 if re.fullmatch(r':{3,}\s*', line) else 1
        assert depth >= 0 and (line.strip(': ') == '' or re.fullmatch(r':{3,} *\{[^{}]+\}\s*', line)), line
    assert depth == 0, 'a `:::` is not closed'

@pytest.mark.parametrize('path', NBS, ids=name)
def test_title(path):
    "The first cell is read as front matter: a title, one line of description, keys; anything else would vanish."
    first = next(iter(json.loads(path.read_text(encoding='utf-8'))['cells']))
    assert first['cell_type'] == 'markdown'
    lines = [l for l in ''.join(first['source']).splitlines() if l.strip()]
    assert lines[0].startswith('# ') and '$' not in lines[0]
    assert len(lines) > 1 and re.match(r'> \S', lines[1]), 'a line "> what the page promises" is missing'
    assert all(re.match(r'- [\w-]+: \S', l) for l in lines[2:]), f'these lines would vanish from the site: {lines[2:]}'

ROAD = sorted(p.stem for p in NBS if re.match(r'\d', p.name))   # 17_train before 17a_files, as ASCII has it

@pytest.mark.parametrize('here, there', [*zip(ROAD, [*ROAD[1:], 'train_edm'])])
def test_next_page(here, there):
    "Each page of the road ends with the true next one."
    last = [*markdown(ROOT/f'nbs/{here}.ipynb')][-1]
    assert re.search(rf'Next: .*\b{there}\b', last), f'{here} ends with {last[-200:]!r}'

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "A copy of what the documentation is made from."
    tmp = tmp_path_factory.mktemp('tree')
    for d in ('nbs', 'tools', 'consistency_nb'):
        shutil.copytree(ROOT/d, tmp/d, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_proc', 'weights'))
    for f in ('settings.ini', '_quarto.yml', 'README.md'): shutil.copy(ROOT/f, tmp)
    return tmp

def build(tree):
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}
    return subprocess.run([sys.executable, 'tools/docs.py', '--strict'], cwd=tree, env=env, capture_output=True, text=True)

def test_strict_build(tree):
    "No warning, no stale made file, nothing loaded from elsewhere, formulas that parse, a page for each notebook."
    run = build(tree)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = {p.relative_to(tree/'_docs').with_suffix('').as_posix() for p in (tree/'_docs').rglob('*.html') if 'site_libs' not in p.parts}
    assert {re.sub(r'^\d+[a-z]?_', '', p.stem) if p.parent.name == 'nbs' else f'tutorials/{re.sub(r"^[0-9]+[a-z]?_", "", p.stem)}' for p in NBS} <= pages
    home = (tree/'_docs'/'index.html').read_text(encoding='utf-8')
    assert 'site_libs/katex' in home or '\\(' not in home
    assert (tree/'_docs'/'site_libs'/'katex'/'fonts').is_dir()
