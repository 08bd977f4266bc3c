"""What all tests share: the project root on the path, and the marks `slow` and `gpu`."""
import os, sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: on a busy machine more threads wait for each other
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes longer than some ten seconds; leave out with -m "not slow"')
    config.addinivalue_line('markers', 'gpu: for a graphics card, skipped without one; GPU_TESTS_ON=cpu tries it on the processor')
    config.addinivalue_line('filterwarnings', 'ignore:__array__ implementation:DeprecationWarning')  # matplotlib with tensors


LONG = 'test_runs', 'test_notebooks', 'test_field_runs', 'test_processes', 'test_docs', 'test_faults', 'test_evaluate'


def pytest_collection_modifyitems(items):
    "The files that take longest come first, so that no process is left alone with one at the end."
    items.sort(key=lambda t: LONG.index(t.path.stem) if t.path.stem in LONG else len(LONG))
