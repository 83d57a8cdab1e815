# SPDX-License-Identifier: Apache-2.0
"""Training crops: image and labels stay together, one class does not fill a crop, draws repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rekindle.core.rng import generator
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.training.labelled_crops import LabelledCrops, crop_batches, cut, draw_box
from rekindle.evaluation.training.options import SegmentationTrainingOptions
from tests.evaluation.toy import write_data

OPTIONS = SegmentationTrainingOptions(size_px=16, crop_px=16, scale=(1.0, 2.0), jitter=False)
MEAN = (0.5, 0.5, 0.5)


def crops(root: Path, options: SegmentationTrainingOptions = OPTIONS, seed: int = 0) -> LabelledCrops:
    data = SegmentationFolder(root, "train")
    return LabelledCrops(data, [0, 1, 2], options, mean=MEAN, count=12, seed=seed, cache_bytes=1e6)


def test_labels_follow_their_pixels(tmp_path: Path) -> None:
    """In the toy images the brightest channel is the class."""
    made = crops(write_data(tmp_path))
    for position in range(12):
        pixels, labels = made[position]
        sharp = pixels.max(dim=0).values == 255  # resized edges mix colours
        counted = sharp & (labels != 255)
        assert counted.float().mean() > 0.4
        assert torch.equal(pixels.argmax(dim=0)[counted], labels[counted])


def test_crops_repeat_for_a_seed_and_differ_between_seeds(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    first, again, other = crops(root), crops(root), crops(root, seed=1)
    assert all(torch.equal(first[i][0], again[i][0]) for i in (3, 1, 7))
    assert any(not torch.equal(first[i][0], other[i][0]) for i in range(12))
    whole = torch.cat([pixels for pixels, _ in crop_batches(first, 5, torch.device("cpu"))])
    assert torch.equal(whole, torch.stack([again[i][0] for i in range(12)]))


def test_a_crop_over_the_border_has_the_mean_colour_and_no_label() -> None:
    image, mask = torch.full((3, 8, 8), 200, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.int64)
    pixels, labels = cut(image, mask, (0, 0, 16), 16, torch.tensor([1, 2, 3], dtype=torch.uint8), 255)
    assert torch.equal(pixels[:, 12, 12], torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert int((labels == 255).sum()) == 16 * 16 - 8 * 8
    assert bool((pixels[:, :8, :8] == 200).all()) and bool((labels[:8, :8] == 1).all())


def test_a_class_that_fills_the_crop_is_drawn_again() -> None:
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:, 56:] = 1  # an eighth of the image
    shares = []
    for limit in (1.0, 0.75):
        options = OPTIONS.model_copy(update={"max_class_share": limit, "size_px": 64, "scale": (1.0, 1.0)})
        boxes = [draw_box(mask, options, 255, generator(0, "t", i)) for i in range(200)]
        parts = [mask[y : y + s, x : x + s] for y, x, s in boxes]
        shares.append(sum(float(p.float().mean()) == 0 for p in parts) / len(parts))
    assert shares[0] > 0.6
    assert shares[1] < 0.45  # 0.9 to the tenth is 0.35


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    mask = torch.full((32, 32), 255)
    assert draw_box(mask, OPTIONS, 255, generator(0, "t")) == draw_box(mask, OPTIONS, 255, generator(0, "t"))


@pytest.mark.parametrize("room", [0.0, 1e9])
def test_what_is_kept_in_memory_changes_nothing(tmp_path: Path, room: float) -> None:
    data = SegmentationFolder(write_data(tmp_path), "train")
    made = LabelledCrops(data, [0, 1], OPTIONS, mean=MEAN, count=4, seed=0, cache_bytes=room)
    assert len(made._cache) == 0
    pictures = [made[i][0] for i in range(4)]
    assert len(made._cache) == (2 if room else 0)
    assert all(torch.equal(made[i][0], pictures[i]) for i in range(4))
