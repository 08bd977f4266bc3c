"""Run notebooks in place with nbdev's rules, keep their outputs, and clean them.

    python tools/execute.py nbs/00_core.ipynb nbs/02_oracle.ipynb

Skipped, as in nbdev_test: cells with `#| eval: false`, cells with a test flag of settings.ini (`notest`, `slow`),
calls of `nbdev_export()`, and whole notebooks with `skip_exec: true` under their title.
Each notebook runs in a process of its own, in its folder (nbs/ for one that lies elsewhere). If a cell fails, its
traceback is printed, the exit code is 1, and the file stays as it was. Pictures are stored as plain PNG.
"""
import os, re, subprocess, sys, traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: on a busy machine more threads wait for each other
PLACES = re.compile(r'site-packages|/home/|/root/|/tmp/|/Users/|' + re.escape(str(ROOT)))


def skipped(cell, flags):
    "Does nbdev's rule leave out this processed `cell`?"
    directives = getattr(cell, 'directives_', {}) or {}
    return ('nbdev_export(' in cell.source or bool(flags & set(directives))
            or directives.get('eval:', [''])[0].lower() == 'false')


def texts(output):
    "Every text of an `output`, joined."
    parts = [output.get('text', []), *(v for k, v in output.get('data', {}).items() if k.startswith('text/'))]
    return ''.join(''.join(p) for p in parts)


def run(path):
    "Run the notebook at `path`; True when every cell passed."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.basics import str2bool
    from nbdev.clean import _nbdev_clean
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor

    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    nb, processed = read_nb(path), NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(getattr(processed, 'frontmatter_', {}).get('skip_exec', False)):
        print(f'skipped {name} (skip_exec)')
        return True
    flags = set(get_config().tst_flags.split())
    sys.path.insert(0, str(ROOT))
    shell = CaptureShell(path, mpl_format='png')
    os.chdir(path.parent if path.is_relative_to(ROOT/'nbs') else ROOT/'nbs')
    code = [c for c in nb.cells if c.cell_type == 'code']
    for i, (cell, proc) in enumerate(zip(code, (c for c in processed.cells if c.cell_type == 'code'), strict=True), 1):
        if skipped(proc, flags): continue
        outputs = shell.run(proc.source)
        if shell.exc:
            print(f'FAILED {name}, code cell {i}:\n\n{cell.source}\n', file=sys.stderr)
            traceback.print_exception(type(shell.exc), shell.exc, shell.exc.__traceback__)
            return False
        cell['outputs'] = outputs
        for o in outputs:
            if PLACES.search(texts(o)): print(f'WARNING {name}, code cell {i}: an output names a place on this machine:\n{texts(o)}', file=sys.stderr)
    os.chdir(ROOT)
    _nbdev_clean(nb)
    write_nb(nb, path)
    print(f'ran {name} ({path.stat().st_size/1000:.0f} KB)')
    return True


def main(paths):
    if not paths: sys.exit(__doc__)
    paths = [Path(p).resolve() for p in paths]
    if missing := [str(p) for p in paths if not p.is_file()]: sys.exit('no such notebook: ' + ', '.join(missing))
    if len(paths) == 1: return 0 if run(paths[0]) else 1
    return max(subprocess.run([sys.executable, __file__, str(p)]).returncode for p in paths)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
