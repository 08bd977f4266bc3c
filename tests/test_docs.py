"""The pages: markup that every renderer reads, a strict build of the whole site from a copy of the tree, and that site in a
real browser. The last part needs Chromium and Node.js with npm (tools/live.py fetches what they run), and says so."""
import json, os, re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote

import pytest, torch
from consistency_nb.checkpoints import load
from consistency_nb.core import per_sample_noise
from consistency_nb.edit import inpaint
from consistency_nb.pixels import to_bytes
from consistency_nb.sample import multistep, of_class, start

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted([*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('nbs/tutorials/*.ipynb')])
LINT = {
    'maths in a heading': r'^#+ .*\$.+\$',
    'a bare \\begin{align}: write $$ \\begin{aligned} ... \\end{aligned} $$': r'\\begin\{(align|equation|gather)\*?\}',
    'an equation label: write \\tag{1}': r'\{#eq-',
    'a cross-reference or citation: write a link': r'(?<![\w`])@(eq|fig|tbl|sec)-|\[@\w',
    'mermaid: save a picture': r'^```\{?mermaid',
    'a link around code alone, which would be linked twice: write `name`, or put words into the link': r'(?<!!)\[\]\(',   # code is taken out before
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

def test_spelling(tmp_path):
    "Words that are often misspelt; `ect` is a method, `lins` are layers."
    for path in (*NBS, *(ROOT/f for f in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'))):
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb': text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'])
        (tmp_path/f'{path.stem}.md').write_text(text, encoding='utf-8')
    found = subprocess.run([sys.executable, '-m', 'codespell_lib', '-L', 'ect,lins', tmp_path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout

def test_readme_leads_somewhere():
    "What README.md links to in the repository is there."
    links = re.findall(r'\]\(([^)\s#]+)', re.sub(r'^```.*?^```', '', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.M | re.S))
    assert links and not [u for u in links if not re.match(r'[a-z]+:', u) and not (ROOT/u).exists()]

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
        shutil.copytree(ROOT/d, tmp/d, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_proc'))
    for f in ('settings.ini', '_quarto.yml', 'README.md'): shutil.copy(ROOT/f, tmp)
    (ROOT/'.node').mkdir(exist_ok=True)   # what npm has fetched before
    (tmp/'.node').symlink_to(ROOT/'.node')
    return tmp

@pytest.fixture(scope='module')
def built(tree):
    "What a strict build in that copy said."
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}
    return subprocess.run([sys.executable, 'tools/docs.py', '--strict'], cwd=tree, env=env, capture_output=True, text=True)

def test_strict_build(tree, built):
    "No warning, no stale made file, nothing loaded from elsewhere, formulas that parse, a page for each notebook."
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {p.relative_to(tree/'_docs').with_suffix('').as_posix() for p in (tree/'_docs').rglob('*.html') if 'site_libs' not in p.parts}
    assert {re.sub(r'^\d+[a-z]?_', '', p.stem) if p.parent.name == 'nbs' else f'tutorials/{re.sub(r"^[0-9]+[a-z]?_", "", p.stem)}' for p in NBS} <= pages
    home = (tree/'_docs'/'index.html').read_text(encoding='utf-8')
    assert 'site_libs/katex' in home or '\\(' not in home
    assert (tree/'_docs'/'site_libs'/'katex'/'fonts').is_dir()

# ---- in a browser: every page, the search, and the model that runs in the page

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)

@pytest.fixture(scope='module')
def seen(tree, built):
    if CHROMIUM is None: pytest.skip('no Chromium here: apt-get install chromium (Debian), or any Chrome')
    if shutil.which('npm') is None: pytest.skip('no npm here: install Node.js 20')
    if not (tree/'_docs/live/student.onnx').exists(): pytest.skip('the live model was not built: ' + built.stdout[-300:])
    looked = subprocess.run(['node', 'tools/check_site.mjs', '_docs', CHROMIUM], cwd=tree, capture_output=True, text=True, timeout=600)
    assert looked.returncode == 0, looked.stderr[-3000:]
    return json.loads(looked.stdout)

@pytest.mark.parametrize('what', ['errors', 'failed', 'axe'])
def test_pages_are_sound(seen, what):
    "No error on the console, no request that failed, no serious fault found by axe."
    assert len(seen['pages']) > 60
    assert not {n: p[what] for n, p in seen['pages'].items() if p[what]}

def test_formulas_pictures_and_width(seen):
    "Every formula is set, every picture has words for those who do not see it, nothing is wider than a phone."
    assert not {n: (p['raw'], p['alt'], p['wide']) for n, p in seen['pages'].items() if p['raw'] or p['alt'] or p['wide'] > 0}

def test_pages_are_light(seen):
    "No page fetches more than 3 MB, the first visit's scripts and fonts included; the live model comes when it is asked for."
    assert not {n: p['bytes'] for n, p in seen['pages'].items() if p['bytes'] > 3_000_000}

def test_links_lead_somewhere(seen, tree):
    pages, lost = seen['pages'], []
    for name, p in pages.items():
        for url in p['links']:
            if not url.startswith('/'): continue
            path, _, anchor = unquote(url[1:]).partition('#')
            path = path or 'index.html'
            if path in pages: lost += [f'{name}: {url}'] * bool(anchor and anchor not in pages[path]['ids'])
            elif not (tree/'_docs'/path).exists(): lost.append(f'{name}: {url}')
    assert not lost

def test_search_finds_multistep(seen): assert any('sample.html' in url for url in seen['search'])

def near(a, b): assert (torch.tensor(a).reshape(32, 32, 4)[..., :3].permute(2, 0, 1).int() - to_bytes(b)[0].cpu().int()).abs().max() <= 2

@torch.no_grad()
def test_the_live_model_is_the_model(seen):
    "Noise and pictures of the same seeds, in the browser and in torch, in one call and several, and filled in."
    live, f = seen['live'], load('avatars32-cd', device='cpu')
    torch.testing.assert_close(torch.tensor(live['noise']), per_sample_noise([7], (3, 32, 32), draw=1).flatten()[:64], rtol=1e-5, atol=1e-5)
    def drawn(seed, y, levels): return multistep(of_class(f, y) if y >= 0 else lambda x, t: f(x, t, torch.full((len(x),), -1)), start([seed], (3, 32, 32)), levels, seeds=[seed])
    near(live['one'], drawn(3, 4, (80.,)))
    near(live['two'], drawn(2**32 - 1, 8, (80., .3)))
    near(live['four'], drawn(5, -1, (80., .5, .15, .05)))
    near(live['by_hand'], drawn(0, 0, (80.,)))
    mask = (torch.arange(32) < 16).expand(32, 32)
    near(live['filled'], inpaint(of_class(f, 4), drawn(3, 4, (80.,)), mask, (80., 5., .5), seeds=[11]))
    assert 'ms' in live['status'] and live['sixteen'] == 16
