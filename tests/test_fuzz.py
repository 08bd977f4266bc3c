"""Every public function, preset field and parameter of a run against wrong input: one clear sentence, at once, and no file.

ROWS holds one valid call per public function; each argument is then replaced by what a user may pass by mistake. The call has to end in an error
of a clear kind, in one line, raised in our own code, in less than a second, without a new file; or in a result, where `ok` says that the value is legal.
NaN and an empty batch are legal everywhere in the formulas: they pass through, as a look at the values would make a GPU wait; the training loop looks."""
import copy, functools, importlib, inspect, math, os, re, signal, sys, tempfile, time, traceback, types
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
pytest.importorskip('hypothesis')
import numpy as np, torch
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from test_imports import LIB, MODULES

CLEAR = ValueError, TypeError, OSError, RuntimeError   # a KeyError or an AttributeError tells of our code, not of what to pass
HUGE = 10**18

class Own:
    "An argument that is an object of ours, or has no wrong values: not replaced."
    def __init__(self, value): self.value = value

class Row:
    "A valid call: of the public name, or of `call`. `ok`: values that are legal, as 'argument.kind'. `dry`: it needs files that are not here, and is not made."
    def __init__(self, call=None, /, ok='', dry=False, **args): self.call, self.ok, self.dry, self.args = call, set(ok.split()), dry, args

def part(call=None, /, **args):
    "A part of something larger, which has checked before: only the valid call is made."
    return Row(call, **{n: Own(v) for n, v in args.items()})

def wrong(v) -> dict:
    "What may be passed by mistake where `v` is right."
    if isinstance(v, Tensor):
        floats = v.is_floating_point()
        return dict(none=None, text='x', rank=v[None] if v.ndim < 4 else v[0], batch=torch.cat([v, v])[:-1] if len(v) > 1 else torch.cat([v]*3), empty=v[:0],
                    dtype=v.long() if floats else v.float(), **dict(nan=v*math.nan, meta=v.to('meta')) if floats else dict(negative=v.long() - 99, large=v.long() + HUGE))
    if isinstance(v, bool): return dict(none=None, text='x')
    if isinstance(v, (int, float)):
        return dict(none=None, text='3', list=[v], nan=math.nan, inf=math.inf, negative=-1 - v, zero=0, huge=HUGE if isinstance(v, int) else 1e300, **dict(fraction=v + 0.5) if isinstance(v, int) else {})
    if isinstance(v, (str, Path)): return dict(none=None, number=3, unknown=type(v)('no such/thing'), empty='', nul='a\0b')
    if isinstance(v, dict): return dict(none=None, text='x', empty={}, unknown={'no such': 1}, number=3)
    if isinstance(v, (tuple, list, range)): return dict(none=None, number=3, text='x', empty=type(v)() if not isinstance(v, range) else (), nan=[math.nan]*len(v), words=['x']*len(v), negative=[-99]*len(v), nested=[[1]]*len(v))
    if isinstance(v, np.ndarray): return dict(none=None, text='x', rank=v[0], dtype=v.astype(float), empty=v[:0])
    return dict(none=None, text='x', number=3)   # a function, a network, a picture

# ---- one valid call per public function

NET = dict(image_size=16, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
ADM = dict(image_size=16, model_channels=32, channel_mult=[1, 1], num_res_blocks=1, attention_resolutions=[8], num_head_channels=16)

def gen(seed=0): return torch.Generator().manual_seed(seed)

def road(tmp) -> dict:
    from consistency_nb import core, distances, ema, grid, losses, nets, oracle, pfode, schedules, solvers
    x, z = torch.randn(4, 3, 8, 8, generator=gen()), torch.randn(4, 3, 8, 8, generator=gen(1))
    t, s, g = torch.tensor([1., 2., 3., 4.]), torch.tensor([.5, 1., 2., 3.]), grid.karras_grid(6)
    n = torch.tensor([0, 1, 2, 3])
    G, f, D = oracle.Gaussian(), oracle.Gaussian().consistency, oracle.Gaussian().denoise
    M, L = (oracle.Mixture(torch.randn(3, d, generator=gen()), torch.ones(3), torch.ones(3)) for d in (2, 1))
    u, w, lin = x[:, :2, 0, 0].clone(), x[:, :1, 0, 0].clone(), nn.Linear(2, 2)
    unet = dict(channels=(8, 16), blocks=1, attention=(1,), emb=8)
    return {
        'core': dict(
            check_index=Row(count=Own(4), n=n, ok='n.batch'), find_device=Row(device='cpu'), readable=part(v=n), transformed=part(),
            check_batch=Row(x0=x, z=z), check_numbers=Row(whole=Own(True), least=Own(1), N=3, ok='N.huge'), check_seed=Row(seed=1, ok='seed.zero'), check_levels=Row(x=x, t=t),
            limits=part(seed=core.check_seed), whole=part(least=1, most=9), number=part(above=0.), every=part(rule=core.whole(1)), batches=part(lambda names: core.batches(*names), names=('a', 'b')),
            append_dims=Row(v=t, x=x), per_sample=[Row(t=t, x=x), Row(t=2., x=x, ok='t.zero t.huge x.rank x.batch')],
            mix_seed=Row(seed=3, draw=1, ok='seed.zero draw.zero draw.huge'), per_sample_noise=Row(seeds=(1, 2), shape=(3, 8, 8), draw=1, ok='draw.zero draw.huge shape.empty'),
            rng_state=Row(device='cpu'), replay=Row(lambda state: core.replay(state).__enter__(), state=core.rng_state('cpu'))),
        'oracle': dict(
            Oracle=part(),
            Gaussian=[Row(mean=0., std=.5, ok='mean.negative mean.zero mean.huge std.huge'), Row(G.sample, n=2, shape=(3, 8, 8), ok='n.zero shape.empty'), Row(G.logp, x=x, t=t), Row(G.score, x=x, t=t),
                      Row(G.denoise, x=x, t=t), Row(G.flow, x=x, t=t, s=s), Row(G.consistency, x=x, t=t, eps=.002, ok='eps.zero eps.negative')],
            Mixture=[Row(means=M.means, stds=M.stds, weights=M.weights), Row(M.sample, n=2, ok='n.zero'), *(Row(m, x=u, t=t) for m in (M.logp, M.score, M.denoise)),
                     Row(L.flow, x=w, t=t, s=s), Row(L.consistency, x=w, t=t)],
            components=Row(data=Own(M), x=u, t=t), log_odds=Row(data=Own(L), x=w, t=t), same_odds=Row(data=Own(L), x=w, t=t, s=s)),
        'pfode': dict(add_noise=Row(x0=x, t=t, z=z), denoised_to_score=Row(x=x, t=t, denoised=z), score_to_denoised=Row(x=x, t=t, score=z), slope=Row(x=x, t=t, denoised=z)),
        'grid': dict(
            check_grid=Row(grid=g, ok='grid.batch'),
            karras_level=part(u=g/80, eps=.002, T=80., rho=7.), karras_grid=Row(N=18, eps=.002, T=80., rho=7.),
            levels_from_indices=Row(ts=(0, 22, 39), N=40, eps=.002, T=80., rho=7.),
            uniform_n=Row(B=4, N=18, ok='B.zero N.huge'), between_n=Row(B=4, N=18, ok='B.zero N.huge'), lognormal_probs=Row(grid=g, mean=-1.1, std=2., ok='mean.zero mean.negative grid.batch'),
            lognormal_n=Row(B=4, grid=g, mean=-1.1, std=2., ok='B.zero mean.zero mean.negative'), lognormal_t=Row(B=4, mean=-1.2, std=1.2, ok='B.zero mean.zero mean.negative std.zero')),
        'solvers': dict(
            euler_step=Row(x=x, t=t, s=s, denoise=D), heun_step=Row(x=x, t=t, s=s, denoise=D), solve=Row(denoise=D, x=x, ts=g.flip(0), step=solvers.euler_step, ok='x.rank x.batch'),
            edm_sample_ode=Row(denoise=D, x=x, n=3, eps=.002, T=80., rho=7., ok='x.rank x.batch'), churned=Row(x=x, t=Own(2.), gamma=Own(.1), z=z, s_noise=Own(1.)),
            substeps=Row(step=Own(solvers.euler_step), m=2, rho=7., ok='m.huge'), gradients=part(), drawing=part(f=D),
            edm_sample=[Row(denoise=D, x=x, n=3, eps=.002, T=80., rho=7., churn=1., ok='x.rank x.batch churn.zero churn.huge'), part(denoise=D, x=x, n=3, churn=solvers.Churn(1., noise=torch.zeros(3, *x.shape)))],
            Churn=[Row(churn=1., s_min=0., s_max=50., s_noise=1., ok='churn.zero churn.huge s_min.zero s_max.zero s_max.inf s_max.huge s_noise.zero s_noise.huge'), part(solvers.Churn().z, i=0, x=x)]),
        'distances': dict(l1=Row(a=x, b=z), pseudo_huber=Row(a=x, b=z, c=.1, ok='c.zero c.huge'),
                          LPIPS=[Row(net='squeeze', size=64, weights=Own(None), pnet_rand=Own(True), pool='max', ok='size.none'), Row(distances.LPIPS('squeeze', 32, pnet_rand=True), a=x, b=z)]),
        'schedules': dict(
            steps=Row(k=3, K=10, s0=2, s1=150, ok='k.zero k.huge k.negative K.huge'), mu=Row(N=4, s0=2, mu0=.9, ok='N.huge s0.huge'), mu_as_coded=Row(N=4, s0=2, mu0=.9, ok='N.huge s0.huge'),
            ict_steps=Row(k=3, K=10, s0=10, s1=1280, ok='k.zero k.huge k.negative K.huge'), ect_ratio=Row(t=t, stage=2, q=2., k=8., b=1., ok='t.rank t.batch k.zero k.huge b.huge b.zero b.negative stage.zero'),
            pd_steps=Row(k=3, each=10, s0=16, ok='k.zero k.huge k.negative each.huge'), pd_rate=Row(k=3, each=10, s0=16, ok='k.zero k.huge k.negative each.huge'),
            growth=Row(k=3, K=10, stages=(3, 4, 6), ok='k.zero k.huge k.negative K.huge')),
        'continuous': dict(along=part(f=f, x=x, t=t, v=z), curvature=part(distance=losses.l2, y=x, v=z), continuous_loss=part(f=f, x_t=x, t=t, v=z),
                           continuous_norm_loss=part(f=f, x_t=x, t=t, v=z, norm=distances.l1)),
        'trigflow': dict(to_trigflow=part(x_t=x, t=t), from_trigflow=part(x=x, angle=t / 100), difference_along=part(f=f, x=x, t=t, v=z, step=1e-3), scm_tangent=part(f=f, x_t=x, t=t, aim=z),
                         tamed=part(g=x), LevelWeight=part(), scm_loss=part(f=f, x_t=x, t=t, aim=z)),
        'truncated': dict(truncated=part(f=f, first=f, cut=1.), at_border=part(t=t, cut=1.), border_weight=part(t=t, cut=1.), above=part(u=t / 100, cut=1., T=80.)),
        'meanflow': dict(jump=part(G=lambda x, t, r: x, x=x, t=t, r=s), jumps=part(G=lambda x, t, r: x, x=x, levels=(80., 1.)), to_linear=part(t=t), from_linear=part(tau=t / 100), average_velocity=part(G=lambda x, t, r: x), aims=part(model=lambda x, t, y, r: x),
                         adaptive=part(q=t), meanflow_loss=part(u=lambda x, t, r: x, x=x, tau=t / 100, rho=t / 200, v=z)),
        'losses': dict(
            difference=Row(a=x, b=z), l2=Row(a=x, b=z), edm_weight=part(t=t, sigma_data=.5), edm_loss=part(denoise=D, x0=x, t=t, z=z, sigma_data=.5),
            pair_loss=part(f=f, target=f, x_t=x, t=t, x_r=z, r=s, distance=losses.l2), neighbours=Row(n=n, grid=Own(g), ok='n.batch'),
            cd_loss=part(f=f, f_target=f, denoise=D, x0=x, z=z, n=n, grid=g, step=solvers.heun_step, distance=losses.l2),
            ct_loss=part(f=f, f_target=f, x0=x, z=z, n=n, grid=g, distance=losses.l2), inverse_gap=part(t=t, r=s), inverse_c_out=part(t=t, r=s),
            pd_loss=Row(denoise=Own(D), teacher=Own(D), x0=Own(x), z=Own(z), i=n, S=Own(4))),
        'ema': dict(EMA=[Row(model=lin), Row(ema.EMA(lin).update, model=Own(lin), rate=.9, ok='rate.zero')],
                    power_rate=Row(k=3., gamma=6.94, ok='k.huge gamma.zero gamma.huge'), width_of=Row(gamma=6.94, ok='gamma.zero gamma.huge'), gamma_of=Row(width=.05), overlaps=part(a=torch.tensor([[1., 2.]]), b=torch.tensor([[3., 4.]])),
                    reconstruct=Row(stored=[(6.94, 100), (16.97, 200)], wanted=(9., 150)), combined=Row(states=Own([dict(a=x, n=n), dict(a=z, n=n)]), shares=[.5, .5], ok='shares.negative'),
                    ramped=Row(rate=.9, steps=10., ramp=.05, ok='rate.zero steps.zero steps.huge ramp.zero ramp.huge'),
                    halflife_to_rate=Row(halflife_images=1e5, batch=8, seen=1e3, ramp=.05, ok='halflife_images.zero halflife_images.huge seen.zero seen.huge ramp.zero ramp.huge batch.huge')),
        'nets': dict(
            zero_init=part(layer=nn.Linear(2, 2)), class_vector=part(table=nn.Embedding(3, 2), y=n % 3), LevelEmbedding=part(dim=8), EndLevel=part(dim=8), Waves=part(), norm=part(channels=16), resample=part(x=x, how='up'), ResBlock=part(cin=8, cout=8, emb=8), mix=part(q=x, k=x, v=x), Attention=part(channels=64),
            plan=part(first=8, widths=(8, 16), blocks=1, attends=lambda *at: False), Stage=part(step=None, block=nn.Identity(), attend=nn.Identity()), stages=part(steps=[], block=None, attention=None),
            check_inputs=part(net=nets.UNet(**unet), x=x, c_noise=t, y=None), Frame=part(args=dict(__class__=nn.Module), side=1), each=part(least=1), probability=part(p=.5), resolutions=part(image_size=8, factors=(1, 2)),
            UNet=[Row(**unet, patch=2, dropout=.1, num_classes=3, in_channels=3, ok='attention.empty dropout.zero'), Row(nets.UNet(**unet, num_classes=3), x=x, c_noise=t, y=n[:4] % 3, ok='y.none')])}

def networks(tmp) -> dict:
    from consistency_nb import adm, names, ncsnpp
    x, c, y = torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.tensor([0, 1])
    song, net = ncsnpp.SongUNet(**NET, num_classes=3, augment_dim=4), adm.ADMUNet(**ADM, num_classes=3)
    plain = ncsnpp.SongUNet(**NET)
    config = names.diffusers_config(adm.ADMUNet(**ADM))
    return {
        'ncsnpp': dict(
            fir_kernel=Row(taps=(1, 3, 3, 1)), Resample=part(taps=(1, 1)), group_norm=part(channels=16), xavier=part(layer=nn.Linear(2, 2)), SongBlock=part(cin=8, cout=8, emb=8),
            SongAttention=part(channels=8), NoiseEmbedding=part(features=8, width=8, kind='fourier'), PyramidConv=part(cin=3, cout=8, taps=(1, 1)), pyramid=part(s=song.spec, steps=[]),
            song_plan=part(s=song.spec), conditions=part(net=song, y=None, augment=None, x=x), one_of=part(lambda: ncsnpp.one_of('a', 'b')),
            SongUNet=[Row(**NET, embedding='fourier', encoder='residual', resample_filter=(1, 1), num_classes=3, augment_dim=4, dropout=.1, in_channels=3, fourier_scale=16.,
                          ok='attn_resolutions.empty dropout.zero augment_dim.zero'),
                      Row(song, x=x, c_noise=c, y=y, augment=torch.zeros(2, 4), ok='y.none augment.none')],
            ncsnpp=Row(model_channels=8, num_blocks=1), ddpmpp=Row(model_channels=8, num_blocks=1)),
        'adm': dict(
            timestep_embedding=part(label=c, dim=8), ADMEmbedding=part(dim=8, emb=8), ADMAttention=part(channels=64), adm_plan=part(s=net.spec),
            ADMUNet=[Row(**ADM, num_classes=3, dropout=.1, in_channels=3, label_scale=1000., group_channels=1, ok='attention_resolutions.empty label_scale.negative label_scale.zero dropout.zero'),
                     Row(net, x=x, c_noise=c, y=y)],
            imagenet64=Row(**(ADM | dict(num_classes=3)), ok='attention_resolutions.empty num_classes.none'), lsun256=Row(**ADM, ok='attention_resolutions.empty')),
        'names': dict(
            steps_of=part(net=net), weight_names=Row(net=Own(net), whose='openai'), qkv_rows=Row(v=Own(torch.zeros(12, 2)), heads=Own(2), order='heads_three'),
            assemble=part(net=plain, tensors={n: v for (n,), v in zip(names.weight_names(plain, 'edm').values(), plain.state_dict().values())}, whose='edm'), check_conventions=part(net=net, conventions=names.OPENAI_CONVENTIONS, name='x'),
            from_openai=Row(net=Own(net), tensors=dict(fine=c), dry=True), from_diffusers=Row(net=Own(net), tensors=dict(fine=c), dry=True),
            from_edm=Row(net=Own(plain), tensors={n: v for (n,), v in zip(names.weight_names(plain, 'edm').values(), plain.state_dict().values())}), flat=part(params=dict(a=dict(b=1))), from_flax=Row(net=Own(plain), params=dict(a=c), dry=True),
            diffusers_config=part(net=adm.ADMUNet(**ADM)), to_diffusers=part(net=adm.ADMUNet(**ADM)), spec_from_diffusers=Row(config=config))}

def files(tmp) -> dict:
    from PIL import Image
    from consistency_nb import cache, folders, presets, sets
    out = tmp/'out'; out.mkdir(exist_ok=True); tmp = tmp/'in'; (tmp/'zoo'/'a').mkdir(parents=True); (tmp/'zoo'/'b').mkdir()
    pic = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8))
    for n in 'a/1.png', 'b/2.png': pic.save(tmp/'zoo'/n)
    bytes_ = torch.zeros(4, 3, 8, 8, dtype=torch.uint8); np.save(tmp/'a.npy', bytes_.numpy()); np.savez(tmp/'a.npz', arr_0=bytes_.numpy())
    torch.save({'a': torch.zeros(2)}, tmp/'a.pt')
    batch, flip, index = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([True, False, True, False]), torch.tensor([0, 1])
    cache.write_tensors(tmp/'read.safetensors', {}, dict(a=torch.zeros(2)))
    images, folder = sets.Images(bytes_), folders.Folder(folders.Files(tmp/'zoo', ['a/1.png', 'b/2.png'], 8))
    whole = presets.preset('avatars32_cd')
    return {
        'pixels': dict(
            check_bytes=part(b=batch), as_floats=Row(b=batch, flip=flip, ok='flip.meta'), to_bytes=Row(x=batch.float(), ok='x.rank x.batch'), eight_bits=part(im=pic), clear_colour=part(im=pic), upright=part(im=pic), middle=part(im=pic, w=4, h=4), square=part(im=pic, size=8),
            check_channels=part(channels=3), read_square=Row(file=tmp/'zoo'/'a'/'1.png', size=8, channels=3), read_picture=Row(file=tmp/'zoo'/'a'/'1.png', size=8, channels=3), shown_size=part(file=tmp/'zoo'/'a'/'1.png'), write_picture=Row(x=batch[:1].float(), path=out/'zoo.png')),
        'folders': dict(
            picture_files=Row(folder=tmp/'zoo', ok='folder.empty folder.unknown'), hidden=part(name='a/1.png'), is_file=part(path=tmp/'a.npy'), stray=part(names=['a/1.png']), class_labels=part(names=['a/1.png', 'b/2.png']), class_names=part(names=['a/1.png', 'b/2.png']), is_picture=part(name='a/1.png'), in_order=part(names=['a/1.png']),
            shared_folders=part(names=['a/1.png', 'b/2.png']), tops=part(names=['a/1.png', 'b/2.png']),
            stated_labels=part(table='{"labels": null}', names=['a/1.png']),
            open_lmdb=part(lambda folder: None, folder=tmp), Records=part(lambda folder: None, folder=tmp), some=part(names=['a']),
            now=part(path=tmp/'a.npy'), open_zip=part(lambda path: None, path=tmp), Zipped=part(lambda path: None, path=tmp), threads_of=part(process=0, threads=1), Files=part(folder=tmp/'zoo', names=['a/1.png'], size=8, channels=3),
            faults=part(pictures=folder.pictures), read_all=part(pictures=folder.pictures), fingerprint=part(folder=tmp/'zoo', names=['a/1.png']), check_set=part(count=2, labels=index, name='x'),
            Folder=[Row(pictures=Own(folder.pictures), labels=index, threads=1), Row(folder.batch, index=index, flip=Own(flip[:2]))]),
        'cache': dict(
            user_path=part(path='a'), sync_folder=part(folder=tmp), write_whole=part(path=tmp/'note.txt', write=lambda p: p.write_text('x')), checksum=part(facts='{}', tensors=dict(a=batch)), digest=part(x=batch), cache_folder=part(),
            write_tensors=part(path=tmp/'t.safetensors', facts={}, tensors=dict(a=batch)), read_tensors=Row(path=tmp/'read.safetensors'), cached=part(path=tmp/'kept.safetensors', make=lambda: ({}, dict(a=batch)))),
        'sets': dict(
            Images=[Row(images=batch, labels=torch.arange(4), ok='labels.meta'), Row(images.batch, index=index, flip=Own(flip[:2]), ok='index.batch')],
            cached_images=part(lambda name: None, name='x'), listed=part(path=tmp/'zoo', size=8, channels=3), classes_of=part(found=folder.pictures),
            map_array=part(lambda path: None, path=tmp), Mapped=part(path=tmp/'a.npy'),
            pictures=Row(folder=tmp/'zoo', size=8, channels=3, memory=1., ok='memory.zero memory.huge'), channels_first=Row(a=bytes_.numpy(), name=Own('x'), ok='a.empty'), read_arrays=Row(path=tmp/'a.npy'),
            arrays=Row(path=tmp/'a.npy', size=8, memory=1., ok='memory.zero memory.huge'), cifar10=Row(root=tmp/'cifar10', dry=True), folder_ranks=part(lambda table: 0, table=tmp), downsampled=part(lambda files: None, files=[]), imagenet=Row(folder=tmp/'imagenet', size=64, dry=True)),
        'data': dict(
            style=part(name='moods'), portrait=part(k=0, seed=1, size=8), draw_avatars=part(n=2, first=0, size=8), avatars=Row(n=2, size=8, first=3, ok='n.huge first.zero'), held_out=Row(data=images, n=2, ok='n.huge'),
            place=part(name='cifar10', kind='cifar10', root=tmp), told=part(data=images), say_once=part(text='x'), gaps=part(labels=index), by_path=part(given=tmp/'zoo', size=8, channels=3, memory=1.), dataset=Row(name=str(tmp/'zoo'), size=8, channels=3, memory=1., ok='memory.zero memory.huge'),
            check_data=part(data=images), few_pictures=part(data=images, device='cpu'), pixel_moments=Row(data=images, sample=4, ok='sample.huge'), measure_sigma_data=Row(data=images, sample=4, ok='sample.huge'), check_sigma_data=Row(data=images, sigma_data=1., tolerance=.25, ok='tolerance.zero tolerance.huge sigma_data.huge')),
        'presets': dict(preset=Row(name='avatars32_cd'), names=part()),
        'record': dict(
            Levels=part(), Preset=Row(**{f: Own(getattr(whole, f)) for f in whole.__dataclass_fields__}), need_preset=Row(p=whole), is_power_of_2=part(n=4), faults=part(p=whole), faults_of_form=part(p=whole), faults_of_levels=part(p=whole), check_preset=part(p=whole), check_parameter=part(name='n', default=1, v=2), same_type=part(name='x', old=1, new=2), override=Row(preset=whole, lr=.1, ok='lr.huge'),
            read_parameters=part(declared=dict(n=1), given=dict(n=2))),
        'foreign': dict(
            wanted=part(e=ValueError('GLOBAL a.b')), Refused=part(name='a', what='b'), one_sentence=part(name='a', what='b'), read_pt=Row(path=tmp/'a.pt'), Record=part(), Reader=part(lambda file: None, file=''), tensor=part(lambda r: 0, r=None),
            state_of=part(lambda r: 0, r=None), gather=part(lambda r: 0, r=None), plain=part(v=1), settings_of=part(lambda r: 0, r=None), read_edm=Row(path=tmp/'edm.pkl', dry=True),
            array=part(lambda unpack: 0, unpack=None), whole_array=part(d={}), read_flax=Row(path=tmp/'checkpoint_1', limit=9, dry=True))}

def models(tmp) -> dict:
    from consistency_nb import checkpoints as ck, cost, edit, formats as ft, nets, oracle, precond, presets, sample, adm, ncsnpp
    net = nets.UNet((8, 8), blocks=1, patch=1, attention=(), emb=8)
    f, out = precond.Consistency(net), tmp/'out'; out.mkdir(exist_ok=True)
    f.facts = dict(image_size=8)
    C = precond.Consistency(nets.UNet((8, 8), blocks=1, patch=1, attention=(), emb=8, num_classes=2)); C.facts = dict(classes=['a', 'b'])
    x, t = torch.randn(2, 3, 8, 8, generator=gen()), torch.tensor([1., 2.])
    ck.save(f, tmp/'in'/'m.safetensors')
    big, G = precond.Consistency(adm.ADMUNet(**ADM)), oracle.Gaussian().consistency
    p, D = presets.preset('avatars32_cd'), precond.Denoiser(net)
    lv, edits = (80., 1.), 'eps.zero x.none seeds.none'
    return {
        'precond': dict(
            edm_scalings=part(t=t, sigma_data=.5), cm_scalings=part(t=t, sigma_data=.5, eps=.002),
            Denoiser=[Row(net=net, sigma_data=.5), Row(D, x=x, t=t)], Consistency=[Row(net=net, sigma_data=.5, eps=.002, T=80., ok='eps.zero'), Row(f, x=x, t=t)]),
        'sample': dict(
            start=Row(seeds=(1, 2), shape=(3, 8, 8), T=80., ok='shape.empty'), onestep=Row(f=G, x=x, T=80., ok='x.rank x.batch'), check_levels=Row(levels=lv, eps=.002, T=80., ok='eps.zero'), multistep=Row(f=G, x=x, levels=lv, eps=.002, seeds=(1, 2), ok='x.rank eps.zero'),
            generate=Row(draw=lambda x, s: x, seeds=(1, 2), shape=(3, 8, 8), T=80., batch=1, ok='shape.empty batch.huge'), guided=part(D=lambda x, t, y: x, w=2.), labelled=part(f=G, seeds=(1, 2), classes=3), class_indices=Row(model=Own(C), y=['a', 0], ok='y.text'), of_class=[Row(model=Own(C), y='a', ok=''), part(sample.of_class(C, 'a'), x=x, t=t)], Found=part(levels=lv, indices=(0, 1), score=1., tried={}),
            search_levels=Row(score=lambda levels: 1., N=8, steps=2, eps=.002, T=80., rho=7.), sampler=Row(model=f, steps=1, levels=(80.,), T=80., ok='levels.none'),
            draw=Row(model=f, n=2, steps=1, seed=3, levels=(80.,), batch=2, shape=(3, 8, 8), ok='seed.zero levels.none batch.huge shape.empty')),
        'formats': dict(
            make_net=Row(spec=net.spec), blank=part(make=lambda: net), fill=part(net=net, state=net.state_dict()), place=part(model=f), about=part(model=f), described=part(said=ft.about(f), net=net), publish=part(lambda net: 0, net=net),
            openai_net=part(lambda tensors: 0, tensors={}), load_openai=Row(source=dict(a=t), dry=True), song_settings=part(t={}), edm_spec=part(lambda tensors: 0, tensors={}), load_edm=Row(source=dict(a=t), dry=True), load_jcm=Row(source=dict(a=t), net=Own(ncsnpp.SongUNet(**NET)), dry=True)),
        'exchange': dict(
            read_json=part(lambda path: 0, path=''), network_in=part(path=tmp), write_json=part(path=tmp/'in'/'x.json', d={}), from_diffusers=Row(path=tmp/'pipeline', dry=True), to_diffusers=Row(model=big, path=out/'pipeline', num_train_timesteps=40, ok='path.unknown path.empty num_train_timesteps.huge'),
            optional=part(package='json', why='a test'), example_inputs=part(spec=net.spec, size=8, batch=2), onnx_gap=part(lambda model: 0, model=f), to_onnx=part(lambda model: 0, model=f)),   # half a minute; the notebook has its errors
        'checkpoints': dict(
            from_pretrained=Row(name_or_path=str(tmp/'in'/'m.safetensors')), as_json=part(said={}), save=Row(model=f, path=out/'m.safetensors', facts=dict(a=1), ok='facts.empty facts.unknown'), fetch=part(lambda repo_id: 0, repo_id='a/b'), shipped=part(),
            find=Row(name_or_path='avatars32-cd'), read=Row(path=tmp/'in'/'m.safetensors'), load_own=Row(path=tmp/'in'/'m.safetensors'), load=Row(name_or_path=str(tmp/'in'/'m.safetensors'), device='cpu', ok='device.empty'),
            save_pretrained=Row(model=f, folder=out/'folder', ok='folder.unknown folder.empty'), push_to_hub=part(lambda model: 0, model=f)),
        'cost': dict(
            forward_cost=part(lambda net: 0, net=net), passes=part(p=p), lpips_flops=part(lambda: 0), copies=part(p=p), images_per_device=part(p=p),
            matmul_rate=Row(device='cpu', size=16, seconds=.01), Cost=part(lambda: 0), estimate=Row(p=p, flops_per_s=1e12, share=.4, channels=3, ok='flops_per_s.huge')),
        'edit': dict(
            noised=Row(y=x, level=.5, seeds=(1, 2), ok='level.zero'), zero_shot=Row(f=G, y=x, keep=lambda x, y: x, levels=lv, seeds=(1, 2), ok=edits), keep_pixels=part(x=x, y=x, mask=x > 0), Sampling=part(), sample_projected=part(lambda f: None, f=G),
            inpaint=Row(f=G, y=x, mask=torch.ones(8, 8), levels=lv, x=x, eps=.002, ok='mask.rank mask.dtype ' + edits), grey=Row(y=x, ok='y.batch'), keep_grey=part(x=x, y=x),
            colorize=Row(f=G, y=x, levels=lv, ok='y.batch'), pixelate=Row(y=x, factor=2, ok='y.batch y.rank'), keep_means=part(x=x, y=x, factor=2), super_resolve=Row(f=G, y=x, levels=lv, factor=2, ok='y.batch y.rank'),
            stroke=Row(f=G, y=x, levels=lv, x=x, eps=.002, ok=edits), denoise=Row(f=G, x=x, t=1., eps=.002, T=80., ok='x.rank x.batch T.huge'), slerp=Row(z1=x, z2=-x[:, :, :1].expand_as(x), alpha=.3, ok='alpha.negative alpha.zero alpha.list'),
            interpolate=Row(f=G, z1=x, z2=x.flip(0), alpha=.3, T=80., ok='alpha.negative alpha.zero alpha.list'))}

def running(tmp) -> dict:
    from consistency_nb import assemble, data, distances, files, launch, nets, objective, oracle, parallel, place, presets, processes, solvers, train, watch
    x, n, out = torch.randn(2, 3, 8, 8, generator=gen()), torch.tensor([0, 1]), tmp/'out'
    net = nets.UNet((8, 8), blocks=1, patch=1, attention=(), emb=8)
    p = presets.override(presets.preset('avatars32_cd'), iterations=1, batch=2, image_size=8, growth=(3, 4), sigma_data=.58, precision='fp32', net=dict(cls='UNet'))
    images, f = data.Images(torch.arange(768).reshape(4, 3, 8, 8).to(torch.uint8), 'tiny'), oracle.Gaussian().consistency
    made = dict(net=net, data=images, teacher=f, distance=distances.l2, step=solvers.heun_step)
    run, none = train.Run(p, place.Parts(**made | dict(net=copy.deepcopy(net))), place.Options(device='cpu')), lambda *a: None
    path = tmp/'in'/'state.safetensors'
    files.write_state(path, dict(k=1), dict(a=x)); (tmp/'kept').mkdir(); files.write_run(run, tmp/'kept'/'checkpoint.safetensors')
    (tmp/'in'/'averaged'/'averages').mkdir(parents=True)
    for w in .05, .1: files.write_state(tmp/'in'/'averaged'/'averages'/f'00000001-{w}.safetensors', {}, net.state_dict())
    facts, tensors = train.facts_of(run), {n: v.clone() for n, v in train.tensors_of(run).items()}
    count = iter(range(10**6))
    options = dict(seed=0, device='cpu', minutes=0., accumulate=2, tracker='')
    named = [*made, *options]
    def by_name(fn, options=options):
        "A door that takes records, with the fields of these as arguments, and a folder of its own for each call."
        def call(**a):
            parts = place.Parts(**{n: copy.deepcopy(a[n]) if a[n] is net else a[n] for n in made})
            return fn(a['p'], parts, place.Options(**{n: a[n] for n in options}), **{n: v for n, v in a.items() if n not in ('p', *named, *options)})
        call.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None if n in ('distance', 'teacher', 'step', 'on_log', 'bar') and False else inspect.Parameter.empty) for n in ('p', *named)])
        return call
    in_folder = lambda p, parts, options, **a: launch.fit_in(**{'out_dir': tmp/f'runs{next(count)}', **a}, p=p, parts=parts, options=options)
    launched = lambda p, parts, options, **a: launch.launch(tmp/f'runs{next(count)}', p, parts, options)
    legal = 'seed.zero minutes.zero tracker.none tracker.empty'
    door = dict(p=p, **made, **options)
    many = dict(num_processes=4, num_nodes=2, node_rank=1, address='head', port=29500)
    started = lambda **a: processes.check_counts(place.Options(**a))
    tiny = lambda fn: functools.wraps(fn)(lambda p, **o: fn(p, place.Options(**o)))
    ct = presets.override(presets.preset('avatars32_ct'), data='avatars32-10')
    never = lambda **a: None
    return {
        'objective': dict(
            levels_at=part(p=p, k=3, K=10), boundary=part(p=p), stage_at=part(p=p, k=3, K=10), faded=part(p=p, k=3, K=10), anywhere=part(p=p, B=4, gen=gen()), pair_of=part(p=p, n=n, grid=torch.linspace(1, 9, 5), stage=0), jump_ends=part(p=p, B=4, gen=gen()), drawn=part(p=p, B=4, gen=gen(), grid=torch.linspace(1, 9, 5)), of_jumps=part(p=presets.preset('avatars32_mf'), model=lambda x, t, r: x, teacher=None, warm=1., x0=x, z=x, ends=torch.ones(len(x), 2)), without_gap=part(p=presets.preset('avatars32_sct'), model=f, teacher=None, distance=None, warm=1., x0=x, z=x, t=n + 1.), pd_stage=part(p=presets.preset('avatars32_pd'), K=100), mu_at=[part(p=p, N=4), part(p=presets.preset('cifar10_ct'), N=4)],
            lr_at=part(p=p, k=3, K=10), ema_at=part(p=presets.preset('avatars32_edm'), k=3), autocast_dtype=[Row(precision='fp32', device=Own('cpu')), Row(precision=Own('auto'), device='cpu')],
            wrap=part(net=net, p=p), levels_of=part(p=p, n=n, grid=torch.tensor([.1, 1., 2.])), with_labels=part(f=f, y=None), weight_of=part(p=p), hop=part(p=p, N=3, step=solvers.euler_step), Objective=part(p=p, K=10, model=f, target=f),
            uniform=part(gen=gen(), n=2), noise=part(seed=1, part=range(2), shape=(3, 8, 8), gen=gen())),
        'place': dict(
            Parts=part(**made), Options=part(**options), check_run=Row(by_name(place.check_run), **door, ok=legal + ' device.none device.number device.unknown device.empty device.nul tracker.number tracker.unknown tracker.nul accumulate.none accumulate.text accumulate.list accumulate.nan accumulate.inf accumulate.negative accumulate.zero accumulate.huge accumulate.fraction'),
            read_later=part(flag=torch.tensor(True)), choose_device=Row(name='cpu'), portions=Row(batch=8, processes=2, process=1, accumulate=2, ok='process.zero process.huge batch.huge'), Alone=Row(device='cpu')),
        'train': dict(
            set_dropout=part(net=net, p=p), Run=Row(by_name(train.Run), **door, ok=legal + ' tracker.number tracker.unknown tracker.nul'), labels_of=part(run=run, index=n, gen=gen()), gradient=part(run=run),
            descend=part(never, run=run), average=part(never, run=run), diagnosis=part(never, run=run), Hook=part(), train=part(run=run), networks_of=part(run=run), tensors_of=part(run=run), set_tensors=part(run=run, tensors=tensors), facts_of=part(run=run), length=part(run=run, facts=facts),
            resume=part(run=run, facts=facts, tensors=tensors), Clock=part(minutes=0.), fit=Row(by_name(train.fit), **door, ok=legal + ' tracker.number tracker.unknown tracker.nul')),
        'files': dict(
            check_folder=Row(out_dir=str(tmp/'runs'), ok='out_dir.unknown out_dir.nul'), before=part(path=path), what_remains=part(path=path),
            write_state=Row(path=out/'s.safetensors', facts=dict(k=1), tensors=Own(dict(a=x)), ok='facts.none facts.text facts.empty facts.unknown facts.number'), read_state=Row(path=path),
            latest_state=Row(path=path, say=Own(none), ok='path.unknown path.nul'), run_folder=[Row(out_dir=tmp/'runs', ok='out_dir.empty out_dir.unknown'), Row(out_dir=str(tmp/'runs'), ok='out_dir.unknown')],
            say=part(text=''), write_run=part(run=run, path=out/'w.safetensors'), go_on=part(run=run, out=tmp/'kept'), news=part(run=run, facts=facts), who_holds=part(out=tmp/'kept'), lock=part(out=tmp/'kept'), free=part(out=tmp/'kept', lock=FileLock(tmp/'kept/x.lock')), held=part(out=tmp/'kept'), Save=part(out=out), Interrupt=part(), averages_in=part(out=out), Snapshots=part(out=out)),
        'watch': dict(
            Meter=part(device='cpu'), position=part(p=p, k=3, K=10), mend=part(path=tmp/'metrics.jsonl', k=1), append=part(never, path=tmp), check_tracker=Row(name='', ok='name.none'),
            open_trackers=part(never, run=run), flat=part(record=dict(step=1)), print_line=part(never, record={}), show=part(never, trackers=[]), open_bar=part(run=run, bar=False), record_of=part(run=run, rate=1.), write_record=part(never, record={}), somebody_watches=part(), Watch=part(out=tmp), keep_frame=part(never, images=x), preview=part(run=run, x=x), pictures=part(shape=(3, 8, 8), out=out)),
        'parallel': dict(accelerator=Row(device='cpu', patience=Own(30.)), Replicas=part(never, acc=None), Shards=part(never, acc=None), shard=part(never, net=net), forget_variables=part(), place_of=part(options=place.Options(device='cpu'))),   # these ask all processes
        'processes': dict(
            check_counts=Row(started, **many, ok='node_rank.zero address.number address.unknown address.nul'), config_of=part(never, o=None), story=part(never, failures={}), follow_parent=part(),
            enough_devices=part(o=place.Options(num_processes=2, device='cpu')), start=Row(command=[sys.executable, '-c', 'pass'], options=Own(place.Options()))),
        'assemble': dict(
            distance_of=Row(p=p), step_of=Row(p=p), parts_of=Row(lambda p, **o: assemble.parts_of(p, place.Options(**o)), p=ct, device='cpu', seed=0, ok='seed.zero'),
            family=part(data='avatars32'), way_out=part(p=ct), familiar=part(p=ct, role='init', data='avatars32'), first_stage=part(p=p, data='avatars32'), first_weights=part(p=p, model=objective.wrap(net, p)), measured=part(p=ct), adapted=part(p=ct, changes={})),
        'launch': dict(
            fit_in=[Row(by_name(in_folder), **door, log_every=1., save_every=1., on_log=none, ok=legal + ' log_every.zero log_every.huge save_every.zero save_every.huge on_log.none'),
                    Row(by_name(lambda p, parts, options, **a: launch.fit_in(p=p, parts=parts, options=options, **a)), out_dir=str(tmp/'fit'), **{k: Own(v) for k, v in door.items()}, ok='out_dir.unknown')],
            load_average=Row(out_dir=tmp/'in'/'averaged', width=.05, step=1, like=objective.wrap(net, p), device='cpu', ok='device.empty'),
            model_of=part(run=run), Note=part(out=tmp), levels_in=part(out=tmp), write_model=part(model=objective.wrap(net, p), path=tmp/'m.safetensors', p=p, data=images), launch=Row(by_name(launched), **door, ok=legal), check_options=Row(tiny(launch.check_options), p=p, seed=0, minutes=0., device='cpu', accumulate=1, tracker='', num_processes=1, num_nodes=1, node_rank=0, address='', port=0,
                ok='seed.none seed.text seed.list seed.nan seed.inf seed.negative seed.zero seed.huge seed.fraction minutes.none minutes.text minutes.list minutes.nan minutes.inf minutes.negative minutes.zero minutes.huge tracker.none node_rank.zero address.none address.number address.unknown address.nul port.zero'),
            true_or_false=part(s='True'), read_options=part(argv=['--preset', 'avatars32_ct']), plain=part(word='3'), read_preset=Row(name='avatars32_ct'), main=part(never, argv=[]))}

def measured(tmp) -> dict:
    from consistency_nb import checkpoints as ck, data, evaluate as ev, features as fe, nets, npz, precond, references as ref, stream
    g, out = gen(), tmp/'out'
    pics = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=g)
    v, w, lite = torch.randn(12, 4, generator=g), torch.randn(12, 4, generator=g), 'efficientnet-lite0'
    net = nets.UNet((8, 8), blocks=1, patch=1, attention=(), emb=8)
    f, D = precond.Consistency(net), precond.Denoiser(net)
    f.facts = dict(image_size=8)
    images, seen = data.Images(pics, 'tiny'), ref.Seen(dict(features=lite, size=8, n=12, seed=0, rounding='nearest', name='a', hash='b'), ev.statistics([v]), dict(pool=v))
    report = ref.report(seen, seen, 'fid')
    npz.write_samples(tmp/'in'/'s.npz', [pics], 12); np.savez(tmp/'in'/'r.npz', mu=np.zeros(4), sigma=np.eye(4))
    def plain(x, seeds): return (x/80).clamp(-1, 1)
    stream.stream(plain, range(4), (3, 8, 8), tmp/'shards', dict(model='plain'), shard=2, say=lambda s: None)
    ck.save(f, tmp/'in'/'drawn.safetensors')
    job, none = stream.Job(str(tmp/'in'/'drawn.safetensors'), levels=(80.,), n=2), lambda *a: None
    count = iter(range(10**6))
    @functools.wraps(ref.reference)
    def fresh_cache(**args):
        with mock.patch.dict(os.environ, CONSISTENCY_NB_CACHE=str(tmp/f'cache{next(count)}')): return ref.reference(**args)
    @functools.wraps(stream.stream)
    def anew(**args): return stream.stream(**dict(folder=tmp/f'shards{next(count)}', shard=2, say=none) | args)
    shards = dict(folder=tmp/'shards', seeds=range(4), shard=2)
    look = dict(features=lite, device='cpu')
    return {
        'features': dict(
            fold_batchnorm=part(lambda net: None, net=net), Lite0=part(lambda name: None, name='x'), Lite0At224=part(lambda name: None, name='x'),   # torch-fidelity makes the two
            extractor_name=Row(features='inception'), default_layer=part(features=lite), byte_images=part(x=pics), kind_of=part(x=pics),
            extract=Row(images=pics, **look, batch=2, ok='images.batch device.empty batch.huge')),
        'evaluate': dict(
            feature_rows=Row(v=v, ok='v.batch'), both=part(a=v, b=w), as_features=[Row(x=pics, features=lite, what=Own('images'), ok='x.batch'), Row(x=v, features=lite, ok='x.batch')],
            pick=part(x=dict(pool=v)), statistics=Row(batches=[v, w]), frechet_distance=Row(a=v, b=w, ok='a.batch b.batch'), precision_recall=Row(a=v, b=w, ok='a.batch b.batch'), kernel_distance=Row(a=v, b=w, seed=1, ok='a.batch b.batch seed.zero'), class_score=Row(logits=v, seed=1, ok='logits.batch seed.zero'),
            evaluate=[Row(images=v, reference=w, metrics=('fid', 'kid', 'pr'), features=lite, seed=1, ok='images.batch reference.batch seed.zero'), Row(images=pics, reference=Own(fe.extract(pics, **look)), metrics='fid', features=lite, ok='images.batch')],
            floor=Row(features=v, n=4, seed=1, ok='features.batch seed.negative seed.zero seed.huge'), closeness=Row(samples=v, train=w, share=.5, asked=9, features=lite, ok='samples.batch train.batch share.zero asked.huge'),
            nearest=Row(images=v, train=w, k=2, features=lite, ok='images.batch train.batch'), class_rate=Row(images=v, y=torch.arange(12) % 2, reference=w, labels=torch.arange(12) % 2, features=lite, ok='y.large labels.large')),
        'references': dict(
            Seen=part(about={}, statistics=seen.statistics), keep_rows=part(portions=[dict(pool=v)], keep=3), summarize=Row(batches=[pics], **look, keep=3, ok='device.empty keep.zero keep.huge'), identity=part(data=images), picked=Row(total=10, n=4, seed=0, keep=3, ok='keep.huge seed.negative seed.huge'),
            reference=Row(fresh_cache, data=images, n=4, seed=0, keep=3, **look, ok='device.empty keep.huge seed.negative seed.huge'), check_alike=Row(reports=dict(a=report, b=report), ok=''), report=Row(samples=seen, reference=seen, metrics='fid'), spread=Row(reports=[report]),
            table=Row(rows=dict(a=report, b=report), columns=['fd'], ok='columns.empty')),
        'npz': dict(
            write_samples=Row(path=out/'w.npz', batches=[pics], n=12, labels=torch.arange(12), ok='labels.negative labels.large'), numbered=part(folder=out/'png', n=12, draw=lambda r: pics[:len(r)], about={}), read_npz=Row(path=tmp/'in'/'s.npz'),
            read_samples=Row(path=tmp/'in'/'s.npz', **look, keep=3, ok='device.empty keep.zero keep.huge'), read_statistics=Row(path=tmp/'in'/'r.npz'), read_reference=[Row(path=tmp/'in'/'r.npz', features=lite), Row(path=tmp/'in'/'s.npz', **look, keep=3, ok='device.empty keep.zero keep.huge')]),
        'stream': dict(
            parts=Row(seeds=range(5), shard=2, ok='shard.huge'), shard_file=part(folder=tmp, part=range(2)), is_there=part(file=tmp/'none', about={}), Share=part(),
            stream=Row(anew, draw=plain, seeds=range(2), shape=(3, 8, 8), about=dict(model='x'), features=lite, T=80., batch=2, device='cpu', ok='about.empty about.unknown batch.huge device.none'), all_shards=Row(**shards), collect=Row(**shards, keep=3, ok='keep.zero keep.huge'), read_images=Row(**shards),
            Job=Row(model=Own('m'), way=Own('multistep'), levels=(80., 1.), steps=2, n=3, seed=0, features=lite, ok='n.zero'), job_sampler=[Row(f=f, job=Own(job)), Row(f=D, job=Own(stream.Job('m', 'heun', n=2)))],   # `load` refuses a model, `job_sampler` a way
            euler_sample=part(denoise=lambda x, t: 0 * x, x=torch.ones(1, 3, 8, 8), seeds=range(1), steps=2), stochastic_sample=part(denoise=lambda x, t: 0 * x, x=torch.ones(1, 3, 8, 8), seeds=range(1), steps=2),
            describe=part(f=f, job=job), folder_of=part(out_dir=tmp, job=job, about={}), work=part(lambda jobs: None, jobs=[]), run_jobs=Row(jobs=[job], say=Own(none), out_dir=tmp/'made', num_processes=1, device='cpu', batch=2, shard=2, ok='jobs.empty out_dir.unknown device.none batch.huge shard.huge'), main=part(lambda argv: None, argv=[]))}

def leaves(tmp) -> dict:
    from consistency_nb import presets, runs, viz
    x, a, out = torch.zeros(2, 3, 8, 8), np.zeros((4, 4, 3), np.uint8), tmp/'out'
    import matplotlib.pyplot as plt
    shut = lambda fn: functools.wraps(fn)(lambda **k: (fn(**k), plt.close('all'))[1])
    log = [dict(step=1, loss=1.), dict(step=2, loss=2.)]
    never = lambda b: None   # these are called by run notebooks alone, which test_runs walks through
    return {'runs': dict(
        Begun=part(lambda p: None, p=None), chosen_device=part(device='cpu'), begin=part(never, b=1), train=part(never, b=1), film=Row(out=out, rows=3, ok='rows.huge out.unknown out.empty out.nul'), frames=part(out=out), pictures_in=part(never, b=1), approach=part(never, b=1), class_rows=part(x=x, classes=2), Way=part(draw=len, calls=1), jumper=part(never, b=1), first_levels=part(p=presets.preset('avatars32_cd')), ways=part(never, b=1),
        Judge=part(never, b=1), measure=part(never, b=1), keep=part(never, b=1), write_report=part(never, b=1), table=part(found={})), 'viz': dict(
        grid_image=Row(x=x, ncol=1, pad=1, ok='ncol.huge pad.zero x.batch'), enlarge=Row(a=a, scale=2, ok='a.dtype a.empty'), save_grid=Row(x=x, path=out/'a.png', ncol=1, scale=2, pad=1, ok='ncol.huge pad.zero x.batch'),
        show_grid=Row(shut(viz.show_grid), x=x, ncol=1, scale=1., pad=1, ok='ncol.huge pad.zero x.batch'), compare=Row(shut(viz.compare), rows=dict(a=x, b=x), path=out/'b.png', scale=1.5, pad=1, ok='pad.zero'),
        curves=Row(shut(viz.curves), metrics_jsonl=log, keys=['loss'], x='step', ok='keys.empty'))}

# ---- the walk

ROAD = [m.stem for m in MODULES]
PUBLIC = [(m, n) for m in ROAD for n in importlib.import_module(f'consistency_nb.{m}').__all__ if callable(f := getattr(importlib.import_module(f'consistency_nb.{m}'), n)) and not (isinstance(f, type) and issubclass(f, tuple))]   # a named tuple checks nothing

@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('fuzz')
    return {**road(tmp), **networks(tmp), **files(tmp), **models(tmp), **running(tmp), **measured(tmp), **leaves(tmp)}

@contextmanager
def at_once(seconds=20):
    "A call that never ends is ended."
    def late(*_): raise TimeoutError(f'still running after {seconds} s')
    old = signal.signal(signal.SIGALRM, late); signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, old)

def finite(v):
    if isinstance(v, Tensor): return not v.is_floating_point() or v.is_meta or bool(v.isfinite().all())
    if isinstance(v, float): return math.isfinite(v)
    return not isinstance(v, (tuple, list)) or all(map(finite, v))

def verdict(call, args) -> str:
    "'' for a clear error, 'result' for a finite one, else what is wrong."
    start = time.process_time()   # not by the clock: the machine may be busy
    try:
        with at_once(): out = call(**args)
    except CLEAR as e:
        said, where = str(e), traceback.extract_tb(e.__traceback__)[-1].filename
        if Path(where).parent != LIB and Path(where).name not in ('pathlib.py', '<frozen posixpath>', '<frozen os>') and not (isinstance(e, FileNotFoundError) and e.filename): return f'{type(e).__name__} from {Path(where).name}: {said[:150]}'
        if '\n' in said or not 12 <= len(said) <= 600: return f'not one line: {said[:150]!r}'
    except Exception as e: return f'{type(e).__name__}: {str(e)[:150]}'
    else: return 'result' if finite(out) else f'no finite result'
    took = time.process_time() - start
    return '' if took < 1 else f'took {took:.1f} s'

def written(tmp) -> set: return {(p, p.stat().st_mtime_ns) for top in (tmp, *tmp.parent.glob('fuzz*')) for p in top.rglob('*') if p.is_file()}

def faults(row, call, tmp) -> list[str]:
    found = []
    args = {n: v.value if isinstance(v, Own) else v for n, v in row.args.items()}
    if not row.dry: assert (got := verdict(call, args)) == 'result', f'the valid call: {got}'
    try: optional = {n for n, p in inspect.signature(call).parameters.items() if p.default is None}
    except ValueError: optional = set()
    for name, v in row.args.items():
        if isinstance(v, Own): continue
        for how, bad in wrong(v).items():
            if how == 'none' and name in optional or isinstance(v, (str, Path, int, float)) and not isinstance(v, bool) and type(bad) is type(v) and bad == v: continue
            before = written(tmp)
            got = verdict(call, args | {name: bad})
            if got != 'result' and (new := written(tmp) - before): got = f'wrote {[p.name for p, _ in new]}'
            if isinstance(v, Tensor) and (how in ('nan', 'empty', 'meta') and got in ('result', 'no finite result') or how == 'meta' and 'Error from ' in got): continue
            if got == 'result' and f'{name}.{how}' in row.ok: continue
            if got: found.append(f'{name}.{how}: {got}')
    return found

@pytest.mark.parametrize('module, name', PUBLIC, ids=lambda v: v)
def test_wrong_arguments(module, name, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    assert name in rows.get(module, {}), 'a public function without a row in ROWS: add a valid call'
    r = rows[module][name]
    found = [f for row in (r if isinstance(r, list) else [r]) for f in faults(row, row.call or getattr(importlib.import_module(f'consistency_nb.{module}'), name), tmp_path)]
    assert not found, f'{len(found)}:\n' + '\n'.join(found)

# ---- numbers of any kind, by hypothesis

ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=5), st.lists(st.integers(), max_size=3), st.just(torch.ones(2)))
MANY = settings(max_examples=150, deadline=None, derandomize=True, database=None)

@MANY
@given(st.data())
def test_any_number(data):
    "Schedules and grids answer with a finite number or with a clear error, whatever is put in the place of one argument."
    from consistency_nb import core, ema, grid, schedules
    calls = [(schedules.steps, dict(k=3, K=10, s0=2, s1=150)), (schedules.mu, dict(N=4, s0=2, mu0=.9)), (schedules.ict_steps, dict(k=3, K=10, s0=10, s1=1280)), (schedules.pd_steps, dict(k=3, each=10, s0=16)),
             (schedules.pd_rate, dict(k=3, each=10, s0=16)), (schedules.growth, dict(k=3, K=10)), (ema.halflife_to_rate, dict(halflife_images=1e5, batch=8, seen=1e3, ramp=.05)), (ema.power_rate, dict(k=3, gamma=6.94)), (ema.gamma_of, dict(width=.05)), (lambda gamma, step: ema.reconstruct([(6.94, 10), (gamma, step)], (16.97, 9)), dict(gamma=3., step=7)),
             (grid.karras_grid, dict(N=18, eps=.002, T=80., rho=7.)), (lambda mean, std: grid.lognormal_t(4, None, mean, std), dict(mean=0., std=1.)), (core.mix_seed, dict(seed=3, draw=1))]
    call, args = data.draw(st.sampled_from(calls))
    bad = {data.draw(st.sampled_from([*args])): data.draw(ANY)}
    assert verdict(call, args | bad) in ('', 'result'), f'{call.__name__}({bad}): {verdict(call, args | bad)}'

# ---- presets and parameters

def fields():
    from consistency_nb.presets import Preset
    return [f.name for f in Preset.__dataclass_fields__.values()]

LEGAL = dict(lr='huge', warmup='zero', lr_decay='zero', clip='zero', t_mean='negative zero', r_mean='negative zero', growth='empty', net='empty unknown', teacher='empty unknown', name='unknown', data='unknown', init='unknown')
for n in 's0 s1 mu0 mu ema ema_ramp huber_c dropout label_dropout teacher_N fade guidance cut same beta2 snapshots'.split(): LEGAL[n] = 'zero'

@pytest.mark.parametrize('method', ['edm', 'cd', 'ct', 'pd'])
@pytest.mark.parametrize('field', fields())
def test_preset_field(field, method):
    "Every wrong value of every field is refused at once, whoever makes the record."
    import dataclasses
    from consistency_nb.presets import Preset, override, preset
    p = preset(f'avatars32_{method}')
    for how, bad in wrong(getattr(p, field)).items():
        if type(bad) is type(getattr(p, field)) and bad == getattr(p, field) or how in ('negative', 'empty') and getattr(p, field) in ((), '') and bad in ((), ''): continue
        if field in ('warmup', 's0', 's1') and how == 'negative' or how not in LEGAL.get(field, '').split():
            if isinstance(getattr(p, field), tuple) and bad == []: continue
            for make in (lambda: override(p, **{field: bad}), lambda: Preset(**(dataclasses.asdict(p) | {field: bad}))):
                assert verdict(make, {}) == '', f'{field}={bad!r}: {verdict(make, {})}'

@MANY
@given(st.data())
def test_any_preset_value(data):
    "A record that is accepted can be asked for its schedules at every step."
    from consistency_nb.objective import ema_at, levels_at, lr_at, mu_at
    from consistency_nb.presets import PRESETS, override
    p = data.draw(st.sampled_from([*PRESETS.values()]))
    field = data.draw(st.sampled_from(fields()))
    try: q = override(p, **{field: data.draw(ANY)})
    except ValueError as e: assert '\n' not in str(e).replace(repr(p.net), ''); return
    for k in (0, q.iterations // 2, q.iterations - 1):
        N = levels_at(q, k, q.iterations)
        assert N >= 2 and all(math.isfinite(v) for v in (lr_at(q, k, q.iterations), ema_at(q, k), mu_at(q, N) if q.method in ('cd', 'ct') else 0.))

@pytest.mark.parametrize('words, said', [('--seed -1', 'seed=-1: pass a whole number from 0'), ('--seed x', 'invalid int value'), ('--minutes nan', 'minutes=nan: pass a finite number'), ('--minutes -1', 'minutes=-1.0: pass'),
    ('--accumulate 0', 'accumulate=0: pass'), ('--accumulate 7', 'make it a multiple of 7'), ('--num_processes 0', 'num_processes=0: pass'), ('--num_processes 2 --num_nodes 2', 'pass address= and port='), ('--port 99999', 'port=99999: pass'),
    ('--device gpu', "there is no device 'gpu' here, only: cpu"), ('--tracker paper', "unknown tracker 'paper'; valid ones are"), ('--shard yes', 'it must be True or False'), ('--batch 0', 'batch=0: pass a number from 1'), ('--bach 3', "unknown parameter 'bach'"),
    ('--net {"cls":"Parrot"}', "unknown network 'Parrot' in net; valid ones are: UNet, SongUNet, ADMUNet"), ('--out_dir=', "out_dir='': pass the name of a folder"), ('--preset no', "unknown preset 'no'; valid ones are"), ('--preset no.json', 'No such file')])
def test_a_command_line(words, said, tmp_path, monkeypatch, capsys):
    "An option that does not fit ends the command before a process is started or a file is written; argparse's own errors go to stderr."
    from consistency_nb.launch import main
    monkeypatch.chdir(tmp_path); monkeypatch.delenv('RANK', raising=False)
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as e: main(['--preset', 'avatars32_ct', *words.split()])
    assert said in f'{e.value} {capsys.readouterr().err}' and not list(tmp_path.rglob('*'))

def test_networks_have_one_list():
    from consistency_nb import formats, presets
    assert tuple(formats.NETS) == presets.NETWORKS

RUNS = sorted(p for p in (LIB.parent/'nbs').glob('*.ipynb') if p.name[0].isalpha() and p.stem != 'index')

def first_cells(path):
    "The source of a run's parameters, and what it declares."
    import json
    cell = next(''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if 'parameters' in c['metadata'].get('tags', []))
    scope = {}; exec(cell, scope)
    return {n: v for n, v in scope['declared'].items() if not n.startswith('_')}

@pytest.mark.parametrize('path', RUNS, ids=lambda p: p.stem)
def test_parameters(path):
    "Every parameter of every run: a wrong type, NaN, infinity, a number below 0 or a huge one, an unknown device, an unknown name."
    from consistency_nb.presets import read_parameters
    declared = first_cells(path)
    ask = lambda **given: verdict(lambda: read_parameters(declared, {**declared, **given}), {})
    assert ask() == 'result' and ask(no_such=1) == ''
    for n, v in declared.items():
        for how, bad in wrong(v).items():
            if how in ('zero', 'empty', 'unknown', 'nul') and n != 'device' or type(bad) is type(v) and (bad == v or how == 'negative' and bad >= 0): continue
            if isinstance(v, bool) and isinstance(bad, bool): continue
            assert ask(**{n: bad}) == '', f'{n}={bad!r}: {ask(**{n: bad})}'

@pytest.mark.parametrize('run, given, said', [('train_ct', dict(minutes=math.nan), "parameter 'minutes' must be a number from 0"), ('generate', dict(seed=-1), "parameter 'seed' must be a number from 0"),
                                              ('train_cd', dict(growth=[9, 3]), 'pass rising numbers of levels'), ('generate', dict(device='gpu'), "must be 'auto', 'cpu' or 'cuda'")])
def test_a_run_stops_at_once(run, given, said, tmp_path, monkeypatch):
    "The first cells of a run, really executed, with what papermill puts between them: nothing is written."
    import json
    cells = [c for c in json.loads((LIB.parent/f'nbs/{run}.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    k = next(i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', []))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(''.join(cells[k]['source']), scope); scope.update(given, out_dir=str(tmp_path/'run'))
    with pytest.raises(ValueError, match=said): exec(''.join(cells[k + 1]['source']), scope)
    assert not list(tmp_path.rglob('*'))
