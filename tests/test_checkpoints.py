"""Everyone's checkpoints: golden weights written in the published formats, opened, and compared with published outputs."""
import json, shutil, os, sys, types
from functools import partial
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

pytest.importorskip('msgpack')
from consistency_nb import adm, checkpoints, exchange, names, ncsnpp
from consistency_nb.checkpoints import (OPENAI, blank, load, load_edm, load_jcm, load_openai, make_net, push_to_hub, save, save_pretrained,
                                        to_diffusers, to_onnx)
from consistency_nb.grid import levels_from_indices
from consistency_nb.nets import UNet
from consistency_nb.precond import Consistency, Denoiser
from consistency_nb.sample import multistep
from golden import golden, weights
from published import edm_network, write_edm, write_flax

SMALL = dict(cls='ADMUNet', image_size=16, model_channels=32, channel_mult=[1, 1], num_res_blocks=1, attention_resolutions=[8], num_classes=10, num_head_channels=16)
JAX = dict(cls='SongUNet', image_size=32, model_channels=8, channel_mult=[2, 2, 2], num_blocks=2)

def small(**changes): return blank(partial(make_net, SMALL | changes))

def randomised(net, std=0.1):
    torch.manual_seed(0)
    for p in net.parameters(): nn.init.normal_(p, std=std)
    return net

def raw(model, g): return model.net(g['in.x'], g['in.timesteps'] / 1000, g['in.class_labels'])

# ---- OpenAI

def test_openai_file(tmp_path):
    g = golden('07_unet')
    for name, kind in ('cd_imagenet64_l2.pt', Consistency), ('edm_bedroom256_ema.pt', Denoiser):
        torch.save(weights(g, 'weights.adm.'), tmp_path/name)
        f = load_openai(tmp_path/name, net=small())
        assert type(f) is kind and f.facts['kind'] == kind.__name__ and f.facts['source'] == name and f.facts['label_scale'] == 1000
        assert not f.training and not any(p.requires_grad for p in f.parameters()) and f.sigma_data == 0.5
        assert_close(raw(f, g), g['out.adm'], atol=2e-4, rtol=0)
    assert (load_openai(tmp_path/'cd_imagenet64_l2.pt', net=small()).eps, f.sigma_data) == (0.002, 0.5)

@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: {'module.' + n: v for n, v in d.items()}, lambda d: dict(step=6, model={n: v.half() for n, v in d.items()})], ids=['plain', 'module', 'wrapped'])
def test_openai_training_files(wrap, tmp_path):
    "Under the names that training gives them, as they lie in the folder of a run."
    g = golden('07_unet')
    torch.save(wrap(weights(g, 'weights.adm.')), tmp_path/'ema_0.9999_600000.pt')
    with pytest.raises(ValueError, match="pass kind='Denoiser' or kind='Consistency'"): load(tmp_path/'ema_0.9999_600000.pt')
    f = load(tmp_path/'ema_0.9999_600000.pt', kind='Consistency', net=small())
    assert type(f) is Consistency
    assert_close(raw(f, g), g['out.adm'], atol=5e-3, rtol=0)   # one of them is in half precision
    with pytest.raises(ValueError, match='says itself what it is: leave kind out'): load('avatars32-cd', kind='Denoiser')

def test_openai_into_a_network_in_use(tmp_path):
    g = golden('07_unet')
    net = make_net(SMALL)
    p = net.conv_in.weight
    f = load_openai(weights(g, 'weights.adm.'), net=net, kind='Denoiser')
    assert f.net is net and net.conv_in.weight is p and type(f) is Denoiser
    assert_close(raw(f, g), g['out.adm'], atol=2e-4, rtol=0)

def test_openai_older_order_of_rows():
    "Names and shapes are the same; only the keyword tells."
    g = golden('07_unet')
    d = weights(g, 'weights.adm.')
    old = {n: v.unflatten(0, (3, 2, 16)).transpose(0, 1).flatten(0, 2) if '.qkv.' in n else v for n, v in d.items()}
    right, wrong = load_openai(old, net=small(), qkv='heads_three'), load_openai(old, net=small())
    assert_close(raw(right, g), g['out.adm'], atol=2e-4, rtol=0)
    assert (raw(wrong, g) - g['out.adm']).abs().max() > 0.02
    assert right.facts['qkv'] == 'heads_three -> three_heads'

def published_names(net):
    return {n: v for (n,), v in zip(names.weight_names(net, 'openai').values(), net.state_dict().values())}

def test_openai_the_twelve():
    "Every published name has its kind and its network; shapes choose it for a dict. On the meta device."
    assert len(OPENAI) == 12
    with torch.device('meta'): tensors = {64: published_names(adm.imagenet64()), 256: published_names(adm.lsun256())}
    for name, (kind, make) in OPENAI.items():
        assert (kind == 'Denoiser') == name.startswith('edm_') and (make is adm.imagenet64) == ('imagenet64' in name)
    for size, d in tensors.items():
        f = load_openai(d)
        assert type(f) is Consistency and f.net.spec['image_size'] == f.facts['image_size'] == size
    assert sum(p.numel() for p in f.net.parameters()) == 526_304_771

def test_openai_refusals(tmp_path):
    d = weights(golden('07_unet'), 'weights.adm.')
    torch.save(d, tmp_path/'model.pt')
    torch.save(d, tmp_path/'ct_cat256.pt')
    with pytest.raises(ValueError, match="model.pt is not one of edm_imagenet64_ema, .* pass kind="): load(tmp_path/'model.pt')
    with pytest.raises(ValueError, match='ct_cat256.pt: missing entries: '): load(tmp_path/'ct_cat256.pt')
    with pytest.raises(ValueError, match='weights with 32 channels at the input fit neither'): load_openai(d)
    with pytest.raises(ValueError, match="other names than OpenAI's"): load_openai({'a': torch.zeros(1)})
    with pytest.raises(ValueError, match="kind='teacher'; valid ones are: Denoiser, Consistency"): load_openai(d, net=small(), kind='teacher')
    for change in (lambda d: d.pop('out.2.bias'), lambda d: d.update(x=torch.zeros(1)), lambda d: d.update({'out.2.bias': torch.zeros(4)})):
        change(e := dict(d))
        with pytest.raises(ValueError, match='^dict: .*the first is .(out.2.bias|x).[:,]'): load_openai(e, net=small())
    with pytest.raises(ValueError, match='another shape'): load_openai(d, net=small(model_channels=64))

def test_memory():
    "Tensors of a dict become the weights without a copy, except rows that are sorted and what the layout changes."
    d = weights(golden('07_unet'), 'weights.adm.')
    f = load_openai(d, net=small())
    assert f.net.conv_in.weight.data_ptr() == d['input_blocks.0.0.weight'].data_ptr()
    own = [n for n, p in f.net.named_parameters() if p.data_ptr() not in {v.data_ptr() for v in d.values()}]
    assert all('.qkv.' in n for n in own)

# ---- NVlabs

EDM = dict(ncsnpp=2e-5, ddpmpp=2e-5, dhariwal=3e-5)   # absolute tolerances of the manifest; rtol 1e-5

@torch.no_grad()
@pytest.mark.parametrize('name', EDM)
@pytest.mark.parametrize('how', ['file', 'dict', 'no prefix', 'no filters', 'net'])
def test_edm(tmp_path, name, how):
    g = golden(f'05_edm_{name}')
    d = weights(g)
    if how == 'file': D = load(write_edm(tmp_path/'edm-cifar10-32x32-uncond-ve.pkl', ema=edm_network(d, label_dim=0)))
    elif how == 'net': D = load_edm(d, net=make_net(load_edm(d).net.spec))
    else:
        if how == 'no prefix': d = {n.removeprefix('model.'): v for n, v in d.items()}
        if how == 'no filters': d = {n: v for n, v in d.items() if 'resample_filter' not in n}
        D = load_edm(d)
    y = g['in.class_labels_onehot'].argmax(1) if 'in.class_labels_onehot' in g else None
    assert type(D) is Denoiser and D.facts['qkv'] == 'channels_three -> three_heads' and D.facts['label_scale'] == 1 and D.sigma_data == 0.5
    assert_close(D(g['in.x'], g['in.sigma'], y), g['out.D'], atol=EDM[name], rtol=1e-5)

def test_edm_sigma_data_of_the_file(tmp_path):
    m = edm_network(weights(golden('05_edm_ddpmpp')))
    m.sigma_data = 0.7
    D = load(write_edm(tmp_path/'a.pkl', ema=m))
    assert D.sigma_data == 0.7 and D.facts['class_name'] == 'EDMPrecond'
    save(D, tmp_path/'a.safetensors', dict(note='mine'))
    E, x = load(tmp_path/'a.safetensors'), torch.randn(1, 3, 32, 32)
    assert E.facts == D.facts | {'note': 'mine'}
    assert_close(E(x, 1.), D(x, 1.))

def test_edm_refusals(tmp_path):
    d = weights(golden('05_edm_ddpmpp'))
    with pytest.raises(ValueError, match="other names than those of EDM's networks, such as enc"): load_edm({'a': torch.zeros(1)})
    d.pop('model.dec.32x32_aux_conv.bias')
    with pytest.raises(ValueError, match='a.pkl: .*dec.32x32_aux_conv.bias'): load(write_edm(tmp_path/'a.pkl', ema=edm_network(d)))

@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_hostile(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/owned',)
    torch.save({'a': Evil()}, tmp_path/'cd_imagenet64_l2.pt')
    m = edm_network({'model.a': torch.zeros(1)})
    m.model._modules['x'] = Evil()
    write_edm(tmp_path/'a.pkl', ema=m)
    for name in 'cd_imagenet64_l2.pt', 'a.pkl':
        for end in ('.pt', '.pkl', '.safetensors', ''):   # whatever it is called
            path = (tmp_path/'x').with_suffix(end)
            path.write_bytes((tmp_path/name).read_bytes())
            with pytest.raises(ValueError): load(path)
        with pytest.raises(ValueError, match=f'{name} wants {os.system.__module__}.system'): load(tmp_path/name)
    assert not (tmp_path/'owned').exists()

# ---- JAX

@torch.no_grad()
@pytest.mark.parametrize('folder, kind', [('cd-l2/checkpoints', None), ('cifar10-continuous-cd-l2-stopgrad/checkpoints', None), ('ct-lpips/checkpoints', None),
                                          ('edm_runs/cd-l1/checkpoints', None), ('mine', 'Consistency'), ('edm_cifar10_ema', None), ('mine', 'Denoiser')])
def test_jax(tmp_path, folder, kind):
    g = golden('06_jax_ncsnpp')
    path = write_flax(tmp_path/folder/'checkpoint_80', step=800000, lr=4e-4, params=weights(g, 'weights.target.'), params_ema=weights(g, 'weights.online.'))
    f = load_jcm(path, net=blank(partial(make_net, JAX)), kind=kind)
    teacher = folder == 'edm_cifar10_ema' or kind == 'Denoiser'
    assert type(f) is (Denoiser if teacher else Consistency) and f.facts['kind'] == type(f).__name__
    x, t = g['in.precond.x_t'].permute(0, 3, 1, 2), g['in.precond.t']
    assert_close(f(x, t).permute(0, 2, 3, 1), g['out.precond.denoiser' if teacher else 'out.precond.distiller'], atol=1e-5, rtol=1e-5)

@torch.no_grad()
def test_jax_dict():
    g = golden('06_jax_ncsnpp')
    online, target = weights(g, 'weights.online.'), weights(g, 'weights.target.')
    new = partial(blank, partial(make_net, JAX))
    x, t = g['in.precond.x_t'].permute(0, 3, 1, 2), g['in.precond.t']
    want = g['out.precond.distiller'].permute(0, 3, 1, 2)
    for tree in (online, {'params': online}, {'params': target, 'params_ema': online, 'step': 3}): assert_close(load_jcm(tree, net=new())(x, t), want, atol=1e-5, rtol=1e-5)
    other = load_jcm({'params': target, 'params_ema': online, 'step': 3}, net=new(), ema=False)
    assert (other(x, t) - want).abs().max() > 1e-3 and not other.facts['ema']

def test_jax_refusals(tmp_path):
    online = weights(golden('06_jax_ncsnpp'), 'weights.online.')
    path = write_flax(tmp_path/'mine'/'checkpoint_8', step=1, params=online)
    with pytest.raises(ValueError, match="mine/checkpoint_8 does not say edm, cd or ct: pass kind="): load(path)
    with pytest.raises(ValueError, match='holds no params_ema, but: step, params'): load_jcm(path, kind='Consistency')
    with pytest.raises(ValueError, match='mine/checkpoint_8: '): load_jcm(path, kind='Consistency', ema=False)   # not the published size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match='checkpoint_8 is not a whole flax checkpoint'): load_jcm(path, kind='Consistency')

# ---- diffusers

@pytest.fixture
def pipeline(tmp_path):
    "A folder with the golden network in the names of diffusers, written by hand."
    g, path = golden('07_unet'), tmp_path/'pipeline'
    config = dict(_class_name='UNet2DModel', sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, num_class_embeds=10, block_out_channels=[32, 32],
                  attention_head_dim=16, down_block_types=['ResnetDownsampleBlock2D', 'AttnDownBlock2D'], up_block_types=['AttnUpBlock2D', 'ResnetUpsampleBlock2D'],
                  resnet_time_scale_shift='scale_shift', upsample_type='resnet', downsample_type='resnet', attn_norm_num_groups=32)
    scheduler = dict(_class_name='CMStochasticIterativeScheduler', num_train_timesteps=201, sigma_min=0.003, sigma_max=70., sigma_data=0.6, rho=7., s_noise=1.)
    for name, d in {'model_index.json': dict(_class_name='ConsistencyModelPipeline'), 'unet/config.json': config, 'scheduler/scheduler_config.json': scheduler}.items():
        (path/name).parent.mkdir(parents=True, exist_ok=True)
        (path/name).write_text(json.dumps(d))
    save_file(weights(g, 'weights.diffusers.'), path/'unet'/'diffusion_pytorch_model.safetensors')
    return path

@torch.no_grad()
def test_from_diffusers(pipeline):
    g, f = golden('07_unet'), load(pipeline)
    assert type(f) is Consistency and (f.eps, f.T, f.sigma_data, f.facts['num_train_timesteps']) == (0.003, 70., 0.6, 201)
    assert_close(raw(f, g), g['out.diffusers'], atol=2e-4, rtol=0)
    file = pipeline/'unet'/'diffusion_pytorch_model.safetensors'
    torch.save(load_file(file), file.with_suffix('.bin'))
    file.unlink()
    assert_close(raw(load(pipeline), g), raw(f, g))

@pytest.mark.parametrize('name, content, says', [
    ('model_index.json', {'_class_name': 'DDPMPipeline'}, 'model_index.json describes a DDPMPipeline, not a ConsistencyModelPipeline'),
    ('scheduler/scheduler_config.json', {'_class_name': 'LCMScheduler'}, 'scheduler_config.json describes a LCMScheduler, not a CMSto'),
    ('scheduler/scheduler_config.json', None, 'scheduler/scheduler_config.json is missing or not JSON'),
    ('unet/config.json', {'_class_name': 'UNet2DModel'}, 'does not say sample_size'),
    ('unet/diffusion_pytorch_model.safetensors', None, 'there is no diffusion_pytorch_model.safetensors in .*unet')])
def test_from_diffusers_refusals(pipeline, name, content, says):
    (pipeline/name).unlink()
    if content: (pipeline/name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says): load(pipeline)

def test_from_diffusers_cut_short(pipeline):
    file = pipeline/'unet'/'diffusion_pytorch_model.safetensors'
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match='diffusion_pytorch_model.safetensors in .*unet is not whole'): load(pipeline)

@torch.no_grad()
@pytest.mark.parametrize('save', [dict(variant='fp16'), dict(max_shard_size='200KB'), dict(variant='fp16', max_shard_size='100KB'),
                                  dict(safe_serialization=False)], ids=str)
def test_files_of_diffusers(pipeline, tmp_path, save):
    "Whatever the library writes is opened: alone, or in a pipeline; nothing but the dtype is lost."
    diffusers = pytest.importorskip('diffusers')
    g, f = golden('07_unet'), load(pipeline)
    net = diffusers.UNet2DModel.from_pretrained(pipeline/'unet', low_cpu_mem_usage=False)
    shutil.rmtree(pipeline/'unet')
    (net.half() if 'variant' in save else net).save_pretrained(pipeline/'unet', **save)
    names = sorted(p.name for p in (pipeline/'unet').iterdir())
    assert 'diffusion_pytorch_model.safetensors' not in names and (len(names) > 3) == ('max_shard_size' in save), names
    close = dict(atol=.02, rtol=0) if 'variant' in save else dict(atol=1e-5, rtol=0)
    assert_close(raw(load(pipeline), g), raw(f, g), **close)
    assert_close(raw(load(pipeline/'unet', kind='Consistency'), g), raw(f, g), **close)
    if 'max_shard_size' not in save: return
    next((pipeline/'unet').glob('*-00002-of-*')).unlink()
    with pytest.raises(ValueError, match='names diffusion_pytorch_model.*-00002-of-.*, which is not in'): load(pipeline)

STEM = 'unet/diffusion_pytorch_model.safetensors'

@pytest.mark.parametrize('content, says', [
    ('{', 'does not say which files hold the weights'), ('{"metadata": {}}', "does not say .*'weight_map'"), ('null', 'does not say'), ('{"weight_map": ["a"]}', 'does not say'),
    ('{"weight_map": {"a": 3}}', 'does not say'), ('{"weight_map": {}}', 'does not say .*it names none'), ('\xff', 'does not say'),
    ('{"weight_map": {"a": "../unet/WEIGHTS"}}', r'names \.\./unet/WEIGHTS, which is not in .*unet'), ('{"weight_map": {"a": "ABSOLUTE"}}', 'names .*WEIGHTS, which is not in'),
    ('{"weight_map": {"a": "b.safetensors"}}', 'names b.safetensors, which is not in')])
def test_a_broken_index_of_shards(pipeline, content, says):
    "One sentence that names the index, whatever is in it; and what lies elsewhere is not read, though it is there."
    file = (pipeline/STEM).rename(pipeline/'unet'/'WEIGHTS')
    (pipeline/f'{STEM}.index.json').write_text(content.replace('ABSOLUTE', str(file)), encoding='latin1')
    with pytest.raises(ValueError, match=f'^diffusion_pytorch_model.safetensors.index.json .*{says}') as e: load(pipeline)
    assert '\n' not in str(e.value)

@torch.no_grad()
def test_what_lies_beside_weights(pipeline):
    "Other files of that name are no weights: graphs, locks, folders of tools."
    g, f = golden('07_unet'), load(pipeline)
    for end in ('.onnx', '', '.safetensors.lock', '.ckpt'): (pipeline/f'unet/diffusion_pytorch_model{end}').write_bytes(b'x')
    assert_close(raw(load(pipeline), g), raw(f, g))
    (pipeline/STEM).unlink()
    with pytest.raises(ValueError, match='there is no diffusion_pytorch_model.safetensors in .*unet'): load(pipeline)

@pytest.mark.parametrize('name, content, says', [
    ('consistency_nb.json', '{', 'consistency_nb.json in .* is not as `to_diffusers` writes it'), ('consistency_nb.json', '[]', 'consistency_nb.json in .* is not as'),
    ('unet/config.json', '[]', 'unet/config.json is missing or not JSON'), ('model_index.json', 'null', 'model_index.json is missing or not JSON')])
def test_json_of_another_kind(pipeline, name, content, says):
    (pipeline/name).write_text(content)
    with pytest.raises(ValueError, match=says): load(pipeline)

def test_a_scheduler_of_defaults(pipeline):
    "What a file leaves out has the library's default."
    scheduler = pytest.importorskip('diffusers').CMStochasticIterativeScheduler().config
    (pipeline/'scheduler/scheduler_config.json').write_text('{"_class_name": "CMStochasticIterativeScheduler"}')
    f = load(pipeline)
    assert [f.eps, f.T, f.sigma_data, f.facts['num_train_timesteps']] == [scheduler[k] for k in ('sigma_min', 'sigma_max', 'sigma_data', 'num_train_timesteps')]

@torch.no_grad()
def test_full_precision_before_a_variant(pipeline):
    g, file = golden('07_unet'), pipeline/'unet'/'diffusion_pytorch_model.safetensors'
    save_file({n: 2 * v for n, v in load_file(file).items()}, pipeline/'unet'/'diffusion_pytorch_model.fp16.safetensors')
    full = raw(load(pipeline), g)
    assert_close(full, g['out.diffusers'], atol=2e-4, rtol=0)
    file.unlink()
    assert not torch.allclose(raw(load(pipeline), g), full)

@torch.no_grad()
def test_the_average_of_a_training_script(pipeline):
    "A pipeline's network is the one that its index names; a checkpoint without one is opened by its average."
    g, f = golden('07_unet'), load(pipeline)
    shutil.copytree(pipeline/'unet', pipeline/'unet_ema')
    file = pipeline/'unet'/'diffusion_pytorch_model.safetensors'
    save_file({n: 2 * v for n, v in load_file(file).items()}, file)
    assert not torch.allclose(raw(load(pipeline), g), raw(f, g))
    (pipeline/'model_index.json').unlink()
    with pytest.raises(ValueError, match="holds a network alone: pass kind='Consistency' or 'Denoiser'; for a run, save the model"): load(pipeline)
    assert_close(raw(load(pipeline, kind='Consistency'), g), raw(f, g))
    assert type(load(pipeline, kind='Denoiser')) is Denoiser
    shutil.rmtree(pipeline/'unet')
    assert_close(raw(load(pipeline, kind='Consistency'), g), raw(f, g))

@torch.no_grad()
def test_the_average_that_diffusers_writes(pipeline):
    "`EMAModel` puts numbers of its own into config.json."
    diffusers = pytest.importorskip('diffusers')
    from diffusers.training_utils import EMAModel
    g, f = golden('07_unet'), load(pipeline)
    net = diffusers.UNet2DModel.from_pretrained(pipeline/'unet', low_cpu_mem_usage=False)
    EMAModel(net.parameters(), model_cls=diffusers.UNet2DModel, model_config=net.config).save_pretrained(pipeline/'unet_ema')
    assert 'decay' in json.loads((pipeline/'unet_ema/config.json').read_text())
    for v in net.parameters(): v.mul_(2)
    net.save_pretrained(pipeline/'unet')
    (pipeline/'model_index.json').unlink()
    assert_close(raw(load(pipeline, kind='Consistency'), g), raw(f, g))
    assert_close(raw(load(pipeline/'unet_ema', kind='Consistency'), g), raw(f, g))

@torch.no_grad()
@pytest.mark.parametrize('case, N, ts', [('onestep', 40, None), ('two_steps', 40, (22, 0)), ('two_steps_ct', 201, (106, 0))])
def test_to_diffusers(tmp_path, monkeypatch, case, N, ts):
    "What we write, the library opens, and it draws the published pictures from the published noise; so do we."
    pytest.importorskip('diffusers')
    from diffusers import ConsistencyModelPipeline
    from diffusers.schedulers import scheduling_consistency_models as module
    g = golden('07_unet')
    f = load_openai(weights(g, 'weights.adm.'), net=small())
    to_diffusers(f, tmp_path/'p', num_train_timesteps=N)
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path/'p', low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    noise, y = g[f'in.pipeline.{case}.noise'], g['in.class_labels'][:2].tolist()
    draws = iter(noise)
    monkeypatch.setattr(module, 'randn_tensor', lambda *args, **kwargs: next(draws).clone())
    images = pipe(batch_size=2, class_labels=y, latents=g[f'in.pipeline.{case}.latents'], output_type='pt',
                  **(dict(timesteps=[*ts]) if ts else dict(num_inference_steps=1))).images
    assert_close(images, g[f'out.pipeline.{case}.images'], atol=1e-4, rtol=0)
    levels = levels_from_indices([0, ts[0], N - 1], N) if ts else torch.tensor([80.])
    x = multistep(lambda x, t: f(x, t, torch.tensor(y)), g[f'in.pipeline.{case}.latents'] * 80, levels, noise=noise[:len(levels) - 1])
    assert_close((x / 2 + 0.5).clamp(0, 1), images, atol=1e-4, rtol=0)

def test_diffusers_there_and_back(pipeline, tmp_path):
    f = load(pipeline)
    to_diffusers(f, tmp_path/'again')
    g = load(tmp_path/'again')
    assert (g.eps, g.T, g.sigma_data, g.net.spec) == (f.eps, f.T, f.sigma_data, f.net.spec) and g.facts['num_train_timesteps'] == 201
    for n, v in load_file(pipeline/'unet'/'diffusion_pytorch_model.safetensors').items():
        assert_close(load_file(tmp_path/'again'/'unet'/'diffusion_pytorch_model.safetensors')[n], v, rtol=0, atol=0)

def test_to_diffusers_refusals(tmp_path):
    net = make_net(SMALL)
    for model in (Denoiser(net), Consistency(UNet(channels=(8,), blocks=1, attention=()))):
        with pytest.raises(ValueError, match='holds a Consistency around an ADMUNet, not a'): to_diffusers(model, tmp_path/'p')
    with pytest.raises(ValueError, match='cannot hold label_scale=1.0, group_channels=4'): to_diffusers(Consistency(make_net(SMALL | names.EDM_CONVENTIONS | dict(num_head_channels=64))), tmp_path/'p')
    assert not (tmp_path/'p').exists()

# ---- ONNX

NETS = dict(adm=lambda: adm.ADMUNet(8, 32, (1,), 1, (8,), num_head_channels=32, num_classes=4),   # a UNet is on the page
            ncsnpp=lambda: ncsnpp.SongUNet(8, 8, (1, 1), 1, (4,), augment_dim=9))

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', NETS)
def test_onnx(tmp_path, name):
    pytest.importorskip('onnxscript'); ort = pytest.importorskip('onnxruntime')
    net = randomised(NETS[name]())
    f = (Denoiser if name == 'adm' else Consistency)(net)
    assert to_onnx(f, tmp_path/'a.onnx', image_size=8) < 1e-5
    session = ort.InferenceSession(str(tmp_path/'a.onnx'))
    classes = net.spec['num_classes']
    assert [i.name for i in session.get_inputs()] == ['x', 't', 'y'][:2 + bool(classes)] and session.get_inputs()[0].shape[1:] == [3, 8, 8]
    for B in (1, 2, 5):
        x, t, y = torch.randn(B, 3, 8, 8) * 9, torch.rand(B) * 70 + 0.1, torch.arange(B) % classes if classes else None
        out, = session.run(None, {n: v.numpy() for n, v in dict(x=x, t=t, y=y).items() if v is not None})
        with torch.no_grad(): want = f(x, t, y)
        assert_close(torch.from_numpy(out), want, atol=1e-4 * want.abs().max().item(), rtol=0)
    net.conv_out.bias.data += 1   # not the model that was written
    args = dict(x=x, t=t) | (dict(y=y) if classes else {})
    with pytest.raises(ValueError, match='a.onnx differs from the model by'): exchange.onnx_gap(f, tmp_path/'a.onnx', args, 1e-4)

# ---- folders, names and the hub

def test_save_pretrained(tmp_path):
    f, x = Consistency(randomised(UNet(channels=(8,), blocks=1, attention=()))), torch.randn(2, 3, 8, 8)
    save_pretrained(f, tmp_path/'m', dict(preset='mine'))
    g = checkpoints.from_pretrained(tmp_path/'m')
    assert_close(g(x, 3.), f(x, 3.))
    assert g.facts == {'preset': 'mine'}

@pytest.mark.parametrize('net', [dict(JAX, num_classes=3, augment_dim=9), dict(JAX, embedding='positional', encoder='standard', resample_filter=[1, 1]), SMALL], ids=['ncsnpp', 'ddpmpp', 'adm'])
def test_save_and_load_large_networks(tmp_path, net):
    "Fixed numbers that no file holds (filters, frequencies) are there after loading."
    f, size = Consistency(randomised(make_net(net))), net['image_size']
    save(f, tmp_path/'a.safetensors')
    x, y = torch.randn(2, 3, size, size), torch.tensor([0, 2]) if net.get('num_classes') else None
    g = load(tmp_path/'a.safetensors')
    assert g.net.spec == f.net.spec and not any(v.is_meta for v in [*g.parameters(), *g.buffers()])
    with torch.no_grad(): assert_close(g(x, 3., y), f(x, 3., y))

def hub(monkeypatch, **functions):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(**functions))

def test_hub_own(tmp_path, monkeypatch):
    f, x = Consistency(randomised(UNet(channels=(8,), blocks=1, attention=()))), torch.randn(2, 3, 8, 8)
    done = []
    class HfApi:
        def __init__(self, token): done.append(token)
        def create_repo(self, repo_id, private, exist_ok): done.append((repo_id, private, exist_ok))
        def upload_folder(self, repo_id, folder_path):
            for p in Path(folder_path).iterdir(): (tmp_path/p.name).write_bytes(p.read_bytes())
            return 'https://there/commit'
    hub(monkeypatch, HfApi=HfApi, snapshot_download=lambda repo_id, allow_patterns: str(tmp_path))
    assert push_to_hub(f, 'me/model', dict(preset='mine'), private=True, token='t') == 'https://there/commit'
    assert done == ['t', ('me/model', True, True)] and {p.name for p in tmp_path.iterdir()} == {'model.safetensors', 'README.md'}
    assert "load('me/model')" in (tmp_path/'README.md').read_text() and 'library_name: consistency_nb' in (tmp_path/'README.md').read_text()
    g = load('me/model')
    assert_close(g(x, 3.), f(x, 3.))
    assert g.facts == {'preset': 'mine'}

@pytest.mark.parametrize('weights_file, fetches', [('safetensors', 1), ('fp16.safetensors', 2), ('bin', 3)])
def test_hub_pipeline(pipeline, tmp_path, monkeypatch, weights_file, fetches):
    "Of a pipeline only what is needed is fetched: variants and shards if there is no whole file, .bin if nothing else."
    file = pipeline/'unet'/'diffusion_pytorch_model.safetensors'
    if weights_file == 'bin': torch.save(load_file(file), file.with_suffix('.bin')); file.unlink()
    else: file.rename(file.with_name(f'diffusion_pytorch_model.{weights_file}'))
    asked, cache = [], tmp_path/'0123abcd'
    def snapshot_download(repo_id, allow_patterns):
        asked.append((repo_id, *allow_patterns))
        for p in (f.relative_to(pipeline) for p in allow_patterns for f in pipeline.glob(p)):
            (cache/p).parent.mkdir(parents=True, exist_ok=True)
            (cache/p).write_bytes((pipeline/p).read_bytes())
        return str(cache)
    hub(monkeypatch, snapshot_download=snapshot_download)
    f = load('openai/diffusers-cd_imagenet64_l2')
    assert type(f) is Consistency and f.facts['source'] == 'openai/diffusers-cd_imagenet64_l2'
    assert len(asked) == fetches and ('unet/diffusion_pytorch_model.bin' in asked[-1]) == (weights_file == 'bin')

def test_hub_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def snapshot_download(repo_id, allow_patterns): raise ConnectionError('no route')
    hub(monkeypatch, snapshot_download=snapshot_download)
    with pytest.raises(FileNotFoundError, match="no file or folder 'user/name', and as a repository it cannot be fetched .* connection and your rights .ConnectionError: no route"): load('user/name')
    for name in ('nothing', 'runs/model.safetensors', 'a/b/c', '/no/where', 'runs/cd_imagenet64_l2.pt', '../x'):   # no repository is called so
        with pytest.raises(FileNotFoundError, match='no model '): load(name)

def test_hub_offline(monkeypatch, tmp_path):
    "The library itself, told to stay offline."
    constants = pytest.importorskip('huggingface_hub').constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True); monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(FileNotFoundError, match="as a repository it cannot be fetched from the Hugging Face hub"): load('user/name')

def test_optional_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match='publishing a model needs huggingface_hub: pip install huggingface_hub'): push_to_hub(None, 'a/b')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match='an ONNX graph needs onnxscript: pip install onnxscript'): to_onnx(None, tmp_path/'a.onnx')
    monkeypatch.setitem(sys.modules, 'msgpack', None)
    (tmp_path/'checkpoint_1').write_bytes(b'\x80')
    with pytest.raises(ImportError, match='pip install msgpack'): load_jcm(tmp_path/'checkpoint_1', kind='Denoiser')

def test_other_endings(tmp_path):
    (tmp_path/'a.ckpt').write_bytes(b'x')
    with pytest.raises(ValueError, match='a.ckpt: models have one of the endings .safetensors, .pt, .pkl, or none'): load(tmp_path/'a.ckpt')
    (tmp_path/'a').mkdir()
    with pytest.raises(FileNotFoundError, match='no model'): load(tmp_path/'a')

@pytest.mark.parametrize('inside', ['', 'unet/', 'unet_ema/'])
def test_hub_network_alone(inside, pipeline, tmp_path, monkeypatch):
    "A UNet2DModel without a pipeline around it, or its average."
    home, cache = tmp_path/'home', tmp_path/'cache'
    shutil.copytree(pipeline/'unet', home/inside)
    def snapshot_download(repo_id, allow_patterns):
        for p in (f.relative_to(home) for pattern in allow_patterns for f in home.glob(pattern)):
            (cache/p).parent.mkdir(parents=True, exist_ok=True)
            (cache/p).write_bytes((home/p).read_bytes())
        return str(cache)
    hub(monkeypatch, snapshot_download=snapshot_download)
    with pytest.raises(ValueError, match="holds a network alone: pass kind='Consistency' or 'Denoiser'"): load('some/one')
    assert type(load('some/one', kind='Denoiser')) is Denoiser
