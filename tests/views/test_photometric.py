# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from rekindle.views.crops import UniformStream
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import (
    JitterStep,
    Photometric,
    apply_photometric,
    draw_photometric,
    gaussian_blur,
)


def image(size: int = 48) -> Tensor:
    """Colourful, with flat and grey places."""
    noise = torch.randint(0, 256, (3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[:, :3] = noise[:1, :3]
    resized: Tensor = TF.resize(noise, [size, size], antialias=True)
    return resized


def as_pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def from_pil(picture: Image.Image) -> Tensor:
    levels: Tensor = TF.pil_to_tensor(picture)
    return levels.float()


@pytest.mark.parametrize(
    ("step", "reference"),
    [
        (("brightness", 1.37), lambda x: TF.adjust_brightness(x, 1.37)),
        (("contrast", 0.61), lambda x: TF.adjust_contrast(x, 0.61)),
        (("contrast", 1.4), lambda x: TF.adjust_contrast(x, 1.4)),
        (("saturation", 1.2), lambda x: TF.adjust_saturation(x, 1.2)),
        (("saturation", 0.0), lambda x: TF.adjust_saturation(x, 0.0)),
        (("hue", 0.1), lambda x: TF.adjust_hue(x, 0.1)),
        (("hue", -0.37), lambda x: TF.adjust_hue(x, -0.37)),
        (("hue", 0.5), lambda x: TF.adjust_hue(x, 0.5)),
    ],
)
def test_each_jitter_step_equals_torchvision_up_to_its_rounding(step: JitterStep, reference: object) -> None:
    assert callable(reference)
    changed = apply_photometric(image().float(), Photometric(jitter=(step,)))
    torch.testing.assert_close(changed, reference(image()).float(), atol=1.3, rtol=0)
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255.001


def test_grey_and_solarize_equal_pil() -> None:
    grey = apply_photometric(image().float(), Photometric(is_grey=True))
    torch.testing.assert_close(grey, from_pil(as_pil(image()).convert("L").convert("RGB")), atol=1.1, rtol=0)
    inverted = apply_photometric(image().float(), Photometric(is_solarized=True))
    assert torch.equal(inverted, from_pil(ImageOps.solarize(as_pil(image()))))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision_with_a_wide_kernel(sigma: float) -> None:
    reference = TF.gaussian_blur(image().float(), [13, 13], [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(image().float(), sigma), reference, atol=0.6, rtol=0)


def test_blur_is_close_to_pil() -> None:
    reference = from_pil(as_pil(image()).filter(ImageFilter.GaussianBlur(1.5)))
    difference = (gaussian_blur(image().float(), 1.5) - reference).abs()[:, 6:-6, 6:-6]
    assert float(difference.mean()) < 1.5  # PIL approximates the Gaussian by boxes


@pytest.mark.parametrize("size", [1, 2, 5])
def test_blur_works_on_views_smaller_than_its_kernel(size: int) -> None:
    flat = torch.full((3, size, size), 77.0)
    torch.testing.assert_close(gaussian_blur(flat, 2.0), flat)


def test_steps_run_in_the_drawn_order() -> None:
    first: JitterStep = ("brightness", 1.4)
    second: JitterStep = ("contrast", 0.6)
    ab = apply_photometric(image().float(), Photometric(jitter=(first, second)))
    one_by_one = apply_photometric(
        apply_photometric(image().float(), Photometric(jitter=(first,))), Photometric(jitter=(second,))
    )
    ba = apply_photometric(image().float(), Photometric(jitter=(second, first)))
    assert torch.equal(ab, one_by_one)
    assert not torch.allclose(ab, ba, atol=1)


def test_draws_follow_the_options_of_each_kind_of_view() -> None:
    options = ViewsOptions()
    uniform = UniformStream(torch.Generator().manual_seed(0))
    chains = [[draw_photometric(options, index, uniform) for _ in range(2000)] for index in (0, 1, 5)]

    def share(kind: int, name: str) -> float:
        return sum(bool(getattr(c, name)) for c in chains[kind]) / 2000

    assert [round(share(kind, "blur_sigma"), 1) for kind in range(3)] == [1.0, 0.1, 0.5]
    assert [round(share(kind, "is_solarized"), 1) for kind in range(3)] == [0.0, 0.2, 0.0]
    assert abs(share(0, "is_grey") - 0.2) < 0.03
    assert abs(share(1, "jitter") - 0.8) < 0.03
    values: dict[str, list[float]] = {}
    orders = set()
    for chain in chains[0]:
        orders.add(tuple(name for name, _ in chain.jitter))
        for name, value in chain.jitter:
            values.setdefault(name, []).append(value)
    assert len(orders) == 25  # every order of four, and no jitter
    spans = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for step, (low, high) in spans.items():
        assert low <= min(values[step]) < low + 0.02
        assert high - 0.02 < max(values[step]) <= high
    sigmas = [c.blur_sigma for c in chains[0]]
    assert 0.1 <= min(sigmas) < 0.12
    assert 1.95 < max(sigmas) <= 2.0


def test_a_strength_of_zero_leaves_its_step_out() -> None:
    options = ViewsOptions(jitter_p=1, brightness=0, hue=0)
    chain = draw_photometric(options, 0, UniformStream(torch.Generator().manual_seed(0)))
    assert sorted(name for name, _ in chain.jitter) == ["contrast", "saturation"]
