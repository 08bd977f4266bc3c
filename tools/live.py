"""What the live model of the site is made of: the shipped student as an ONNX graph with weights in half precision, and
ONNX Runtime Web, fetched once by npm into .node/. Without npm the site is built all the same, and shows a picture.
"""
import json, shutil, subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
PINNED = {'onnxruntime-web': '1.30.0', 'axe-core': '4.14.1', 'playwright-core': '1.65.1'}   # the last two for tests
BOX = '<div id="live-model">'


def packages() -> Path | None:
    "The folder of npm's packages, filled if it is empty; None, and a line that says so, where that cannot be done."
    there = ROOT/'.node'
    modules = there/'node_modules'
    if all((modules/n).is_dir() for n in PINNED): return modules
    if not shutil.which('npm'):
        print('no npm here: the live model shows a picture (install Node.js 20 to have it)')
        return None
    there.mkdir(exist_ok=True)
    (there/'package.json').write_text(json.dumps(dict(private=True, dependencies=PINNED)), encoding='utf-8')
    got = subprocess.run(['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error'], cwd=there,
                         capture_output=True, text=True)
    if got.returncode == 0: return modules
    print(f'npm could not fetch {", ".join(PINNED)}: the live model shows a picture ({got.stderr.strip()[-300:]})')


def halved(path: Path):
    "Store the weights of a graph in half precision; they are computed with in single precision, as load does it."
    import numpy as np, onnx
    from onnx import TensorProto, helper, numpy_helper
    model, casts = onnx.load(path), []
    for w in model.graph.initializer:
        a = numpy_helper.to_array(w)
        if a.dtype != np.float32 or a.size < 64: continue
        low = a.astype(np.float16)
        if not np.array_equal(low.astype(np.float32), a): continue   # the frequencies of an embedding
        name = w.name
        w.CopyFrom(numpy_helper.from_array(low, f'{name}_half'))
        casts.append(helper.make_node('Cast', [f'{name}_half'], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def student(path: Path):
    "The shipped student as a graph, made once for its weights."
    from consistency_nb.checkpoints import load
    from consistency_nb.exchange import to_onnx
    import consistency_nb
    weights = Path(consistency_nb.__file__).parent/'weights/avatars32-cd.safetensors'
    if path.exists() and path.stat().st_mtime > weights.stat().st_mtime: return
    to_onnx(load('avatars32-cd', device='cpu'), path)
    halved(path)


def add(out: Path):   # the built site
    "Put the live model beside the pages that have a box for it."
    modules, live = packages(), out/'live'
    if modules is None: return
    shutil.copytree(ROOT/'nbs/live', live)
    for name in RUNTIME: shutil.copy(modules/'onnxruntime-web/dist'/name, live)
    made = ROOT/'.node/student.onnx'
    student(made)
    shutil.copy(made, live)
    for page in out.rglob('*.html'):
        s = page.read_text(encoding='utf-8')
        up = '../' * (len(page.relative_to(out).parts) - 1)
        head = f'<link rel="stylesheet" href="{up}live/live.css"><script type="module" src="{up}live/live.js"></script></head>'
        if BOX in s: page.write_text(s.replace('</head>', head, 1), encoding='utf-8')
