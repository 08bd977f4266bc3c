"""Foreign files are read, hostile ones are refused by name, and nothing in them is run."""
import builtins, io, os, pickle, struct, subprocess

import pytest, torch
from torch import nn
from torch.testing import assert_close

msgpack = pytest.importorskip('msgpack')
from consistency_nb.foreign import Refused, read_edm, read_flax, read_pt
from golden import golden, weights
from published import Persistent, edm_network, pack, write_edm, write_flax

SYSTEM = f'{os.system.__module__}.system'

@pytest.fixture
def owned(tmp_path):
    "A file that must not come into being."
    path = tmp_path/'owned'
    yield path
    assert not path.exists(), 'something in the file was executed'

class Call:
    "Asks, when unpickled, for a call."
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args

def does(f, owned):
    "An argument with which a call of `f`, were it made, would leave a file where one can."
    return f'open({str(owned)!r}, "w")' if f in (eval, exec) else ['touch', str(owned)] if f is subprocess.Popen else f'touch {owned}'

# ---- .pt

@pytest.mark.parametrize('zipped', [True, False])
def test_pt(tmp_path, zipped):
    d = {'a.weight': torch.randn(3, 2), 'b': torch.arange(3, dtype=torch.float16)}
    torch.save(d, tmp_path/'a.pt', _use_new_zipfile_serialization=zipped)
    assert_close(read_pt(tmp_path/'a.pt'), d, rtol=0, atol=0)

@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('f', [os.system, eval, exec, subprocess.Popen, __import__, getattr])
def test_pt_hostile(tmp_path, owned, zipped, f):
    torch.save({'a': Call(f, does(f, owned))}, tmp_path/'a.pt', _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match=rf'^a.pt wants (\w+\.)?{f.__name__}, which weights do not need'): read_pt(tmp_path/'a.pt')

@pytest.mark.parametrize('what', [[torch.zeros(1)], {}, {'a': 1}, {1: torch.zeros(1)}, torch.zeros(1), {'model': {'a': 1}}, {'weights': {'a': torch.zeros(1)}}], ids=str)
def test_pt_is_a_state_dict(tmp_path, what):
    torch.save(what, tmp_path/'a.pt')
    with pytest.raises(ValueError, match='a.pt is not a state dict'): read_pt(tmp_path/'a.pt')

@pytest.mark.parametrize('keep', [0, 1, 10, 300, -30])
def test_pt_cut_short(tmp_path, keep):
    torch.save({'a': torch.zeros(99)}, tmp_path/'a.pt')
    (tmp_path/'a.pt').write_bytes((tmp_path/'a.pt').read_bytes()[:keep])
    with pytest.raises(ValueError, match='a.pt is not a whole file of torch.save'): read_pt(tmp_path/'a.pt')

def test_pt_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): read_pt(tmp_path/'a.pt')

# ---- .pkl

def test_edm_golden(tmp_path):
    tensors = weights(golden('05_edm_ncsnpp'))
    ema = edm_network(tensors, img_resolution=32, label_dim=0, model_type='SongUNet', channel_mult=[2, 2, 2], odd={1})
    path = write_edm(tmp_path/'a.pkl', ema=ema, loss_fn=Persistent('EDMLoss', P_mean=-1.2), dataset_kwargs=dict(path='x'))
    read, facts = read_edm(path)
    assert_close(read, tensors, rtol=0, atol=0)
    assert facts == dict(class_name='EDMPrecond', img_resolution=32, label_dim=0, model_type='SongUNet', channel_mult=[2, 2, 2],
                         sigma_data=0.5, sigma_max=float('inf'), use_fp16=False)

def test_edm_shapes_and_types(tmp_path):
    v = {'model.t': torch.randn(4, 6).t(), 'model.h16': torch.randn(3).half(), 'model.view': torch.randn(8)[2:5], 'model.n': torch.tensor(3), 'model.none': torch.zeros(0, 2)}
    m = edm_network({})
    m.model = Persistent('X')
    for n, t in v.items(): m.model.register_buffer(n[6:], t)
    read, _ = read_edm(write_edm(tmp_path/'a.pkl', ema=m))
    assert_close(read, v, rtol=0, atol=0)

PLACES = dict(
    parameter=lambda m, bad: m._parameters.update(x=bad), buffer=lambda m, bad: m._buffers.update(x=bad), module=lambda m, bad: m._modules.update(x=bad),
    attribute=lambda m, bad: setattr(m, 'x', bad), argument=lambda m, bad: m._init_kwargs.update(x=bad), list=lambda m, bad: setattr(m, 'x', [[bad]]),
    key=lambda m, bad: setattr(m, 'x', {bad: 1}))

@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('f', [os.system, eval, subprocess.Popen, getattr, builtins.open, torch.load, nn.Linear, pickle.loads])
def test_edm_hostile(tmp_path, owned, place, f):
    m = edm_network({'model.enc.a.weight': torch.zeros(2)})
    PLACES[place](m.model.enc['a'], Call(f, does(f, owned)))
    with pytest.raises(Refused, match=rf'^a.pkl wants [\w.]+\.{f.__name__}, which weights do not need: it is refused'):
        read_edm(write_edm(tmp_path/'a.pkl', ema=m))

@pytest.mark.parametrize('part', ['loss_fn', 'augment_pipe'])
def test_edm_hostile_beside_the_network(tmp_path, owned, part):
    with pytest.raises(Refused, match=SYSTEM):
        read_edm(write_edm(tmp_path/'a.pkl', **{'ema': edm_network({'a': torch.zeros(2)}), part: Call(os.system, f'touch {owned}')}))

@pytest.mark.parametrize('zipped', [True, False])
def test_edm_hostile_in_a_storage(tmp_path, owned, zipped):
    "The bytes of a storage are a pickle inside the pickle."
    inner = io.BytesIO()
    torch.save(Call(os.system, f'touch {owned}'), inner, _use_new_zipfile_serialization=zipped)
    m = edm_network({})
    m._parameters['x'] = Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, inner.getvalue()), 0, (2,), (1,), False, {})
    with pytest.raises(Refused, match=SYSTEM): read_edm(write_edm(tmp_path/'a.pkl', ema=m))

def op(name): return f'c{name[0]}\n{name[1]}\n'.encode()
PERSISTENT, ORDERED, CONTAINER = ('torch_utils.persistence', '_reconstruct_persistent_obj'), ('collections', 'OrderedDict'), ('torch.nn.modules.container', 'ModuleDict')

@pytest.mark.parametrize('program', [
    b'\x80\x02' + op(('os', 'system')) + b'X\x04\x00\x00\x00true\x85R.',           # a plain call
    b'\x80\x02' + op(('__builtin__', 'eval')) + b'X\x01\x00\x00\x001\x85R.',       # names of Python 2
    b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.',                     # STACK_GLOBAL
    b'\x80\x04\x8c\x05torch\x8c\x0eos.path.exists\x93\x8c\x04true\x85R.',          # attributes of an allowed package
    b"(S'true'\nios\nsystem\n.",                                                     # INST
    b'(' + op(('os', 'system')) + b"S'true'\no.",                                   # OBJ
    b'\x80\x02' + op(('consistency_nb.foreign', 'Record')) + b')\x81.',             # our own class
    b'\x80\x02' + op(('copyreg', '_reconstructor')) + b'.', b'\x80\x02' + op(('functools', 'partial')) + b'.', b'\x80\x02' + op(('operator', 'attrgetter')) + b'.',
    b'\x80\x02' + op(('torch', 'load')) + b'.', b'\x80\x02' + op(('torch.storage', 'UntypedStorage')) + b'.', b'\x80\x02' + op(('numpy', 'load')) + b'.',
], ids=range(13))
def test_programs_are_refused(tmp_path, program):
    (tmp_path/'a.pkl').write_bytes(program)
    with pytest.raises(Refused, match='a.pkl wants '): read_edm(tmp_path/'a.pkl')

@pytest.mark.parametrize('program', [
    b'\x80\x02' + op(CONTAINER) + b'}X\x0c\x00\x00\x00__setstate__K\x01sb.',        # BUILD on a class: set its attributes
    b'\x80\x02' + op(CONTAINER) + b'N}X\x04\x00\x00\x00nameK\x01s\x86b.',           # the same through slots
    b'\x80\x02' + op(ORDERED) + b'N}X\x06\x00\x00\x00updateK\x01s\x86b.',           # on a builtin
    b'\x80\x02' + op(ORDERED) + b')R}X\x05\x00\x00\x00itemsK\x01sb.',               # on a dict
    b'\x80\x02' + op(PERSISTENT) + b')\x81}X\x09\x00\x00\x00__class__K\x01sb.',     # a record with a state of its own: nothing under 'ema'
    b'\x80\x02\x82\x01.', b'\x80\x02P1\n.', b'\x80\x02Q.', b'', b'.', b'\x80\x05\x8e' + struct.pack('<Q', 1 << 60) + b'x.',   # extension codes, persistent ids, nothing, too much
    b'hello', b'<html>not found</html>'], ids=range(13))
def test_programs_do_nothing(tmp_path, program):
    (tmp_path/'a.pkl').write_bytes(program)
    with pytest.raises(ValueError, match='a.pkl is not a (whole pickle|file of EDM)'): read_edm(tmp_path/'a.pkl')
    assert read_edm(write_edm(tmp_path/'b.pkl', ema=edm_network({'a': torch.ones(2)})))[0]['a'].sum() == 2   # the reader is what it was

def test_edm_cut_short(tmp_path):
    whole = write_edm(tmp_path/'a.pkl', ema=edm_network({'a': torch.zeros(300)})).read_bytes()
    for keep in range(1, len(whole), 97):
        (tmp_path/'a.pkl').write_bytes(whole[:keep])
        with pytest.raises(ValueError, match='a.pkl is not a whole pickle'): read_edm(tmp_path/'a.pkl')

def strange(change):
    m = edm_network({'a': torch.zeros(2)})
    change(m)
    return m

def storage(n): return Call(torch.storage._load_from_bytes, (b := io.BytesIO(), torch.save(torch.zeros(n)._typed_storage(), b, _use_new_zipfile_serialization=False))[0].getvalue())
def stored(n, offset, size, stride): return Call(torch._utils._rebuild_tensor_v2, storage(n), offset, size, stride, False, {})

@pytest.mark.parametrize('change', [
    lambda m: m._modules.update(x=m),                                   # a module within itself
    lambda m: m._modules.update(x=(c := Persistent('C')), y=c),         # one module in two places
    lambda m: m._parameters.update(x=3), lambda m: m._modules.update(x=3), lambda m: m.__dict__.pop('_buffers'),
    lambda m: m._buffers.update(x=stored(2, 0, (3,), (1,))), lambda m: m._buffers.update(x=stored(2, 1, (2,), (1,))),    # beyond the end
    lambda m: m._buffers.update(x=stored(2, -1, (1,), (1,))), lambda m: m._buffers.update(x=stored(2, 0, (1 << 40,), (0,))),
    lambda m: m._buffers.update(x=Call(torch._utils._rebuild_tensor_v2, 1, 2))], ids=range(10))
def test_edm_strange(tmp_path, change):
    with pytest.raises(ValueError, match='the network in a.pkl is not stored as EDM stores one'): read_edm(write_edm(tmp_path/'a.pkl', ema=strange(change)))

def test_edm_without_network(tmp_path):
    for data in ({'G_ema': 1}, {'ema': {'a': 1}}, {'ema': nn.ModuleDict()}):
        with pytest.raises(ValueError, match="a.pkl is not a file of EDM: it has no network under 'ema'"): read_edm(write_edm(tmp_path/'a.pkl', **data))

# ---- flax

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint32, torch.bool])
def test_flax_types(tmp_path, dtype):
    v = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    (tmp_path/'c').write_bytes(msgpack.packb({'a': {'b': pack(v)}, 'n': pack(v[1, 1], 3), 'e': pack(v[:0])}))
    d = read_flax(tmp_path/'c')
    assert_close(d, {'a': {'b': v}, 'n': v[1, 1], 'e': v[:0]}, rtol=0, atol=0)
    d['a']['b'].fill_(1)   # its own memory

def test_flax_is_what_flax_writes(tmp_path):
    flax = pytest.importorskip('flax.serialization')
    import numpy as np
    tree = {'a': {'kernel': np.arange(6., dtype='float32').reshape(2, 3)}, 'step': 3, 'lr': np.float32(0.5)}
    (tmp_path/'c').write_bytes(flax.msgpack_serialize(tree))
    d = read_flax(tmp_path/'c')
    assert d['step'] == 3 and d['lr'] == 0.5
    assert_close(d['a']['kernel'].numpy(), tree['a']['kernel'])

def test_flax_golden(tmp_path):
    params = weights(golden('06_jax_ncsnpp'), 'weights.online.')
    d = read_flax(write_flax(tmp_path/'c', step=1, params_ema=params))
    assert_close(d['params_ema']['Conv_0']['kernel'], params['Conv_0/kernel'])

def bad_array(shape=(2,), name='float32', raw=b'\0' * 8, code=1): return msgpack.packb({'a': msgpack.ExtType(code, msgpack.packb((shape, name, raw)))})

@pytest.mark.parametrize('data', [
    b'', b'\x80'[:0], bad_array()[:-3], bad_array() + b'\0', bad_array((3,)), bad_array((-1, -1)), bad_array(name='object'), bad_array(name='V2'), bad_array(raw=b'\0' * 7),
    bad_array(code=2), bad_array(code=9), b'\x81' * 5000, msgpack.packb({'__msgpack_chunked_array__': True}), b'\xdd\xff\xff\xff\xff', b'\xc6\xff\xff\xff\xff',
    msgpack.packb({'a': msgpack.ExtType(1, b'')})], ids=range(16))
def test_flax_broken(tmp_path, data):
    (tmp_path/'c').write_bytes(data)
    with pytest.raises(ValueError, match='c is not a whole flax checkpoint'): read_flax(tmp_path/'c')

def test_flax_other(tmp_path):
    (tmp_path/'c').write_bytes(msgpack.packb([1, 2]))
    with pytest.raises(ValueError, match='it holds no names'): read_flax(tmp_path/'c')
    with pytest.raises(ValueError, match='more than the limit of 1'): read_flax(tmp_path/'c', limit=1)
    with pytest.raises(FileNotFoundError): read_flax(tmp_path/'d')
