"""Files in the formats in which others published their weights, for tests: EDM's pickles and flax checkpoints."""
import pickle, sys, types
from contextlib import contextmanager

import msgpack, torch
from torch import nn

@contextmanager
def nvlabs():
    "Make the module that EDM's pickles name importable for a moment, and `EasyDict` with it."
    names = 'torch_utils', 'torch_utils.persistence', 'dnnlib', 'dnnlib.util'
    sys.modules.update({n: types.ModuleType(n) for n in names})
    sys.modules['torch_utils.persistence']._reconstruct_persistent_obj = rebuild
    sys.modules['dnnlib.util'].EasyDict = EasyDict
    try: yield
    finally:
        for n in names: del sys.modules[n]

def rebuild(meta): raise AssertionError("EDM's loader was called")
rebuild.__module__, rebuild.__qualname__ = 'torch_utils.persistence', '_reconstruct_persistent_obj'

class EasyDict(dict): "As in EDM."
EasyDict.__module__ = 'dnnlib.util'

class Persistent(nn.Module):
    "Writes what EDM's classes write: a call with the source code of the class, and the state."
    def __init__(self, name, **kwargs):
        super().__init__()
        self._name, self._init_args, self._init_kwargs = name, (), EasyDict(kwargs)
    def __reduce__(self):
        meta = dict(type='class', version=6, module_src='raise SystemExit("the source code was executed")', class_name=self._name, state=self.__dict__)
        return rebuild, (meta,), None

def edm_network(tensors, **kwargs):
    "The object that EDM stores: modules in modules, with `tensors` under their names as parameters and buffers."
    root = Persistent('EDMPrecond', **kwargs)
    root.sigma_data, root.sigma_max, root.use_fp16 = 0.5, float('inf'), False
    for name, v in tensors.items():
        m, (*parts, leaf) = root, name.split('.')
        for part in parts:
            if part not in m._modules: m.add_module(part, nn.ModuleDict() if part in ('enc', 'dec') else Persistent(part))
            m = m._modules[part]
        if leaf in ('resample_filter', 'freqs'): m.register_buffer(leaf, v)
        else: m.register_parameter(leaf, nn.Parameter(v))
    return root

def write_edm(path, **data):
    "A pickle with `data`, which has the network under 'ema'."
    with nvlabs(): path.write_bytes(pickle.dumps(data))
    return path

def pack(v: torch.Tensor, code: int = 1):
    "An array, or with code 3 a number, as flax stores it."
    raw = v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return msgpack.ExtType(code, msgpack.packb((v.shape, str(v.dtype).removeprefix('torch.'), raw)))

def nested(flat: dict) -> dict:
    "Names with '/' as dicts in dicts."
    out = {}
    for name, v in flat.items():
        *parts, leaf = name.split('/')
        at = out
        for p in parts: at = at.setdefault(p, {})
        at[leaf] = v
    return out

def write_flax(path, **tree):
    "A checkpoint whose entries are numbers, or flat dicts of tensors."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgpack.packb({k: nested({n: pack(t) for n, t in v.items()}) if isinstance(v, dict) else v for k, v in tree.items()}))
    return path
