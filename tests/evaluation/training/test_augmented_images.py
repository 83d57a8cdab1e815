# SPDX-License-Identifier: Apache-2.0
"""Training images of classification."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.training.augmented_images import (
    AugmentedImages,
    augmentation,
    image_batches,
    random_crop,
    seeded_libraries,
)
from tests.evaluation.pictures import write_classes

MEAN = (0.5, 0.5, 0.5)
NAMES = ["none", "3-augment", "rand-m9-mstd0.5-inc1"]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_libraries_repeat_and_leave_no_trace() -> None:
    outside = random.getstate(), torch.get_rng_state()
    with seeded_libraries(3, "x", 1):
        first = draws()
    assert random.getstate() == outside[0] and torch.equal(torch.get_rng_state(), outside[1])
    with pytest.raises(KeyError), seeded_libraries(3, "x", 1):
        assert draws() == first
        raise KeyError
    with seeded_libraries(3, "x", 2):
        assert not set(draws()) & set(first)
    assert random.getstate() == outside[0]


def test_crops_are_mirrored_half_of_the_time_and_cover_the_share_asked_for() -> None:
    ramp = torch.arange(64).expand(3, 64, 64).to(torch.uint8) * 4
    flips, widths = 0, []
    for number in range(200):
        crop = random_crop(ramp, 32, (0.25, 0.25), torch.Generator().manual_seed(number))
        assert crop.shape == (3, 32, 32)
        left, right = crop[0, 16, 2].item(), crop[0, 16, -3].item()
        flips += left > right
        widths.append(abs(left - right) / 4 * 32 / 27)
    assert 75 < flips < 125
    assert 27.0 < float(np.mean(widths)) < 37.0  # a quarter of the area: 32 pixels wide where it is square
    assert torch.equal(
        random_crop(ramp, 32, (0.2, 1.0), torch.Generator().manual_seed(5)),
        random_crop(ramp, 32, (0.2, 1.0), torch.Generator().manual_seed(5)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_image_follows_from_seed_and_place_alone(tmp_path: Path, name: str) -> None:
    data = ClassFolder(write_classes(tmp_path, size=32), "train")

    def images(seed: int) -> AugmentedImages:
        return AugmentedImages(
            data,
            [0, 5, 5, 9],
            size_px=32,
            area=(0.2, 1.0),
            augment=augmentation(name, MEAN, 32),
            seed=seed,
            cache_bytes=4000.0,
        )

    first = images(0)
    pixels = [first[i][0] for i in range(4)]
    assert all(p.dtype == torch.uint8 and p.shape == (3, 32, 32) for p in pixels)
    again = images(0)
    assert all(torch.equal(again[i][0], pixels[i]) for i in (3, 1, 0, 2))
    assert not torch.equal(pixels[1], pixels[2])
    assert not torch.equal(images(1)[0][0], pixels[0])
    [(both, labels)] = image_batches(images(0), 4, torch.device("cpu"))
    assert labels.tolist() == data.labels[[0, 5, 5, 9]].tolist()
    assert torch.equal(both, torch.stack(pixels))


def test_strong_augmentations_change_what_the_plain_one_leaves() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in NAMES:
        with seeded_libraries(0, "x"):
            changed = [not torch.equal(augmentation(name, MEAN, 32)(image), image) for _ in range(6)]
        assert any(changed) == (name != "none")


@pytest.mark.parametrize("name", ["random", "rand-x7"])
def test_unknown_augmentations_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"finetune.augmentation = '{name}' is not known; use none, 3-augment"):
        augmentation(name, MEAN, 32)
