# SPDX-License-Identifier: Apache-2.0
"""The colours of a data worker, against torchvision and PIL, on soft pictures and on noise."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from rekindle.views.crops import UniformStream
from rekindle.views.integer_blur import IntegerBlur, blur_weights
from rekindle.views.integer_chain import IntegerChain
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import JitterStep, Photometric, draw_photometric
from tests.views.scenes import noise, reference, scene

PICTURES = [scene(), noise()]


def apply(pixels: Tensor, *chains: Photometric) -> list[Tensor]:
    """One view per chain, all made in one call where they fit, as `CpuExecutor` orders them."""
    side = pixels.shape[-1]
    red, green, blue = pixels.numpy().astype(np.int32)
    packed = red | green << 8 | blue << 16 | 77 << 24  # what is in the last byte must not matter
    machine, outs = IntegerChain(side), [np.empty((3, side, side), np.uint8) for _ in chains]
    order = sorted(range(len(chains)), key=lambda i: chains[i].hue_place is None)
    for start in range(0, len(order), machine.num_views):
        some = order[start : start + machine.num_views]
        machine.pixels[: len(some)] = packed
        machine([chains[i] for i in some], [outs[i] for i in some])
    return [torch.from_numpy(out) for out in outs]


def as_pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.double() - theirs.double()).abs()


def jitter(*steps: JitterStep) -> Photometric:
    return Photometric(jitter=steps)


@pytest.mark.parametrize("picture", PICTURES, ids=["scene", "noise"])
@pytest.mark.parametrize(
    ("step", "operation"),
    [
        (("brightness", 0.6), TF.adjust_brightness),
        (("brightness", 1.4), TF.adjust_brightness),
        (("brightness", 7.3), TF.adjust_brightness),
        (("contrast", 0.0), TF.adjust_contrast),
        (("contrast", 0.61), TF.adjust_contrast),
        (("contrast", 1.4), TF.adjust_contrast),
        (("contrast", 6.0), TF.adjust_contrast),
        (("saturation", 0.0), TF.adjust_saturation),
        (("saturation", 0.8), TF.adjust_saturation),
        (("saturation", 1.2), TF.adjust_saturation),
        (("saturation", 4.0), TF.adjust_saturation),
        (("hue", 0.1), TF.adjust_hue),
        (("hue", -0.037), TF.adjust_hue),
        (("hue", -0.37), TF.adjust_hue),
        (("hue", 0.5), TF.adjust_hue),
    ],
)
def test_each_colour_operation_is_torchvisions_within_a_level_on_average(
    picture: Tensor, step: JitterStep, operation: Callable[[object, float], object]
) -> None:
    (ours,) = apply(picture, jitter(step))
    on_bytes, on_pil = operation(picture, step[1]), operation(as_pil(picture), step[1])
    assert isinstance(on_bytes, Tensor)
    assert float(difference(ours, on_bytes).mean()) <= 1  # it rounds down: at contrast 0 every level may be one off
    assert float(difference(ours, TF.pil_to_tensor(on_pil)).mean()) < (
        1 if step[0] != "hue" else 1.7
    )  # hue in 256 steps
    exact = difference(ours, reference(picture, jitter(step)))
    assert float(exact.mean()) < 0.5
    assert float(exact.max()) < 3


def test_hue_is_that_of_hsv_for_every_order_of_the_channels() -> None:
    levels = [0, 31, 128, 200, 255]
    colours = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.uint8)
    picture = torch.zeros(144, 3, dtype=torch.uint8)
    picture[: len(colours)] = colours
    for turn in (-0.5, -0.4, -1 / 6, -0.05, 0.02, 1 / 6, 0.2, 1 / 3, 0.45):
        (ours,) = apply(picture.T.reshape(3, 12, 12), jitter(("hue", turn)))
        for made, colour in zip(ours.flatten(1).T.tolist(), colours.tolist(), strict=False):
            hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
            wanted = [255 * c for c in colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)]
            assert max(abs(a - b) for a, b in zip(made, wanted, strict=True)) < 2


@pytest.mark.parametrize("picture", PICTURES, ids=["scene", "noise"])
def test_grey_and_solarize_are_pils(picture: Tensor) -> None:
    grey, inverted = apply(picture, Photometric(is_grey=True), Photometric(is_solarized=True))
    pil = TF.pil_to_tensor(as_pil(picture).convert("L").convert("RGB"))
    assert float(difference(grey, pil).mean()) < 0.3
    assert float(difference(grey, pil).max()) <= 1
    assert torch.equal(inverted, TF.pil_to_tensor(ImageOps.solarize(as_pil(picture))))


@pytest.mark.parametrize("picture", PICTURES, ids=["scene", "noise"])
@pytest.mark.parametrize("sigma", [0.001, 0.1, 0.35, 0.7, 1.1, 2.0, 6.0])
def test_blur_is_a_gaussian_within_a_level_on_average(picture: Tensor, sigma: float) -> None:
    (ours,) = apply(picture, Photometric(blur_sigma=sigma))
    wide = difference(ours, reference(picture, Photometric(blur_sigma=sigma)))
    assert float(wide.mean()) < 0.8
    if picture is PICTURES[0]:
        assert float(wide.mean()) < 0.35
        pil = TF.pil_to_tensor(as_pil(picture).filter(ImageFilter.GaussianBlur(sigma)))
        inner = slice(8, -8)  # PIL repeats the border, torchvision and we reflect
        assert float(difference(ours, pil)[:, inner, inner].mean()) < 1


def test_blur_of_grey_is_grey_of_blur() -> None:
    (together,) = apply(scene(), Photometric(is_grey=True, blur_sigma=1.3))
    assert torch.equal(together[0], together[1])
    assert torch.equal(together[0], together[2])
    wanted = reference(scene(), Photometric(is_grey=True, blur_sigma=1.3))
    assert float(difference(together, wanted).mean()) < 0.5


def test_a_blur_does_not_depend_on_the_ones_before_it() -> None:
    blur, levels = IntegerBlur(40), scene(40, 40).numpy().astype(np.int16) - 128
    for sigma, channels in ((0.4, 3), (2.0, 1), (0.4, 1), (6.0, 3), (0.4, 3), (2.0, 3), (2.0, 1)):
        view = levels[:channels]
        assert np.array_equal(blur(view, sigma), IntegerBlur(40)(view, sigma))


@pytest.mark.parametrize("side", [16, 31, 97, 98])
def test_contrast_draws_towards_the_mean_grey_whatever_the_side(side: int) -> None:
    (level,) = apply(scene(side, side), jitter(("contrast", 0.0)))
    assert float(difference(level, reference(scene(side, side), jitter(("contrast", 0.0)))).max()) < 1
    bright = torch.full((3, side, side), 255, dtype=torch.uint8)  # the largest sum that 16 bits have to hold
    assert torch.equal(apply(bright, jitter(("contrast", 0.5)))[0], bright)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 2.0, 7.7])
@pytest.mark.parametrize("side", [1, 2, 4, 96])
def test_blur_weights_sum_to_one_are_symmetric_and_keep_the_spread(sigma: float, side: int) -> None:
    weights = blur_weights(sigma, side)
    assert sum(weights) == 256
    assert weights == weights[::-1]
    assert min(weights) >= 0
    assert weights[0] > 0
    assert len(weights) // 2 <= side - 1
    if side == 96 and sigma >= 1:
        middle = len(weights) // 2
        variance = sum(w * (place - middle) ** 2 for place, w in enumerate(weights)) / 256
        assert math.isclose(variance, sigma**2, rel_tol=0.05)


@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_flat_views_keep_their_colour_whatever_is_averaged_over_them(size: int) -> None:
    for colour in ([0, 0, 0], [255, 255, 255], [127, 128, 129], [255, 0, 3]):
        flat = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, size, size).contiguous()
        (blurred,) = apply(flat, Photometric(blur_sigma=2.0))
        assert torch.equal(blurred, flat)
        grey = reference(flat, Photometric(is_grey=True))
        (level,) = apply(flat, jitter(("contrast", 0.0)))
        assert float(difference(level, grey).max()) < 1


def test_no_operation_keeps_every_byte() -> None:
    chains = [Photometric(), jitter(("hue", 0.0)), jitter(("brightness", 1.0)), jitter(("saturation", 1.0))]
    for picture in PICTURES:
        for made in apply(picture, *chains):
            assert torch.equal(made, picture)


def test_steps_run_in_the_drawn_order_also_where_several_become_one() -> None:
    options = ViewsOptions(jitter_p=1.0, blur_p=(0.5, 0.5, 0.5), solarize_p=(0.0, 0.0, 0.0))
    uniform = UniformStream(torch.Generator().manual_seed(3))
    chains = [draw_photometric(options, 0, uniform) for _ in range(60)]
    assert len({tuple(name for name, _ in chain.jitter) for chain in chains}) > 18
    picture = scene()
    for made, chain in zip(apply(picture, *chains), chains, strict=True):
        wrong = difference(made, reference(picture, chain))
        assert float(wrong.mean()) < 0.7, chain
        assert float(wrong.quantile(0.999)) < 5, chain  # factors above 1 raise what was rounded
    turned = [Photometric(chain.jitter[::-1], chain.is_grey, chain.blur_sigma) for chain in chains]
    apart = [
        float(difference(a, b).mean()) for a, b in zip(apply(picture, *chains), apply(picture, *turned), strict=True)
    ]
    assert max(apart) > 2  # the order is seen


def test_views_made_together_equal_views_made_alone() -> None:
    uniform = UniformStream(torch.Generator().manual_seed(5))
    chains = [draw_photometric(ViewsOptions(), index % 3, uniform) for index in range(25)]
    picture = scene(40, 40)
    for together, chain in zip(apply(picture, *chains), chains, strict=True):
        assert torch.equal(together, apply(picture, chain)[0])
