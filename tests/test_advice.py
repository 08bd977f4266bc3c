"""Every error that says what to do: each row provokes it, asserts the sentence, does what it says, word for word, and the call succeeds.

A row is: where the sentence is raised, what it says, the wrong call, and one or more ways of doing what it says, each of which gets the sentence.
What stands in a sentence as code is taken out of it and run. `test_no_advice_is_left_out` asks for a row for each function that gives advice."""
import ast, contextlib, io, json, os, re, shutil, traceback, types, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from consistency_nb import assemble, checkpoints, continuous, core, cost, data as data_, distances, edit, evaluate, exchange, features, files, folders, foreign, formats, launch, names, npz, objective, place
from consistency_nb import pixels, processes, references, sample, schedules, sets, stream, trigflow, viz, watch
from consistency_nb.adm import ADMAttention, ADMUNet
from consistency_nb.checkpoints import load, save
from consistency_nb.data import Images, dataset
from consistency_nb.ema import EMA, combined, reconstruct
from consistency_nb.grid import check_grid, karras_grid, levels_from_indices
from consistency_nb.losses import l2, neighbours
from consistency_nb.ncsnpp import SongUNet, fir_kernel
from consistency_nb.nets import Attention, UNet
from consistency_nb.oracle import Mixture
from consistency_nb.place import Options, Parts, check_run
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.presets import PRESETS, Preset, check_parameter, override, preset, read_parameters
from consistency_nb.sample import multistep
from consistency_nb.solvers import Churn, edm_sample, euler_step, heun_step, solve
from consistency_nb.train import Run, tensors_of

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'consistency_nb'
ROWS = []

def row(where, said, wrong, *rights): ROWS.append((where, said, wrong, rights))

def code(said, pattern, **scope):
    "The part of a sentence that is code, run."
    return eval(re.search(pattern, said)[1], globals() | scope)

def gen(): return torch.Generator().manual_seed(0)

x, t = torch.randn(4, 3, 8, 8, generator=gen()), torch.tensor([1., 2., 3., 4.])
u8 = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=gen())
grid = karras_grid(6)
f = D = lambda x, t: x / (1 + per(t, x))
def per(t, x): return core.append_dims(t, x)
def net(classes=None, **more): return UNet((8, 16), blocks=1, patch=1, attention=(), num_classes=classes, **more)

def tiny(cls=Consistency, classes=None, **facts):
    made = cls(net(classes)).eval().requires_grad_(False)
    made.facts |= dict(image_size=8) | facts
    return made

def png(path, size=(8, 8), value=90):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (value, 40, 200)).save(path)

# ---- numbers, tensors, levels

row('core.check_numbers', 'N=2.5: pass a whole number from 2', lambda: karras_grid(2.5), lambda s: karras_grid(code(s, r'from (\d+)')))
row('core.check_numbers', 'rate=1.5: pass a finite number from 0 to 1', lambda: EMA(nn.Linear(1, 1)).update(nn.Linear(1, 1), 1.5), lambda s: EMA(nn.Linear(1, 1)).update(nn.Linear(1, 1), 1))
row('core.check_batch', 'pass a floating-point tensor of shape (B, ...)', lambda: pixels.to_bytes(torch.ones(1, 3, 2, 2).long()), lambda s: pixels.to_bytes(torch.ones(1, 3, 2, 2)))
row('core.check_levels', 'pass noise levels such as grid[n], not the indices n', lambda: core.per_sample(torch.tensor([0, 1, 2, 3]), x), lambda s: core.per_sample(code(s, r'such as (\S+),', n=torch.tensor([0, 1, 2, 3])), x))
row('core.check_levels', 'pass a number or one level per sample, shape (4,)', lambda: core.per_sample(t[:3], x), lambda s: core.per_sample(t, x), lambda s: core.per_sample(2., x))
row('core.check_index', 'whole numbers (torch.long) of shape (B,), from 0 to 4', lambda: neighbours(t, grid), lambda s: neighbours(torch.tensor([0, 4]), grid))
row('core.find_device', "there is no device 'gpu' here, only: cpu", lambda: core.find_device('gpu'), lambda s: core.find_device(s.split('only: ')[1].split(', ')[0]))
row('oracle.__post_init__', 'pass (K, dim) and (K,)', lambda: Mixture(torch.ones(3), torch.ones(3), torch.ones(3)), lambda s: Mixture(torch.ones(3, 2), torch.ones(3), torch.ones(3)))
row('oracle.components', 'pass (B, 2)', lambda: Mixture(torch.ones(3, 2), torch.ones(3), torch.ones(3)).logp(torch.ones(4, 3), 1.), lambda s: Mixture(torch.ones(3, 2), torch.ones(3), torch.ones(3)).logp(torch.ones(4, 2), 1.))
row('grid._ends', 'pass 0 < eps < T <= 1e9 and 0 < rho <= 1000', lambda: karras_grid(4, 2., 1.), lambda s: karras_grid(4, 1., 1e9, 1000.))
row('grid.check_grid', 'such as karras_grid(18)', lambda: check_grid(torch.ones(2, 2)), lambda s: check_grid(code(s, r'such as (.*)$')))
row('grid.levels_from_indices', 'pass rising indices between 0 (level T) and 39 (level eps); turn round a falling list', lambda: levels_from_indices([39, 22, 0], 40), lambda s: levels_from_indices([39, 22, 0][::-1], 40))
row('solvers._one_way', 'such as grid.flip(0) for sampling', lambda: solve(D, x, [1., 3., 2.]), lambda s: solve(D, x, code(s, r'such as (\S+)')))
row('solvers._one_way', 'only euler_step can go on to 0', lambda: solve(D, x, [2., 1., 0.], heun_step), lambda s: solve(D, x, [2., 1., 0.], code(s, r'only (\w+)')))
row('solvers._one_each', 'pass one draw per step, (3, 4, 3, 8, 8)', lambda: edm_sample(D, x, 3, churn=Churn(1., noise=x)), lambda s: edm_sample(D, x, 3, churn=Churn(1., noise=torch.zeros(code(s, r'step, (\(.*\))')))))
row('schedules._list_of_levels', 'such as (3, 6, 18)', lambda: schedules.growth(1, 9, ()), lambda s: schedules.growth(1, 9, code(s, r'such as (.*)$')))
row('schedules._power_of_two', 's0 must be a power of 2 from 2 on', lambda: schedules.pd_steps(3, s0=6), lambda s: schedules.pd_steps(3, s0=2))

# ---- models and samplers

row('precond._network', 'pass the raw network, a torch.nn.Module', lambda: Denoiser('UNet'), lambda s: Denoiser(net()))
def unknown_size():
    g = Consistency(net())
    with pytest.raises(ValueError): save(g, 'm.safetensors'), load('m.safetensors').sample(1)
    return g.sample(1)
def told_size(s):
    model = Consistency(net())
    exec(re.search(r'set (\S+\])', s)[1] + ' = 8', dict(model=model))
    save(model, 'm.safetensors')
    assert model.sample(1).shape == load('m.safetensors').sample(1).shape == (1, 3, 8, 8)
row('precond.shape', "set model.facts['image_size']; for a run, save the model then", unknown_size, told_size)
row('sample._shape', 'pass (C, H, W), such as (3, 32, 32)', lambda: load('avatars32-cd').sample(1, shape=32), lambda s: load('avatars32-cd').sample(1, shape=code(s, r'such as (\(.*?\))')))
row('sample.check_levels', 'for example (80, 0.4)', lambda: sample.check_levels((1., 2.)), lambda s: sample.check_levels(code(s, r'example (\(.*?\))')))
row('sample._draws', 'pass only one of noise, generator and seeds', lambda: multistep(f, x, (80., 1.), generator=gen(), seeds=range(4)), lambda s: multistep(f, x, (80., 1.), seeds=range(4)), lambda s: multistep(f, x, (80., 1.), generator=gen()))
row('sample._draws', 'noise must have shape (1, 4, 3, 8, 8)', lambda: multistep(f, x, (80., 1.), noise=x), lambda s: multistep(f, x, (80., 1.), noise=torch.zeros(code(s, r'shape (\(.*?\))'))))
row('sample.search_levels', 'take a larger N or fewer steps', lambda: sample.search_levels(len, 3, 4), lambda s: sample.search_levels(len, 18, 4), lambda s: sample.search_levels(len, 3, 2))
row('sample._model', 'pass a Consistency or a Denoiser, such as load returns', lambda: sample.draw(net(), 1), lambda s: sample.draw(load('avatars32-cd'), 1))
row('sample.sampler', 'pass levels=, 3 numbers that fall from 80, or choose steps from 1, 2', lambda: tiny(levels={'2': [80., 1.]}).sample(1, 3),
    lambda s: tiny().sample(1, 3, levels=[code(s, r'fall from (\d+)'), 5., 1.]), lambda s: [tiny(levels={'2': [80., 1.]}).sample(1, n) for n in code(s, r'steps from (.*)$')])
row('sample.sampler', 'this model is a denoiser, levels are for a consistency function: leave them out', lambda: tiny(Denoiser).sample(1, 2, levels=(80., 1.)), lambda s: tiny(Denoiser).sample(1, 2))
row('sample.sampler', 'pass levels of at least that', lambda: tiny(cut=.5).sample(1, levels=(80., .3)), lambda s: tiny(cut=.5).sample(1, levels=(80., .5)))
row('sample.sampler', 'leave steps out', lambda: tiny().sample(1, 2, levels=(80., 5., 1.)), lambda s: tiny().sample(1, levels=(80., 5., 1.)))
row('sample.class_indices', 'this model knows no classes: leave y out (in a run, classes)', lambda: tiny().sample(1, y=0), lambda s: tiny().sample(1))
row('sample.class_indices', 'give at least one class, or leave it out', lambda: tiny(classes=3).sample(1, y=[]), lambda s: tiny(classes=3).sample(1, y=[0]), lambda s: tiny(classes=3).sample(1))
row('sample.class_indices', 'valid ones are owl, fox, or an index from 0 to 1', lambda: _named().sample(1, y='cat'), lambda s: _named().sample(3, y=['owl', 'fox', 1]))
def _named():
    g = tiny(classes=2)
    g.facts['classes'] = ['owl', 'fox']
    return g
row('ema._floats', 'pass a torch.nn.Module', lambda: EMA('net'), lambda s: EMA(net()))
row('ema._floats', 'averages need float32 parameters', lambda: EMA(net().bfloat16()), lambda s: EMA(net().bfloat16().float()))
row('ema.update', 'pass the unwrapped model that the EMA was made from', lambda: EMA(lin).update(nn.Sequential(lin), .9), lambda s: EMA(lin).update(nn.Sequential(lin)[0], .9))
lin = nn.Linear(2, 2)
row('ema._pairs', 'stored: pass pairs of an exponent and a step, such as (6.94, 1000)', lambda: reconstruct([6.94, 16.97], (1., 9)), lambda s: reconstruct([code(s, r'such as (.*)$')], (1., 9)))
row('ema._pairs', 'wanted: pass pairs of an exponent and a step, such as (6.94, 1000)', lambda: reconstruct([(1., 9)], 6.94), lambda s: reconstruct([(1., 9)], code(s, r'such as (.*)$')))
row('ema.combined', 'pass states of one network', lambda: combined([lin.state_dict(), net().state_dict()], [.5, .5]), lambda s: combined([lin.state_dict()] * 2, [.5, .5]))

# ---- networks

row('nets.norm', 'take widths that are all multiples of 32, or all of 8 up to 128', lambda: UNet((150,), attention=()), lambda s: [UNet(w, blocks=1, attention=()) for w in ((32, 288), (160, 96), (8, 128), (120, 56))])
row('nets.norm', 'take widths that are all multiples of 32, or all of 1 up to 16', lambda: ADMUNet(8, 40, (1,), 1, ()), lambda s: [ADMUNet(8, w, (1, 2), 1, ()) for w in (7, 8, 32)])
row('nets.__init__', 'take a multiple of 32, or fewer than 64', lambda: Attention(97), lambda s: [Attention(w) for w in (32, 56, 96, 288)])
row('nets.check_inputs', 'pass (B, 3, H, W), B > 0, with H and W multiples of 2', lambda: net()(x[:, :, 1:], t), lambda s: net()(x, t))
row('nets.check_inputs', 'pass ln(t)/4 of shape (4,)', lambda: net()(x, t[:1]), lambda s: net()(x, t.log() / 4))
row('nets.check_inputs', 'pass a level per image, to a network built with two_levels=True', lambda: net()(x, t, r=t), lambda s: UNet(channels=(8, 8), emb=8, two_levels=True)(x, t, r=t))
row('nets.check_inputs', 'this network knows no classes: leave y out', lambda: net()(x, t, t.long()), lambda s: net()(x, t))
row('nets.check_inputs', 'whole numbers (torch.long) in 0..4, or -1 for any class', lambda: net(5)(x, t, t), lambda s: net(5)(x, t, torch.tensor([0, 4, -1, 2])))
row('nets.rule', 'such as (1, 2)', lambda: ADMUNet(8, 32, (), 1, ()), lambda s: ADMUNet(8, 32, code(s, r'such as (.*)$'), 1, (), num_head_channels=32))
row('nets.probability', 'take it from [0, 1)', lambda: net(dropout=1.), lambda s: net(dropout=0.))
row('nets.resolutions', 'take a multiple of 4, or a shorter channel_mult', lambda: SongUNet(30, 32, (1, 1, 1), 1, ()), lambda s: SongUNet(32, 32, (1, 1, 1), 1, ()), lambda s: SongUNet(30, 32, (1, 1), 1, ()))
row('ncsnpp.fir_kernel', 'such as (1, 3, 3, 1) or (1, 1)', lambda: SongUNet(8, 32, (1, 1), 1, (), resample_filter=(1, 2)), *[lambda s, k=k: SongUNet(8, 32, (1, 1), 1, (), resample_filter=code(s, k)) for k in (r'such as (\(.*?\))', r'or (\(.*?\));')])
row('ncsnpp.conditions', 'this network takes (4, 9), or None', lambda: SongUNet(8, 32, (1,), 1, (), augment_dim=9)(x, t, None, torch.ones(4, 3)), lambda s: SongUNet(8, 32, (1,), 1, (), augment_dim=9)(x, t, None, torch.ones(4, 9)))
row('ncsnpp.rule', "valid ones are 'fourier' and 'positional'", lambda: SongUNet(8, 32, (1,), 1, (), embedding='waves'), lambda s: SongUNet(8, 32, (1,), 1, (), embedding='positional'))
row('adm.__init__', 'choose a head width that divides it', lambda: ADMAttention(96, 64), lambda s: ADMAttention(96, 48))
row('adm.adm_plan', 'give pixels, here some of [8, 4]', lambda: ADMUNet(8, 32, (1, 1), 1, (3,), num_head_channels=32), lambda s: ADMUNet(8, 32, (1, 1), 1, code(s, r'of (\[.*\])'), num_head_channels=32))

# ---- weights of others

def adm(**changes): return ADMUNet(**(dict(image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_head_channels=32) | changes))
def theirs(made, whose='openai'): return {n: v for key, parts in names.weight_names(made, whose).items() if parts for n, v in zip(parts, made.state_dict()[key].chunk(len(parts)))}
def song(**changes): return SongUNet(**(dict(image_size=8, model_channels=32, channel_mult=(1, 1), num_blocks=1, attn_resolutions=()) | changes))

row('names.weight_names', 'valid ones are: openai, edm, diffusers, flax', lambda: names.weight_names(adm(), 'jax'), lambda s: [names.weight_names(adm(), w) for w in s.split('are: ')[1].split(', ')])
row('names.qkv_rows', 'valid ones are: three_heads, heads_three, channels_three', lambda: names.qkv_rows(torch.ones(12, 1), 2, 'qkv'), lambda s: [names.qkv_rows(torch.ones(12, 1), 2, w) for w in s.split('are: ')[1].split(', ')])
row('names.assemble', 'pass a dict of names and tensors', lambda: names.from_openai(adm(), []), lambda s: names.from_openai(adm(), theirs(adm())))
row('names.assemble', 'build the network with the settings of these weights, and pass it as net=', lambda: names.from_openai(adm(num_res_blocks=2), theirs(adm())), lambda s: names.from_openai(net=adm(), tensors=theirs(adm())), lambda s: formats.load_openai(theirs(adm()), net=adm()))
row('names.check_conventions', 'build it by make_net(net.spec | EDM_CONVENTIONS)', lambda: names.from_edm(adm(), {}),
    lambda s: names.check_conventions(code(s, r'by (.*)$', make_net=formats.make_net, net=adm(), EDM_CONVENTIONS=names.EDM_CONVENTIONS), names.EDM_CONVENTIONS, ''))
row('names.diffusers_config', 'only a channel_mult that begins with 1 and at least 32 channels everywhere', lambda: names.diffusers_config(adm(channel_mult=(2, 2))), lambda s: names.diffusers_config(adm()))
def kind_of_a_run(model_file, **more):
    "What comes of `load` with kind=, saved, is what a run opens."
    for kind in 'Denoiser', 'Consistency':
        save(load(model_file, kind=kind, **more), 'mine.safetensors')
        assert type(load('mine.safetensors')).__name__ == kind
def my_pt():
    torch.save(theirs(adm()), 'my.pt')
    return load('my.pt')
row('formats.load_openai', "pass kind='Denoiser' or kind='Consistency'; for a run, save the model that comes of it", my_pt, lambda s: kind_of_a_run('my.pt', net=adm()))
def small_pt():
    torch.save(theirs(adm()), 'my.pt')
    return load('my.pt', kind='Consistency')
row('formats.openai_net', 'pass net=ADMUNet(...); for a run, save the model that comes of it', small_pt, lambda s: kind_of_a_run('my.pt', net=adm()))
def msgpack_file(name='checkpoint_8'):
    import msgpack
    def ext(v): return msgpack.ExtType(1, msgpack.packb((v.shape, str(v.dtype), v.tobytes())))
    flat = {n: (v.flatten(1).T if 'NIN' in n and v.ndim == 4 else v.permute(2, 3, 1, 0) if v.ndim == 4 else v.T if v.ndim == 2 else v).contiguous().numpy() for n, v in theirs(song(), 'flax').items()}
    Path(name).write_bytes(msgpack.packb({n: ext(v) for n, v in flat.items()}))
    return name
row('formats.load_jcm', "pass kind='Denoiser' or kind='Consistency'; for a run, save the model that comes of it", lambda: load(msgpack_file()), lambda s: kind_of_a_run('checkpoint_8', net=song()))
row('foreign.read_flax', 'open it by read_flax(path, limit=...), and give load_jcm what comes of it', lambda: foreign.read_flax(msgpack_file(), limit=10),
    lambda s: formats.load_jcm(foreign.read_flax('checkpoint_8', limit=1 << 30), net=song(), kind='Denoiser'))
row('formats.publish', 'valid ones are: Denoiser, Consistency', lambda: formats.load_openai(theirs(adm()), net=adm(), kind='EDM'), lambda s: [formats.load_openai(theirs(adm()), net=adm(), kind=k) for k in s.split('are: ')[1].split(', ')])
row('formats.make_net', "valid ones are: UNet, SongUNet, ADMUNet, as 'cls' beside their arguments", lambda: formats.make_net(dict(channels=(8, 16))), lambda s: formats.make_net(dict(cls='UNet', channels=(8, 16))))
def torn(name, write):
    write(name)
    Path(name).write_bytes(Path(name).read_bytes()[:-40])
def torn_pt():
    torn('ct_cat256.pt', lambda p: torch.save(theirs(adm()), p))
    load('ct_cat256.pt', net=adm())
def pt_again(s):
    torch.save(theirs(adm()), 'ct_cat256.pt')
    load('ct_cat256.pt', net=adm())
row('foreign.one_sentence', 'not a whole file of torch.save: fetch or save it again', torn_pt, pt_again)
def torn_flax():
    torn('ct_8', msgpack_file)
    load('ct_8', net=song())
def flax_again(s):
    (Path('ct-run')).mkdir()
    load(msgpack_file('ct-run/checkpoint'), net=song())
row('foreign.one_sentence', 'not a whole flax checkpoint: fetch or save it again', torn_flax, flax_again)
row('foreign.read_edm', 'pass a .pkl of EDM', lambda: foreign.read_edm('.'))   # such a file: tests/test_foreign.py
def torn_pipeline():
    exchange.to_diffusers(Consistency(adm()), 'pipe')
    torn('pipe/unet/diffusion_pytorch_model.safetensors', lambda p: None)
    load('pipe')
def pipeline_again(s):
    exchange.to_diffusers(Consistency(adm()), 'pipe')
    load('pipe')
row('exchange._read_weights', 'save or fetch it again', torn_pipeline, pipeline_again)
def without_weights():
    exchange.to_diffusers(Consistency(adm()), 'pipe')
    Path('pipe/unet/diffusion_pytorch_model.safetensors').unlink()
    load('pipe')
row('exchange._weight_files', 'save or fetch the folder again', without_weights, pipeline_again)
def network_alone(**kind):
    exchange.to_diffusers(Consistency(adm()), 'pipe')
    load('pipe/unet', **kind)
row('exchange.from_diffusers', "pass kind='Consistency' or 'Denoiser'", network_alone, lambda s: network_alone(kind='Consistency'), lambda s: network_alone(kind='Denoiser'))
def of_a_kind(**kind):
    exchange.to_diffusers(Consistency(adm()), 'pipe')
    load('pipe', **kind)
row('exchange.from_diffusers', 'leave kind out', lambda: of_a_kind(kind='Denoiser'), lambda s: of_a_kind())
def other_config():
    for folder, res in ('pipe', 1), ('other', 2): exchange.to_diffusers(Consistency(adm(num_res_blocks=res)), folder)
    shutil.copy('other/unet/config.json', 'keep.json')
    shutil.copy('pipe/unet/config.json', 'right.json')
    shutil.copy('keep.json', 'pipe/unet/config.json')
    load('pipe')
def right_config(s):
    shutil.copy('right.json', 'pipe/unet/config.json')
    load('pipe')
row('formats.publish', 'give the config.json that belongs to these weights', other_config, right_config)

# ---- models in files

row('checkpoints.as_json', 'facts must be numbers, text, lists and dicts', lambda: save(tiny(), 'a.safetensors', dict(a=x)), lambda s: save(tiny(), 'a.safetensors', dict(a=[1, 'x', {}])))
row('checkpoints.save', 'pass a Denoiser or a Consistency around a network with a spec, such as UNet', lambda: save(net(), 'a.safetensors'), lambda s: [save(kind(net()), 'a.safetensors') for kind in (Denoiser, Consistency)])
row('checkpoints.save', 'pass a dict', lambda: save(tiny(), 'a.safetensors', [1]), lambda s: save(tiny(), 'a.safetensors', {}))
row('checkpoints.save', 'a model is stored as .safetensors', lambda: save(tiny(), 'a.pt'), lambda s: save(tiny(), 'a' + re.search(r'as (\S+)', s)[1]))
def torn_model():
    torn('a.safetensors', lambda p: save(tiny(), p))
    load('a.safetensors')
row('checkpoints.read', 'not a whole safetensors file', torn_model, lambda s: (save(tiny(), 'a.safetensors'), load('a.safetensors')))
row('checkpoints.find', 'give a file, a folder that holds model.safetensors, or one of: avatars32-cd', lambda: load('mine'),
    lambda s: [load(n.strip()) for n in re.search(r'one of: (.*?);', s)[1].split(',')], lambda s: (save(tiny(), 'run/model.safetensors'), load('run'), load('run/model.safetensors')))
row('checkpoints.load', 'models have one of the endings .safetensors', lambda: (Path('m.bin').write_bytes(b'x'), load('m.bin')), lambda s: (save(tiny(), 'm.safetensors'), load('m.safetensors')))
row('checkpoints.load', 'leave kind out', lambda: load('avatars32-cd', kind='Denoiser'), lambda s: load('avatars32-cd'))

# ---- pictures and data sets

row('pixels.check_bytes', 'pass pictures as bytes (torch.uint8) of shape (B, C, H, W)', lambda: Images(x), lambda s: Images(u8))
row('pixels.check_channels', 'channels 1 or 3 are possible', lambda: (png('p/a.png'), dataset('p', size=8, channels=4)), lambda s: [dataset('p', size=8, channels=c) for c in (1, 3)])
def odd_tiff():
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save('a.tif')
    pixels.read_picture('a.tif', 8)
def saved_with(bits):
    Image.fromarray(np.zeros((8, 8), dict(eight=np.uint8, sixteen=np.uint16)[bits])).save('a.tif')
    pixels.read_picture('a.tif', 8)
row('pixels.read_square', 'have no known range: save it with 8 or 16 bits', odd_tiff, lambda s: saved_with('eight'), lambda s: saved_with('sixteen'))
def bad_picture():
    png('p/a.png')
    Path('p/b.png').write_text('no picture')
    dataset('p', size=8)
def replaced(s):
    png('p/b.png')
    assert len(dataset('p', size=8)) == 2
def away(s):
    Path('p/b.png').unlink()
    assert len(dataset('p', size=8)) == 1
row('folders.read_all', 'mend it, replace it or take it away', bad_picture, replaced, away)
def dead_link():
    png('p/a.png')
    Path('p/b.png').symlink_to('gone.png')
    dataset('p', size=8)
row('folders._dead', 'mend it, replace it or take it away', dead_link, lambda s: (Path('p/b.png').unlink(), replaced(s)), away)
row('pixels.write_picture', 'pass a batch of one, and a name that ends in .png', lambda: pixels.write_picture(x, 'a.xyz'), lambda s: pixels.write_picture(x[:1], 'a.png'))
def labelled_folder(table):
    for k in 'ab': png(f'p/{k}/1.png')
    Path('p/dataset.json').write_text(table if isinstance(table, str) else json.dumps(table))
    return dataset('p', size=8)
def no_table(s):
    Path('p/dataset.json').unlink()
    assert dataset('p', size=8).classes == ('a', 'b')
row('folders.stated_labels', 'complete it, or take it away to have classes by folders', lambda: labelled_folder(dict(labels=[['a/1.png', 3]])),
    lambda s: labelled_folder(dict(labels=[['a/1.png', 3], ['b/1.png', 5]])), no_table)
row('folders.stated_labels', 'or null for the list', lambda: labelled_folder('{}'), lambda s: labelled_folder('{"labels": null}'),
    lambda s: labelled_folder(re.search(r'should be (\{.*\})', s)[1].replace('00000/img00000000.png', 'a/1.png').replace('...', '["b/1.png", 0]')))
def packed(cut=0):
    png('a.png', (32, 32))
    with zipfile.ZipFile('s.zip', 'w') as z: z.write('a.png')
    Path('s.zip').write_bytes(Path('s.zip').read_bytes()[:-cut or None])
    return dataset('s.zip', size=8)
row('folders.open_zip', 'copy or pack it again', lambda: packed(30), lambda s: packed())
def lmdbs(which=''):
    import lmdb
    for n in () if Path('base').exists() else ('one', 'two'):
        png('a.png')
        Path(f'base/{n}').mkdir(parents=True)
        with lmdb.open(f'base/{n}', map_size=1 << 20) as env, env.begin(write=True) as txn: txn.put(b'0', Path('a.png').read_bytes())
    return dataset(Path('base')/which, size=8)
row('sets.listed', 'name one of one, two', lambda: lmdbs(), lambda s: [lmdbs(n) for n in s.split('one of ')[1].split(', ')])
row('sets.listed', 'holds no pictures', lambda: (Path('p').mkdir(), dataset('p', size=8)), lambda s: (png('p/a' + re.search(r'\((\.\w+)', s)[1]), dataset('p', size=8)))
def array(a, name='a.npy', **more):
    np.save(name, a) if name.endswith('.npy') else np.savez(name, **{k: v for k, v in a.items()})
    return dataset(name, **more)
rgb = u8.permute(0, 2, 3, 1).contiguous().numpy()
row('sets.channels_first', 'bytes (uint8) of shape (M, H, W, C) or (M, C, H, W) are needed', lambda: array(rgb.astype(float)), lambda s: array(rgb), lambda s: array(u8.numpy()))
row('sets.read_arrays', 'the pictures must be called arr_0, the labels arr_1', lambda: array(dict(x=rgb), 'a.npz'), lambda s: array(dict(arr_0=rgb, arr_1=np.arange(20)), 'a.npz').labels.sum())
row('sets.read_arrays', 'pass a .npy, or a .npz with arr_0', lambda: sets.arrays('nothing'), lambda s: (array(rgb), sets.arrays('a.npy')))
row('sets.arrays', 'cut and resize them before, or pass a folder of picture files, which are made square at any size', lambda: array(rgb[:, :4], size=16), lambda s: array(rgb.repeat(2, 1).repeat(2, 2), size=16), lambda s: (png('p/a.png', (9, 5)), dataset('p', size=16)))
row('data.by_path', 'say at which, such as dataset(', lambda: (png('p/a.png'), dataset('p')), lambda s: code(s, r'such as (.*)$'))
row('data.by_path', 'unknown data set', lambda: dataset('avatar32'), lambda s: dataset(re.search(r'ones are: (\w+)', s)[1] + '-10'))
row('data.by_path', 'p/q is not there', lambda: dataset('p/q', size=8), lambda s: (png('p/q/a.png'), dataset('p/q', size=8)))
row('data.dataset', 'avatars64-20 has 64 pixels, not 32: ask for 64 (size=, in a run image_size)', lambda: dataset('avatars64-20', size=32), lambda s: dataset('avatars64-20', size=code(s, r'ask for (\d+)')))
def bedrooms(env, monkeypatch=None):
    png('sets/lsun_bedroom64/a.png')
    return dataset('lsun_bedroom64', **env)
def by_variable(s):
    os.environ[re.search(r'Set (\w+)', s)[1]] = 'sets'
    try: bedrooms({})
    finally: del os.environ['CONSISTENCY_NB_DATA']
row('data.place', 'Set CONSISTENCY_NB_DATA to the folder that holds lsun_bedroom64/, or give dataset its own as root=', lambda: dataset('lsun_bedroom64'), by_variable, lambda s: bedrooms(dict(root='sets/lsun_bedroom64')))
row('data.dataset', 'or put exported pictures there', lambda: dataset('lsun_cat64', root='cats'), lambda s: (png('cats/1.png'), dataset('lsun_cat64', root='cats')))
def classes_there(s):
    for n in 'n01440764', 'n01443537': png(f'net/{n}/1.JPEG'.replace('.JPEG', '.jpeg'))
    with pytest.warns(UserWarning, match='2 class folders'): assert dataset('imagenet8', root='net').labels.tolist() == [0, 1]
row('data.dataset', 'n01440764/*.JPEG and so on', lambda: dataset('imagenet8', root='net'), classes_there)
row('sets.imagenet', 'has no class folders', lambda: (png('net/a.jpeg'), dataset('imagenet8', root='net')), lambda s: (Path('net/a.jpeg').unlink(), classes_there(s)))
def cifar(**more):
    "torchvision's class, whose download only makes the folder."
    import torchvision.datasets as d
    class Fake:
        data, targets = rgb, [0] * 20
        def __init__(self, root, train, download):
            if download: (Path(root)/'cifar-10-batches-py').mkdir(parents=True, exist_ok=True)
            elif not (Path(root)/'cifar-10-batches-py').exists(): raise RuntimeError('Dataset not found or corrupted')
    old, d.CIFAR10 = d.CIFAR10, Fake
    try: return dataset('cifar10', root='c', **more)
    finally: d.CIFAR10 = old
def from_the_environment(s):
    shutil.rmtree('c')
    os.environ[re.search(r'a run (\w+)=1', s)[1]] = '1'
    try: cifar()
    finally: del os.environ['CONSISTENCY_NB_DOWNLOAD']
row('sets.cifar10', 'have it fetched to there: dataset takes download=True, and a run CONSISTENCY_NB_DOWNLOAD=1', lambda: cifar(), lambda s: cifar(download=True), from_the_environment)
row('sets.folder_ranks', '(lines such as "n02119789 1 kit_fox")', lambda: sets.folder_ranks(Path('map.txt')), lambda s: (Path('map.txt').write_text(code(s, r'such as (".*")')), sets.folder_ranks(Path('map.txt'))))
row('data.check_data', "such as dataset('avatars32')", lambda: data_.pixel_moments('avatars32'), lambda s: data_.pixel_moments(dataset('avatars32-20')))

row('launch.read_preset', 'pass that of a run', lambda: (Path('p.json').write_text('{"nam": 1}'), launch.read_preset('p.json')), lambda s: launch.read_preset(re.search(r'such as (\w+)', s)[1]))
f0, x0_, t0 = Consistency(UNet((8, 8), blocks=1, patch=1, attention=(), emb=8)), torch.randn(2, 3, 8, 8), torch.tensor([0., 1.])
row('continuous._above_0', 'pass levels above 0', lambda: continuous.continuous_loss(f0, x0_, t0, x0_), lambda s: continuous.continuous_loss(f0, x0_, t0 + .1, x0_))
row('trigflow._derivable', 'pass levels above 0', lambda: trigflow.scm_loss(f0, x0_, t0, x0_), lambda s: trigflow.scm_loss(f0, x0_, t0 + .1, x0_))
row('trigflow._derivable', 'pass float32', lambda: trigflow.scm_loss(f0, x0_.half(), t0.half() + 1, x0_.half(), step=1e-3), lambda s: trigflow.scm_loss(f0, x0_, t0 + 1, x0_, step=1e-3))
row('trigflow._derivable', 'pass a number for each image', lambda: trigflow.scm_loss(f0, x0_, t0 + 1, x0_, weight=torch.ones(2, 1)), lambda s: trigflow.scm_loss(f0, x0_, t0 + 1, x0_, weight=torch.ones(2)))

# ---- presets and parameters

ct, cd, pd_ = (preset(f'avatars32_{m}') for m in ('ct', 'cd', 'pd'))
row('record.need_preset', 'pass a Preset, such as preset("avatars32_cd")', lambda: override('avatars32_cd', lr=1.), lambda s: override(code(s, r'such as (.*)$'), lr=1.))
row('presets.preset', 'valid ones are: avatars32_{edm,', lambda: preset('avatars_cd'), lambda s: [preset(scene + n) for scene, runs in re.findall(r'(\w+_){(.*?)}', s) for n in runs.split(',')])
def faulty(said, p, bad, *good): row('record.check_preset', said, lambda: override(p, **bad), *[lambda s, g=g: override(p, **(bad | (g(s) if callable(g) else g))) for g in good])
faulty('pass a number from 1 to 16384', ct, dict(image_size=0), lambda s: dict(image_size=code(s, r'from (\d+)')), lambda s: dict(image_size=code(s, r'to (\d+)')))
faulty('such as (3, 6, 18)', ct, dict(growth=[9, 3]), lambda s: dict(growth=code(s, r'such as (.*)$')))
faulty('pass an eps below T', ct, dict(eps=3., T=2.), dict(eps=1.))
faulty('pass a power of 2 from 2 on', pd_, dict(s0=6), dict(s0=2))
faulty("pass 'uniform' or 'lognormal'", pd_, dict(draw='between'), dict(draw='uniform'), dict(draw='lognormal'))
faulty('pass 0 < s0 <= s1, or s0=0 for a fixed or staged grid', ct, dict(s0=9, s1=3), dict(s0=3), dict(s0=0))
faulty('give both, or mu0=0 and mu', ct, dict(mu0=0.9), dict(s0=2, s1=150), dict(mu0=0., mu=0.9))
faulty('valid ones are: UNet, SongUNet, ADMUNet; leave cls out for a network of your own', ct, dict(net=dict(cls='Mine')), dict(net=dict(cls='UNet')), dict(net={}))
faulty('valid ones are: l1, l2, pseudo_huber, lpips', ct, dict(distance='mse'), dict(distance='lpips'))
faulty("data='': give a name", ct, dict(data=''), dict(data='avatars32'))
faulty("leave it out with form='pairs'", ct, dict(net=ct.net | dict(two_levels=True)), dict(net=ct.net))
faulty('pass q**stages up to 100,000', override(ct, draw='ect'), dict(q=256., stages=4), dict(q=17.), dict(stages=2))
faulty('pass a batch from 4 on', preset('avatars32_tcm'), dict(batch=3), dict(batch=4))
faulty("pass net with two_levels true", ct, dict(form='meanflow', draw='lognormal', weight='uniform', growth=()), dict(net=ct.net | dict(two_levels=True)))
row('record.override', 'valid ones are: name, method', lambda: override(ct, learning_rate=1.), lambda s: override(ct, lr=1.))
row('record.same_type', "parameter 'lr' must be float, such as 0.0004", lambda: override(ct, lr='fast'), lambda s: override(ct, lr=code(s, r'such as ([\d.]+)')))
def as_papermill(s):
    "What papermill's command line makes of the words that the sentence gives."
    import click.testing, papermill.cli
    seen, old = {}, papermill.cli.execute_notebook
    papermill.cli.execute_notebook = lambda **k: seen.update(k['parameters'])
    try: click.testing.CliRunner().invoke(papermill.cli.papermill, ['a.ipynb', 'b.ipynb', *re.search(r'with (-r \S+ \S+)', s)[1].split()], catch_exceptions=False)
    finally: papermill.cli.execute_notebook = old
    read_parameters(dict(data='x'), dict(seen))
def as_launch(s):
    import shlex
    option, value = shlex.split(re.search(r'or (--.*) \(launch\)', s)[1])
    assert override(ct, **{option[2:]: launch.plain(value)}).data == '3'   # as `read_options` reads a pair
row('record.same_type', "it is text with -r data 3 (papermill) or --data '\"3\"' (launch)", lambda: override(ct, data=3), as_papermill, as_launch)
row('record.check_parameter', 'must be a number from 0 to 4294967295', lambda: check_parameter('seed', 0, -1), lambda s: check_parameter('seed', 0, code(s, r'to (\d+)')))
row('record.check_parameter', "must be 'auto', 'cpu' or 'cuda'", lambda: check_parameter('device', 'auto', 'gpu'), lambda s: [check_parameter('device', 'auto', v) for v in ('auto', 'cpu', 'cuda')])
row('record.read_parameters', 'valid ones are: seed, lr', lambda: read_parameters(dict(seed=0), dict(seed=0, seeds=3), ('lr',)), lambda s: read_parameters(dict(seed=0), dict(seed=3, lr=.1), ('lr',)))
row('objective.autocast_dtype', 'valid ones are: auto, fp32, bf16, fp16', lambda: objective.autocast_dtype('half', 'cpu'), lambda s: [objective.autocast_dtype(w, 'cpu') for w in s.split('are: ')[1].split(', ')])
row('cost._is_preset', 'such as preset("cifar10_cd")', lambda: cost.estimate('cifar10_cd'), lambda s: cost.estimate(code(s, r'such as (.*)$'), 1e12))

# ---- a run

P = override(ct, image_size=8, init='random', mu=0.9, draw='uniform', distance='l2', batch=4, iterations=2, sigma_data=0.58, net=dict(cls='UNet', num_classes=10))
plain = override(P, net=dict(cls='UNet'))
def images(classes=None, of=u8): return Images(of, 'mine', None if classes is None else torch.arange(20) % classes)
def parts(K=None, classes=None, **changes): return Parts(**(dict(net=net(K), data=images(classes), distance=l2) | changes))
def fine(p, parts, **o): Run(p, parts, Options(device='cpu', **o)).step()
row('place.check_run', "such as dataset('avatars32')", lambda: check_run(plain, parts(data='avatars32'), Options()), lambda s: check_run(override(plain, image_size=32), parts(data=dataset('avatars32-20')), Options()))
row('place.check_run', 'pass a network, such as UNet()', lambda: check_run(plain, parts(net='UNet'), Options()), lambda s: check_run(plain, parts(net=code(s, r'such as (.*)$')), Options()))
row('place.check_run', 'needs a distance: pass a function', lambda: check_run(plain, parts(distance=None), Options()), lambda s: fine(plain, parts(distance=l2)))
row('place.check_run', 'set image_size, and in_channels in net, to what they have', lambda: check_run(plain, parts(data=images(of=u8[:, :1].repeat(1, 1, 2, 2))), Options()),
    lambda s: fine(override(plain, image_size=16, net=dict(cls='UNet', in_channels=1)), parts(net=net(in_channels=1), data=images(of=u8[:, :1].repeat(1, 1, 2, 2)))))
row('place.check_run', 'takes multiples of 2 pixels: set image_size to 8', lambda: check_run(override(plain, image_size=7), parts(data=images(of=u8[..., :7, :7])), Options()), lambda s: fine(override(plain, image_size=6), parts(data=images(of=u8[..., :6, :6]))))
row('place.check_run', 'mine has none: set num_classes=None in net', lambda: check_run(P, parts(10), Options()), lambda s: fine(override(P, net=P.net | dict(num_classes=None)), parts()))
row('place.check_run', 'mine has 20 classes, avatars32_ct knows 10: set num_classes=20 in net', lambda: check_run(P, parts(10, 20), Options()), lambda s: fine(override(P, net=P.net | dict(num_classes=20)), parts(20, 20)))
row('place.check_run', 'set it to False, or shard=False and dropout=0', lambda: check_run(override(plain, dropout=.1), parts(), Options(compile=True, shard=True)),
    lambda s: check_run(override(plain, dropout=.1), parts(), Options(compile=False, shard=True)), lambda s: check_run(override(plain, dropout=0.), parts(), Options(compile=True, shard=False)))
row('place.check_run', "mine has none: set num_classes=None in net and init='random'", lambda: check_run(override(P, init='runs/mine'), parts(10), Options()),
    lambda s: fine(override(P, net=P.net | dict(num_classes=None), init='random'), parts()))
row('place.portions', 'make it a multiple of 6', lambda: place.portions(64, 3, 0, 2), lambda s: place.portions(6, 3, 0, 2), lambda s: place.portions(66, 3, 0, 2))

small = dict(cls='UNet', channels=[8, 16], blocks=1, patch=1, attention=[], emb=8, num_classes=10)
def my_teacher(**changes):
    model = Denoiser(formats.make_net(small), 0.63)
    model.facts |= dict(data='avatars32', image_size=32)
    save(model, 'edm/model.safetensors')
    return override(cd, data='avatars32-20', teacher='edm', **changes)
def read_by(p): return assemble.parts_of(p, Options(device='cpu'))
row('assemble.first_weights', "leave net out (in Python: net=load('edm').net.spec), or set init='random'", lambda: read_by(my_teacher()), lambda s: read_by(my_teacher(net=code(s, r'net=(load\(.*?\)\.net\.spec)'))),
    lambda s: read_by(my_teacher(init='random')), lambda s: read_by(assemble.adapted(override(cd, data='avatars32-20'), dict(teacher='edm'))))
def known_names(s):
    "The presets and notebooks in the commands exist; tests/test_field_runs.py runs them."
    lines = [l.split() for l in s.splitlines() if l.startswith('  papermill')]
    assert [Path(l[1]).name for l in lines] == ['train_edm.ipynb', 'train_cd.ipynb'] and all((ROOT/l[1]).exists() and l[5] in PRESETS for l in lines)
def my_own(name):
    png('p/a.png', (32, 32))
    return read_by(Preset(**(vars(my_teacher()) | dict(name=name, data='p', net=small | dict(num_classes=None)))))
row('assemble.first_stage', 'with cut=0.3 pass init=, a consistency function', lambda: assemble.first_stage(override(preset('avatars32_tcm'), init='avatars32-edm'), 'avatars32'),
    lambda s: assemble.first_stage(preset('avatars32_tcm'), 'avatars32'))
def second_stage():
    f = tiny(cut=.3, image_size=32)
    save(f, 'second/model.safetensors')
    return assemble.first_stage(override(preset('avatars32_tcm'), init='second'), 'avatars32')
row('assemble.first_stage', 'pass init=, its own first stage', second_stage, lambda s: assemble.first_stage(preset('avatars32_tcm'), 'avatars32'))
row('assemble.familiar', 'Train a diffusion model of your pictures, and begin with it', lambda: my_own('avatars64_cd'), known_names)
row('assemble.familiar', 'Train a diffusion model of your pictures, and begin with it', lambda: my_own('mine'), known_names)
def fit(out='run', p=plain, **more): return launch.fit_in(out, p, parts(), Options(device='cpu'), **more)
row('launch.fit_in', 'pass a function (run, record), or None', lambda: fit(on_log='x'), lambda s: fit(on_log=lambda run, record: None), lambda s: fit(out='b', on_log=None))
def options(*words): return launch.read_options(['--preset', 'avatars32_ct', *words])
def both(*words):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try: return options(*words)
        except SystemExit: raise ValueError(said.getvalue()) from None
row('test_advice.both', 'it must be True or False', lambda: both('--shard', 'yes'), lambda s: both('--shard', 'True'), lambda s: both('--shard', 'False'))
row('launch.read_options', 'expected pairs such as --batch 64', lambda: options('--batch=64'), lambda s: options(*re.search(r'such as (.*?),', s)[1].split()))

# ---- files of a run

def refuse(*blocked):
    "Something in the way of a file; the sentence does not know what, and says what the system says."
    Path('run').mkdir(exist_ok=True)
    for n in blocked: Path(f'run/{n}/x').mkdir(parents=True)
def cleared(*blocked):
    for n in blocked: shutil.rmtree(f'run/{n}')
    assert fit().k == 2
row('files.write_state', 'mend that, and make the same call again; there is none from before', lambda: (refuse('.checkpoint.safetensors'), fit()), lambda s: cleared('.checkpoint.safetensors'))
row('watch.append', 'mend that, and make the same call again', lambda: (refuse('metrics.jsonl'), _late()), lambda s: cleared('metrics.jsonl'))
def _late(): watch.append(Path('run/metrics.jsonl'), dict(step=1))
def removed(s, out='run', call=None):
    "Exactly the files that are named."
    said = re.findall(r'checkpoint\w*\.safetensors', s.split('remove ')[1])
    for n in said: (Path(out)/n).unlink()
    assert (call or fit)().k == 2
def damaged(both=True):
    fit(save_every=0.)
    for n in 'checkpoint', 'checkpoint_before':
        if (Path('run')/f'{n}.safetensors').exists() and (both or n == 'checkpoint'): torn(f'run/{n}.safetensors', lambda p: None)
    if not both: Path('run/checkpoint_before.safetensors').unlink()
    return fit()
row('files.latest_state', 'remove checkpoint.safetensors and checkpoint_before.safetensors to begin the run again', lambda: damaged(), removed)
row('files.latest_state', 'remove checkpoint.safetensors to begin the run again', lambda: damaged(both=False), removed)
def other_rate(out='run'): return fit(out, override(plain, lr=.1))
row('files.go_on', 'choose another out_dir, or remove checkpoint.safetensors and checkpoint_before.safetensors', lambda: (fit(save_every=0.), other_rate()), lambda s: other_rate('other'), lambda s: removed(s, call=other_rate))
HELD = []
def taken():
    Path('run').mkdir()
    HELD.append(files.lock(Path('run')))
    return fit()
row('files.lock', 'wait until it has ended (a notebook: until its kernel is shut down), or choose another out_dir', taken, lambda s: fit('other'), lambda s: (files.free(Path('run'), HELD.pop()), fit()))
row('files.check_folder', "such as 'runs/mine'", lambda: fit(''), lambda s: fit(code(s, r"such as (.*)$")))
kept = override(plain, snapshots=2)
row('launch.load_average', 'run has no averages: train with snapshots=32', lambda: (fit(), launch.load_average('run', .05)), lambda s: launch.load_average('more', .05, like=launch.model_of(fit('more', override(plain, snapshots=code(s, r'snapshots=(\d+)'))))))
row('launch.load_average', 'step=3: pass a step of the run up to 2', lambda: launch.load_average('run', .05, 3, like=launch.model_of(fit(p=kept))), lambda s: launch.load_average('run', .05, code(s, r'up to (\d+)'), like=tiny()))
row('launch.load_average', 'pass a model of this run, such as model_of returns', lambda: launch.load_average('run', .05, like=fit(p=kept)), lambda s: launch.load_average('run', .05, like=launch.model_of(fit(p=kept))))
row('launch.load_average', 'pass like= a model of this run', lambda: (fit(p=kept), launch.load_average('run', .05, like=tiny(classes=3))), lambda s: launch.load_average('run', .05, like=launch.model_of(fit(p=kept))))
row('watch.check_tracker', "valid ones are: ", lambda: watch.check_tracker('paper'), lambda s: watch.check_tracker(code(s, r"; ('') for none")), lambda s: watch.check_tracker('tensorboard'))
row('processes.check_counts', 'make num_processes a multiple of num_nodes', lambda: processes.check_counts(Options(num_processes=3, num_nodes=2, address='a', port=1)), lambda s: processes.check_counts(Options(num_processes=4, num_nodes=2, address='a', port=1)))
row('processes.check_counts', 'with num_nodes=2 it lies in 0..1', lambda: processes.check_counts(Options(num_processes=2, num_nodes=2, node_rank=2, address='a', port=1)), lambda s: processes.check_counts(Options(num_processes=2, num_nodes=2, node_rank=1, address='a', port=1)))
row('processes.check_counts', 'pass address= and port=', lambda: processes.check_counts(Options(num_processes=2, num_nodes=2)), lambda s: processes.check_counts(Options(num_processes=2, num_nodes=2, address='a', port=1)))
def with_cards(count, o):
    old, torch.accelerator.device_count = torch.accelerator.device_count, lambda: count
    chosen, processes.choose_device = processes.choose_device, lambda name: torch.device('cpu' if name == 'cpu' else 'cuda')
    try: processes.enough_devices(Options(**o))
    finally: torch.accelerator.device_count, processes.choose_device = old, chosen
def four_cards(s, **o): with_cards(4, dict(num_processes=code(s, r'num_processes=(\d+)'), num_nodes=2, address='a', port=1) | o)
row('processes.enough_devices', "this machine has 4 devices, not 8: set num_processes=8, or device='cpu'", lambda: with_cards(4, dict(num_processes=16, num_nodes=2, address='a', port=1)), four_cards, lambda s: four_cards(s, num_processes=16, device='cpu'))
row('processes.start', "such as [sys.executable, 'train.py']", lambda: processes.start('python train.py', Options()), lambda s: (Path('train.py').write_text('print(1)'), processes.start(code(s, r'such as (.*)$', sys=__import__('sys')), Options())))

# ---- editing and distances

row('distances.rule', "net is 'vgg' or 'alex' or 'squeeze'", lambda: distances.LPIPS('vgg19', pnet_rand=True), lambda s: distances.LPIPS('squeeze', pnet_rand=True))
def trunk():
    import lpips
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return {'features.' + n.split('.', 1)[1]: v for n, v in lpips.LPIPS(net='squeeze', pnet_rand=True, verbose=False).net.state_dict().items()}
def offline(work):
    "Without a network, and with a cache of torch's own."
    def none(*_, **__): raise OSError('no network')
    old, torch.hub.download_url_to_file, here = torch.hub.download_url_to_file, none, torch.hub.get_dir()
    torch.hub.set_dir('hub')
    try: return work()
    finally:
        torch.hub.download_url_to_file = old
        torch.hub.set_dir(here)
def into_the_cache(s):
    def work():
        folder = Path(code(s, r"put it into (.*?) here"))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(trunk(), folder/re.search(r'fetch (\S+\.pth)', s)[1])
        distances.LPIPS('squeeze')
    offline(work)
def by_argument(s):
    Path('path/to').mkdir(parents=True)
    torch.save(trunk(), 'path/to/' + re.search(r'fetch (\S+\.pth)', s)[1])
    offline(lambda: code(s, r'pass (LPIPS\(.*\))', LPIPS=distances.LPIPS))
row('distances._trunk_weights', "put it into torch.hub.get_dir() + '/checkpoints' here, or pass LPIPS(net='squeeze', weights=", lambda: offline(lambda: distances.LPIPS('squeeze')), into_the_cache, by_argument)
row('distances._fill', "pass torchvision's own state dict for 'squeeze'", lambda: distances.LPIPS('squeeze', weights={}), lambda s: distances.LPIPS('squeeze', weights=trunk()))
row('edit.noised', 'one seed per image', lambda: edit.noised(x, 1., seeds=range(3)), lambda s: edit.noised(x, 1., seeds=range(4)))
row('edit._start_fits', 'they must agree, or y be a single image', lambda: edit.stroke(f, x[:2], x=x), lambda s: edit.stroke(f, x, x=x), lambda s: edit.stroke(f, x[:1], x=x))
soft = torch.rand(8, 8, generator=gen())
for mask in soft, soft.numpy(), soft.tolist():
    row('edit._mask_fits', 'pass torch.as_tensor(mask) > 0.5', lambda m=mask: edit.inpaint(f, x, m, (80., 1.)), lambda s, m=mask: edit.inpaint(f, x, code(s, r'pass (.*)$', mask=m), (80., 1.)))
row('edit._mask_fits', 'pass (H, W), or (B, 1, H, W)', lambda: edit.inpaint(f, x, torch.ones(7, 8), (80., 1.)), lambda s: edit.inpaint(f, x, torch.ones(8, 8), (80., 1.)), lambda s: edit.inpaint(f, x, torch.ones(4, 1, 8, 8), (80., 1.)))
row('edit._colours', 'repeat the grey channel by y.expand(-1, 3, -1, -1)', lambda: edit.grey(x[:, :1]), lambda s: edit.grey(code(s, r'by (.*)$', y=x[:, :1])))
row('edit._blocks_fit', 'choose one that does, or crop', lambda: edit.pixelate(x, 3), lambda s: edit.pixelate(x, 4), lambda s: edit.pixelate(x[..., :6, :6], 3))
row('edit._level_within', 'give the standard deviation of the noise', lambda: edit.denoise(f, x, 0.), lambda s: edit.denoise(f, x, 0.5))
row('edit.slerp', 'alpha must be a finite number or one per image', lambda: edit.slerp(x, x, [.1, .2]), lambda s: edit.slerp(x, x, .1), lambda s: edit.slerp(x, x, [.1, .2, .3, .4]))

# ---- measuring

row('features.extractor_name', 'use one of inception, ', lambda: features.extractor_name('clip'), lambda s: [features.extractor_name(n) for n in s.split('one of ')[1].split(', ')])
row('features.byte_images', 'turn x in [-1, 1] into bytes with', lambda: features.extract(x), lambda s: features.byte_images(images=code(s, r'with (.*)$', x=x)))
def no_weights(features_):
    old = features.create_feature_extractor
    def make(name, *args, **kwargs):
        if 'inception' in name: raise OSError('no network')
        return old(name, *args, **kwargs)
    features.create_feature_extractor = make
    try: return features.extract(u8[:2], features_)
    finally: features.create_feature_extractor = old
row('features.extract', "mend that once, or use features='efficientnet-lite0', which works offline", lambda: no_weights('inception'), lambda s: no_weights(code(s, r"features=('.*?')")))
a, b = (torch.randn(20, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
row('evaluate.feature_rows', 'features must be floats of shape (N, D) with N >= 2', lambda: evaluate.frechet_distance(a[:1], b), lambda s: evaluate.frechet_distance(a[:2], b))
row('evaluate.both', 'extract both with the same features=', lambda: evaluate.frechet_distance(a, torch.randn(9, 3)), lambda s: evaluate.frechet_distance(a, b))
row('evaluate.pick', 'give the images, or what `extract` returns with the same features=', lambda: evaluate.evaluate({'pool': a}, {'pool': b}, 'is'), lambda s: evaluate.evaluate({'pool': a, 'logits': a}, {'pool': b, 'logits': b}, 'is'))
row('evaluate._metrics_fit', 'choose from fid, is, kid, pr', lambda: evaluate.evaluate(a, b, 'fvd'), lambda s: [evaluate.evaluate({'pool': a, 'logits': a}, {'pool': b, 'logits': b}, m) for m in s.split('from ')[1].split(', ')])
row('evaluate._metrics_fit', "mean and covariance are enough for 'fid' alone; give images or features", lambda: evaluate.evaluate(a, evaluate.statistics([b]), 'kid'), lambda s: evaluate.evaluate(a, evaluate.statistics([b]), code(s, r"for ('fid')")), lambda s: evaluate.evaluate(a, b, 'kid'))
row('evaluate.statistics', 'at least 2 are needed', lambda: evaluate.statistics([a[:1]]), lambda s: evaluate.statistics([a[:2]]))
row('evaluate.floor', 'at most 10 can play the samples', lambda: evaluate.floor(a, 11), lambda s: evaluate.floor(a, code(s, r'at most (\d+)')))
row('evaluate.nearest', 'k must lie in 1..20', lambda: evaluate.nearest(a, b, 21), lambda s: evaluate.nearest(a, b, 20))
row('evaluate.class_rate', 'pass one for each', lambda: evaluate.class_rate(a, torch.arange(3), b, torch.arange(20)), lambda s: evaluate.class_rate(a, torch.arange(20), b, torch.arange(20)))
row('references.picked', 'take 2 to 20 of them, or all: None, in a run reference_images=0', lambda: references.picked(20, 21), lambda s: references.picked(20, 2), lambda s: references.picked(20, 20), lambda s: references.picked(20, None), lambda s: references.picked(20, code(s, r'reference_images=(\d)') or None))
row('references.check_alike', 'pass a dict of names and what `report` returns', lambda: references.table([]), lambda s: references.table(dict(a=dict(fd=1.))))
row('references.check_alike', 'measure both in the same way', lambda: references.table(dict(a=dict(fd=1., n=5), b=dict(fd=2., n=6))), lambda s: references.table(dict(a=dict(fd=1., n=5), b=dict(fd=2., n=5))))
row('references.reference', "such as dataset('avatars32')", lambda: references.reference('avatars32'), lambda s: references.reference(dataset('avatars32-20'), device='cpu'))
row('references._seen', 'pass what `summarize`, `reference` or `collect` returns', lambda: references.report(u8, u8), lambda s: references._seen(samples=references.summarize([u8], device='cpu')))
row('references.table', 'there are: fd, kd', lambda: references.table(dict(a=dict(fd=1., kd=2.)), ['fid']), lambda s: references.table(dict(a=dict(fd=1., kd=2.)), s.split('are: ')[1].split(', ')))
row('references.spread', 'repeat: the spread over equal samples says nothing', lambda: references.spread([dict(seed=0, fd=1.)] * 2), lambda s: references.spread([dict(seed=k, fd=1.) for k in (0, 1)]))
row('stream._one_by_one', 'such as range(1000)', lambda: stream.parts(range(0, 9, 2)), lambda s: stream.parts(code(s, r'such as (.*)$')))
def drawn(folder='s', **about): stream.stream(lambda x, seeds: x.clamp(-1, 1), range(2), (3, 8, 8), folder, dict(model='m') | about, device='cpu', say=len)
row('stream.is_there', "holds samples of model 'm', not 'n': choose another folder, or remove this one", lambda: (drawn(), drawn(model='n')), lambda s: drawn('other', model='n'), lambda s: (shutil.rmtree('s'), drawn(model='n')))
row('stream.all_shards', 'the call that draws goes on (run_jobs, stream)', lambda: stream.collect('s', range(2)), lambda s: (drawn(), stream.collect('s', range(2))))
job = stream.Job('avatars32-cd', levels=(80.,))
row('stream.job_sampler', 'valid ones are: multistep, heun, euler, stochastic', lambda: stream.job_sampler(tiny(Denoiser), stream.Job('m', 'ddim')), lambda s: [stream.job_sampler(tiny(Denoiser), stream.Job('m', w)) for w in s.split('are: ')[1].split(', ')[1:]])
row('stream.job_sampler', "way='heun' is for a Denoiser", lambda: stream.job_sampler(tiny(), stream.Job('m', 'heun')), lambda s: stream.job_sampler(tiny(Denoiser), stream.Job('m', 'heun')))
row('stream._are_jobs', 'pass a list of `Job`', lambda: stream.run_jobs(['avatars32-cd'], 'o'), lambda s: stream.run_jobs([stream.Job('avatars32-cd', levels=(80.,), n=2)], 'o', say=len))
row('npz.write_samples', 'the name must end in .npz', lambda: npz.write_samples('a.npy', [u8], 20), lambda s: npz.write_samples('a' + re.search(r'in (\S+)$', s)[1], [u8], 20))
row('npz.write_samples', 'labels must be whole numbers (torch.long) of shape (20,)', lambda: npz.write_samples('a.npz', [u8], 20, t), lambda s: npz.write_samples('a.npz', [u8], 20, torch.arange(20)))
def numbered(folder, k): return [*npz.numbered(folder, 2, lambda part: u8[:len(part)], dict(seed=k))]
row('npz.numbered', 'choose another folder, or remove this one', lambda: (numbered('p', 0), numbered('p', 1)), lambda s: numbered('q', 1), lambda s: (shutil.rmtree('p'), numbered('p', 1)))
def npz_of(**arrays): np.savez('a.npz', **arrays)
def seen_npz(): return npz.read_samples('a.npz', device='cpu')
def whole_npz(s):
    eval(re.search(r'such as (np\.savez)', s)[1])('a.npz', arr_0=rgb)
    seen_npz()
row('npz.read_npz', 'pass a whole one, such as np.savez writes', lambda: (torn('a.npz', lambda p: npz_of(arr_0=rgb)), seen_npz()), whole_npz)
row('npz.read_npz', 'pass a whole one, such as np.savez writes', lambda: (npz_of(arr_0=np.array([{}], object)), seen_npz()), whole_npz)
row('npz.read_samples', 'the pictures must be called so', lambda: (npz_of(x=rgb), seen_npz()), lambda s: (npz_of(**{re.search(r'no (\w+)', s)[1]: rgb}), seen_npz()))
stats = dict(mu=np.zeros(4), sigma=np.eye(4))
row('npz.read_statistics', 'mu and sigma belong together', lambda: (npz_of(mu=stats['mu']), npz.read_statistics('a.npz')), lambda s: (npz_of(**stats), npz.read_statistics('a.npz')))
row('npz.read_reference', 'ask for fid alone', lambda: (npz_of(**stats), npz.read_reference('a.npz', pictures=True)), lambda s: evaluate.evaluate(a, npz.read_reference('a.npz').statistics, 'fid'))

# ---- figures

row('viz._drawable', 'pass (B, C, H, W) with B > 0, and C 1 or 3', lambda: viz.grid_image(x[0]), lambda s: viz.grid_image(x))
row('viz._picture', 'such as `grid_image` gives', lambda: viz.enlarge(x), lambda s: viz.enlarge(viz.grid_image(x)))
row('viz.rule', 'a picture is stored as .png', lambda: viz.save_grid(x, 'a.jpg'), lambda s: viz.save_grid(x, 'a' + re.search(r'as (\S+)', s)[1]))
row('viz._rows', 'rows must be a dict of labels and batches of images', lambda: viz.compare([x]), lambda s: viz.compare(dict(a=x)))
log = [dict(step=k, loss=1. + k, loss_by_level={'t<0.1': 1.}) for k in range(3)]
row('viz.curves', "the log has no 'loss_by_level'; it has ['loss']", lambda: viz.curves(log, ['loss_by_level']), lambda s: viz.curves(log, code(s, r'it has (\[.*\])')))

# ---- the rows, one by one

@pytest.fixture(autouse=True)
def plain_portraits(monkeypatch):
    "Avatars are not what is tested here, and their styles take long to read."
    monkeypatch.setattr(data_, 'portrait', lambda k, seed, size: np.random.default_rng([k, seed]).integers(0, 256, (3, size, size), dtype=np.uint8))

CLEAR = ValueError, TypeError, OSError, RuntimeError

@pytest.mark.parametrize('where, said, wrong, rights', ROWS, ids=[f'{i}-{where}' for i, (where, *_) in enumerate(ROWS)])
def test_what_it_says_helps(where, said, wrong, rights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CONSISTENCY_NB_CACHE', str(tmp_path/'cache'))
    for n in 'CONSISTENCY_NB_DATA', 'CONSISTENCY_NB_DOWNLOAD': monkeypatch.delenv(n, raising=False)
    with pytest.raises(CLEAR) as e: wrong()
    at = traceback.extract_tb(e.value.__traceback__)[-1]
    assert said in str(e.value) and f'{Path(at.filename).stem}.{at.name}' == where, f'{Path(at.filename).stem}.{at.name}: {e.value}'
    assert str(ROOT) not in str(e.value) and str(Path.home()/'.') not in str(e.value).replace(str(tmp_path), '')
    for right in rights:
        right(str(e.value))

@pytest.mark.parametrize('pixels', [u8, u8 * 0 + 7, u8 // 200], ids=['noise', 'all alike', 'nearly alike'])
def test_the_sigma_that_is_told_is_accepted(pixels):
    with pytest.warns(UserWarning, match='set sigma_data=') as said: data_.check_sigma_data(Images(pixels), 7.)
    told = float(re.search(r'set sigma_data=(\S+)', str(said[0].message))[1])
    assert override(ct, sigma_data=told).sigma_data == told
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data_.check_sigma_data(Images(pixels), told)

# ---- sentences of the run notebooks, in their own cells

def cells(run, until, **given):
    "The cells of a run with what papermill puts between them, up to the one with the id `until`."
    scope = {}
    for c in json.loads((ROOT/f'nbs/{run}.ipynb').read_text(encoding='utf-8'))['cells']:
        if c['cell_type'] != 'code' or 'google.colab' in ''.join(c['source']): continue
        exec(''.join(c['source']), scope)
        if 'parameters' in c['metadata'].get('tags', []): scope.update(dict(device='cpu', out_dir='run'), **given)
        if c['id'] == until: return scope
    raise AssertionError(f'{run} has no cell {until}')

def grown(name, size, **right):
    "A white mask of this size."
    Image.new('L', size, right.get('white', 255)).save(name)
    return name

EDIT, FULL = dict(teacher='', levels='80,1'), ('edit_images', 'b2eba030')
NOTEBOOKS = [
    ('edit_images', '0fe38bec', 'choose one of inpaint, colorize', dict(task='paint'), [dict(task=t) for t in ('inpaint', 'interpolate', 'all')]),
    ('edit_images', '0fe38bec', 'at least one picture, one seed and two steps', dict(n=0), [dict(n=1, seeds=1, teacher_steps=2)]),
    ('edit_images', 'f16b8b0d', '`model` has to be a consistency model, `teacher` may be this one', dict(model='avatars32-edm', teacher=''), [dict(model='avatars32-cd', teacher='avatars32-edm')]),
    ('edit_images', 'f16b8b0d', "pass another teacher, or teacher=''", dict(teacher='small/model.safetensors'), [dict(teacher='avatars32-edm'), dict(teacher='')]),
    ('edit_images', 'f16b8b0d', 'or an index from 0 to 9', dict(EDIT, classes='owl'), [dict(EDIT, classes='moods,9')]),
    ('edit_images', 'f16b8b0d', 'leave y out (in a run, classes)', dict(EDIT, model='small/f.safetensors', classes='1'), [dict(EDIT, model='small/f.safetensors')]),
    (*FULL, 'pass a picture file, or one of half, hole, random', dict(EDIT, mask='left'), [dict(EDIT, mask='hole'), dict(EDIT, mask='white.png')]),
    (*FULL, 'make it as large as the picture, (32, 32)', dict(EDIT, mask='large.png'), [dict(EDIT, mask='white.png')]),
    (*FULL, 'white is what is to be generated', dict(EDIT, mask='black.png'), [dict(EDIT, mask='white.png')]),
    ('tune_levels', 'dd4ac92c', 'only a consistency model has levels to choose', dict(model='avatars32-edm'), [dict(model='avatars32-cd')]),
    ('tune_levels', 'dd4ac92c', 'seed must be at least samples = 300', dict(seed=3), [dict(seed=300)]),
    ('evaluate_model', '18e983e5', "such as '0.05,0.1'", dict(widths='5 %'), [dict(widths='')]),
    ('evaluate_model', '18e983e5', 'train one with snapshots=32, and name its folder', dict(widths='0.05'), [dict(widths='')]),
    ('evaluate_model', 'f5d64027', "such as '1,2,4,8'", dict(steps='1;2'), [dict(steps='1,2,4,8')]),
    ('evaluate_model', 'f5d64027', 'pass fid, and any of fid, is, kid, pr', dict(metrics='kid'), [dict(metrics='fid,kid'), dict(metrics='fid,is,pr')]),
    ('evaluate_model', 'f5d64027', 'so pass odd numbers from 3 on', dict(evaluations='4'), [dict(evaluations='3,5')]),
    ('evaluate_model', 'f5d64027', 'choose of heun, euler, stochastic', dict(ways='ddim'), [dict(ways='heun,euler,stochastic')]),
    ('evaluate_model', 'f5d64027', 'at least 2 and at most 1,000,000 samples and one seed', dict(samples=1), [dict(samples=2), dict(samples=1_000_000)]),
    ('evaluate_model', 'f5d64027', 'name at least one', dict(model=''), [dict(model='avatars32-ct', teacher='')]),
    ('evaluate_model', 'c83cb0fa', 'ask for fid alone', dict(model='avatars32-cd', teacher='', reference='stats.npz', metrics='fid,kid'), [dict(model='avatars32-cd', teacher='', reference='stats.npz', metrics='fid')]),
    ('evaluate_model', 'c83cb0fa', 'take 2 to 60 of them, or all: None, in a run reference_images=0', dict(model='avatars32-cd', teacher='', reference='avatars32-60', reference_images=99),
     [dict(model='avatars32-cd', teacher='', reference='avatars32-60', reference_images=k) for k in (2, 0)]),
    ('generate', '41bedcc4', 'pass levels=, 3 numbers that fall from 80, or choose steps from 1, 2', dict(n=2, steps=3), [dict(n=2, steps=3, levels='80,5,1'), dict(n=2, steps=2)]),
    ('generate', '41bedcc4', 'leave y out (in a run, classes)', dict(n=2, model='small/f.safetensors', classes='1'), [dict(n=2, model='small/f.safetensors')]),
    ('generate', '41bedcc4', 'choose another folder, or remove this one', dict(n=2, png=True, seed=5), [dict(n=2, png=True, seed=5, out_dir='other')]),
    ('train_cd', '1ce45afa', 'use nbs/train_ct.ipynb', dict(preset='avatars32_ct'), [('train_ct', 'avatars32_ct')]),
]

@pytest.mark.parametrize('run, until, said, wrong, rights', NOTEBOOKS, ids=[f'{i}-{run}' for i, (run, *_) in enumerate(NOTEBOOKS)])
def test_what_a_run_says_helps(run, until, said, wrong, rights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    grown('white.png', (32, 32)), grown('large.png', (40, 30)), grown('black.png', (32, 32), white=0)
    np.savez('stats.npz', **stats)
    save(tiny(Denoiser), 'small/model.safetensors'), save(tiny(), 'small/f.safetensors')
    if wrong.get('png'): cells(run, until, n=2, png=True)
    with pytest.raises(ValueError) as e: cells(run, until, **wrong)
    assert said in str(e.value)
    for right in rights:
        if isinstance(right, tuple):
            name, p = right
            assert (ROOT/f'nbs/{name}.ipynb').exists() and said.endswith(f'{name}.ipynb')
            cells(name, begin_cell(name), preset=p)
        else: cells(run, until, **right)
        files.HELD.clear()

def begin_cell(run): return next(c['id'] for c in json.loads((ROOT/f'nbs/{run}.ipynb').read_text(encoding='utf-8'))['cells'] if 'runs.begin(' in ''.join(c['source']))

# ---- none is left out

ADVICE = re.compile(r'\b(pass|set|choose|take|give|leave|remove|use|fetch|make|mend|turn|repeat|replace|copy|put|ask|save|build|connect|install|wait|name one|say at|valid ones|must be|such as|needed)\b')
ELSEWHERE = {   # function -> why no row does what it says
    'train._fits': 'tests/test_family.py', 'launch.begin': 'tests/test_faults.py',
    'cache.read_tensors': 'says what is wrong, no more', 'checkpoints.fetch': 'a name on the hub: needs a network', 'checkpoints.find': 'has a row',
    'data.avatars': 'pip install', 'distances._build': 'pip install', 'exchange.optional': 'pip install', 'features.__init__': 'pip install', 'folders.open_lmdb': 'pip install', 'sets.cifar10': 'has a row',
    'exchange.onnx_gap': 'tests/test_checkpoints.py', 'names.spec_from_diffusers': 'tests/test_golden_adm.py', 'foreign.gather': 'of a broken file', 'foreign.tensor': 'of a broken file', 'foreign.array': 'of a broken file',
    'pixels.eight_bits': 'reached by read_square, which has a row', 'pixels.to_bytes': 'a network that draws NaN', 'features.byte_images': 'has a row', 'launch.true_or_false': 'reached by argparse: the row of `both`',
    'runs.begin': 'in NOTEBOOKS', 'launch.launch': 'tests/test_processes.py', 'stream.run_jobs': 'tests/test_evaluate.py', 'train.step': 'says what is wrong', 'files.__exit__': 'says what is left', 'core.door': 'for who writes a rule',
    'grid.check_grid': 'has a row', 'evaluate.feature_rows': 'has a row', 'npz.write': 'says what is wrong', 'formats.edm_spec': 'says what is wrong', 'sets.downsampled': 'says what is wrong', 'watch.check_tracker': 'has a row',
    'foreign.read_pt': 'says what is wrong', 'formats.fill': 'says what is wrong', 'train.resume': 'says what is wrong', 'exchange.to_diffusers': 'says what is wrong', 'exchange.read_json': 'says what is wrong',
}

def advisers():
    "The functions of the package that raise a sentence with a word of advice."
    for path in sorted(LIB.glob('[a-z]*.py')):
        def visit(node, name):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                own = [n for n in ast.walk(node) if isinstance(n, ast.Raise)]
                inner = {id(n) for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and f is not node for n in ast.walk(f)}
                body = [n for n in ast.walk(node) if id(n) not in inner]
                words = ' '.join(n.value for n in body[1:] if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value != ast.get_docstring(node, clean=False))
                if [r for r in own if id(r) not in inner and r.exc] and ADVICE.search(words): yield f'{path.stem}.{node.name}'
            for child in ast.iter_child_nodes(node): yield from visit(child, name)
        yield from visit(ast.parse(path.read_text(encoding='utf-8')), '')

def test_no_advice_is_left_out():
    left = set(advisers()) - {where for where, *_ in ROWS} - set(ELSEWHERE)
    assert not left, f'these say what to do, and no row does it: {sorted(left)}'
