"""Editing against the published functions (tests/golden), on an exact consistency function and on a small network.

Tolerances are those of the golden files' manifest: 10 to 20 times the difference between the published code in float32 and in
float64, which includes the rounding of the time conditioning. The published loops draw once more than they need and multiply that
draw by 0, start from the x of the caller, and take a mask that is 1 where the image is known.
"""
import pytest, torch
from torch.testing import assert_close
from consistency_nb.adm import ADMUNet
from consistency_nb.names import from_openai
from consistency_nb.edit import colorize, grey, inpaint, keep_grey, keep_means, keep_pixels, super_resolve
from consistency_nb.grid import levels_from_indices
from consistency_nb.oracle import Gaussian
from consistency_nb.precond import Consistency
from golden import golden, weights

DATA = Gaussian(torch.tensor([0.1, -0.2, 0.3]).reshape(3, 1, 1), 0.5)
TASKS = dict(colorization=(0, 8, 20, 39), inpainting=(0, 12, 25, 39), superres=(0, 5, 15, 39))   # indices on the grid of 40 levels
ATOL = dict(colorization_analytic=6e-5, colorization_unet=6e-5, inpainting_analytic=6e-5, inpainting_unet=5e-5, superres_analytic=6e-5, superres_unet=6e-5)

@pytest.fixture(scope='module')
def g(): return golden('03_editing')

@pytest.fixture(scope='module')
def network():
    net = ADMUNet(image_size=16, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=16, num_classes=5).eval()
    net.load_state_dict(from_openai(net, weights(golden('02_losses'), 'weights.online.')))
    return Consistency(net)

def edit(g, task, f, flip=False):
    y, start, noise = (g[f'in.{task}.{w}'] for w in ('images', 'x_T_unit', 'noise'))
    levels = levels_from_indices(TASKS[task], 40)
    assert len(noise) == len(levels) == 3
    args = dict(x=start * 80, noise=noise[:-1])
    if task == 'inpainting':
        mask = g['in.inpainting.mask']
        return inpaint(f, y, mask if flip else 1 - mask, levels, **args)
    return colorize(f, y, levels, **args) if task == 'colorization' else super_resolve(f, y, levels, **args)

def functions(g, task, network):
    y = g[f'in.{task}.class_labels']
    return dict(analytic=DATA.consistency, unet=lambda x, t: network(x, t, y))

@pytest.mark.parametrize('case', ATOL)
def test_results(g, network, case):
    task, which = case.split('_')
    out = edit(g, task, functions(g, task, network)[which])
    assert_close(out, g[f'out.{case}.x'], atol=ATOL[case], rtol=0)

def test_reference_images(g):
    "What the published functions take for known, the rest filled with 0, or with -1 by inpainting."
    for which in 'analytic', 'unet':
        y, fill = g['in.inpainting.images'], torch.full_like(g['in.inpainting.images'], -1.)
        assert torch.equal(keep_pixels(fill, y, 1 - g['in.inpainting.mask']), g[f'out.inpainting_{which}.images'])
        y = g['in.colorization.images']
        assert_close(keep_grey(0 * y, y), g[f'out.colorization_{which}.images'], atol=1e-5, rtol=0)
        y = g['in.superres.images']
        assert_close(keep_means(0 * y, y, 8), g[f'out.superres_{which}.images'], atol=1e-5, rtol=0)

def test_the_known_part_is_kept(g, network):
    for which in 'analytic', 'unet':
        known, y = g['in.inpainting.mask'].bool(), g['in.inpainting.images']
        out = edit(g, 'inpainting', functions(g, 'inpainting', network)[which])
        assert torch.equal(out[known], y[known]) and 0.1 < known.float().mean() < 0.9
        y = g['in.colorization.images']
        assert_close(grey(edit(g, 'colorization', functions(g, 'colorization', network)[which])), grey(y), atol=2e-6, rtol=0)
        y = g['in.superres.images']
        out = edit(g, 'superres', functions(g, 'superres', network)[which])
        assert_close(torch.nn.functional.avg_pool2d(out, 8), torch.nn.functional.avg_pool2d(y, 8), atol=2e-6, rtol=0)

def test_the_published_polarity_is_the_opposite(g):
    out = edit(g, 'inpainting', DATA.consistency, flip=True)
    assert (out - g['out.inpainting_analytic.x']).abs().max() > 0.1
