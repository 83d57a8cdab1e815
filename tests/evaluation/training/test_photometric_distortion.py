# SPDX-License-Identifier: Apache-2.0
"""Photometric distortion against numbers of the public toolkit's own, run on eight colours (mmseg 1.2.2, OpenCV's HSV)."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor

from rekindle.core.rng import generator
from rekindle.evaluation.training import photometric_distortion
from rekindle.evaluation.training.photometric_distortion import (
    distort_colours,
    saturated,
    scaled,
    to_hsv,
    to_rgb,
    turned,
)

PIXELS = [
    [200, 100, 50], [10, 10, 10], [195, 103, 9], [211, 21, 242],
    [36, 87, 70], [216, 88, 140], [58, 193, 230], [39, 87, 174],
]  # fmt: skip
TOOLKIT = {
    "brightness -20.5": [179, 79, 29, 0, 0, 0, 174, 82, 0, 190, 0, 221, 15, 66, 49, 195, 67, 119, 37, 172, 209, 18, 66, 153],
    "contrast 0.6": [120, 60, 30, 6, 6, 6, 117, 61, 5, 126, 12, 145, 21, 52, 42, 129, 52, 84, 34, 115, 138, 23, 52, 104],
    "contrast 1.4": [
        255, 140, 70, 14, 14, 14, 255, 144, 12, 255, 29, 255, 50, 121, 98, 255, 123, 196, 81, 255, 255, 54, 121, 243,
    ],
    "saturation 0.6": [
        200, 140, 111, 10, 10, 10, 195, 140, 84, 224, 110, 242, 57, 87, 77, 216, 140, 170, 127, 209, 230, 93, 123, 174,
    ],
    "saturation 1.45": [200, 67, 0, 10, 10, 10, 195, 98, 0, 210, 0, 242, 13, 87, 62, 216, 31, 105, 0, 184, 230, 0, 64, 174],
    "hue 17": [200, 185, 50, 10, 10, 10, 183, 195, 9, 242, 21, 146, 36, 75, 87, 216, 109, 88, 58, 98, 230, 66, 39, 174],
    "hue -18": [200, 50, 90, 10, 10, 10, 195, 9, 28, 80, 21, 242, 36, 87, 40, 216, 88, 216, 58, 230, 161, 39, 169, 174],
}  # fmt: skip


def picture() -> Tensor:
    return torch.tensor(PIXELS, dtype=torch.uint8).reshape(2, 4, 3).permute(2, 0, 1)


@pytest.mark.parametrize("told", TOOLKIT)
def test_every_operation_is_the_toolkits_to_the_byte(told: str) -> None:
    name, amount = told.split()
    found = {
        "brightness": lambda: scaled(picture(), shift=float(amount)),
        "contrast": lambda: scaled(picture(), float(amount)),
        "saturation": lambda: saturated(picture(), float(amount)),
        "hue": lambda: turned(picture(), int(amount)),
    }[name]()
    assert found.permute(1, 2, 0).flatten().tolist() == TOOLKIT[told]


def test_the_whole_chain_is_the_toolkits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brightness +12.25, contrast 1.3 first, saturation 0.7, hue +9, as the toolkit gives it with these draws."""
    amounts = [(12.25 / 32 + 1) / 2, (0.3 / 0.5 + 1) / 2, (-0.3 / 0.5 + 1) / 2, (9 + 18 + 0.5) / 36]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0] * 4 + [*amounts, 0.0]))
    found = distort_colours(picture(), generator(0, "unused")).permute(1, 2, 0).flatten()
    toolkit = [
        255, 214, 133, 28, 28, 28, 255, 229, 96, 255, 106, 210, 82, 128, 126, 255, 168, 188, 141, 221, 255, 119, 127, 241,
    ]  # fmt: skip
    assert int((found.int() - torch.tensor(toolkit)).abs().max()) <= 1  # the draws are float32 here


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    image = torch.randint(0, 256, (3, 16, 16), generator=generator(0, "hsv")).to(torch.uint8)
    hue, saturation, value = to_hsv(image)
    for y in range(16):
        for x in range(16):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x] / 255.0).tolist())
            assert min(abs(int(hue[y, x]) - 180 * h) % 180, 180 - abs(int(hue[y, x]) - 180 * h) % 180) <= 0.51
            assert abs(int(saturation[y, x]) - 255 * s) <= 0.51
            assert abs(int(value[y, x]) - 255 * v) < 1e-3
    assert int((to_rgb(hue, saturation, value).int() - image.int()).abs().max()) <= 5  # of a hue in steps of 2 degrees


def test_hues_are_drawn_36_degrees_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def noted(image: Tensor, drawn: int) -> Tensor:
        steps.append(drawn)
        return image

    monkeypatch.setattr(photometric_distortion, "turned", noted)
    for i in range(2000):
        distort_colours(picture(), generator(0, "d", i))
    assert 900 < len(steps) < 1100
    assert set(steps) == set(range(-18, 18))  # the toolkit draws whole steps, the greatest left out


def test_jitter_changes_colours_within_bytes_and_not_shape() -> None:
    image = torch.randint(0, 256, (3, 12, 12), generator=generator(0, "i")).to(torch.uint8)
    changed = [distort_colours(image, generator(0, "d", i)) for i in range(20)]
    assert all(c.dtype == torch.uint8 and c.shape == image.shape for c in changed)
    assert sum(torch.equal(c, image) for c in changed) < 5
