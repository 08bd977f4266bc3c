"""Who may import whom: the road runs one way, and the core stays light. Read from the source, nothing is imported."""
import ast, re, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'consistency_nb'
NUMBER = {m[2]: m[1] for p in (ROOT/'nbs').glob('*.ipynb') if (m := re.match(r'(\d+[a-z]?)_(\w+)$', p.stem))}
MODULES = sorted(p for p in LIB.glob('*.py') if p.stem in NUMBER)
HEAVY = {'torchvision', 'matplotlib', 'accelerate', 'safetensors', 'lpips', 'nbdev', 'fastcore', 'IPython'}

def imports(nodes):
    "Names of the modules that `nodes` import: siblings as ('.', name), others as (top, None)."
    for n in nodes:
        if isinstance(n, ast.Import):
            for a in n.names:
                top, *rest = a.name.split('.')
                yield ('.', rest[0]) if top == LIB.name and rest else (top, None)
        elif isinstance(n, ast.ImportFrom):
            top, *rest = (n.module or '').split('.')
            if n.level: yield from [('.', top)] if top else [('.', a.name) for a in n.names]
            elif top == LIB.name: yield from [('.', rest[0])] if rest else [('.', a.name) for a in n.names]
            else: yield top, None

def at_module_level(tree):
    "Nodes outside functions, so those that an import of the module would run."
    todo = list(tree.body)
    while todo:
        n = todo.pop()
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): continue
        yield n
        todo += ast.iter_child_nodes(n)

def order(module): return int(re.match(r'\d+', NUMBER[module])[0]), NUMBER[module]

@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_imports(path):
    tree, me = ast.parse(path.read_text(encoding='utf-8')), path.stem
    siblings = {name for top, name in imports(ast.walk(tree)) if top == '.'} - {'__version__'}
    assert all(order(s) < order(me) for s in siblings), f'{me} imports a later notebook'
    outside = {top for top, _ in imports(at_module_level(tree))} - {'.'}
    if order(me)[0] < 15: assert not outside & HEAVY, f'{me} imports {outside & HEAVY}; import them where they are used'
    assert not outside & {'nbdev', 'fastcore', 'IPython'}, 'tools of the notebooks do not belong in the package'
    if me in ('record', 'presets'): assert outside <= set(sys.stdlib_module_names)
    if me not in ('viz', 'evaluate'): assert 'matplotlib' not in {top for top, _ in imports(ast.walk(tree))}
