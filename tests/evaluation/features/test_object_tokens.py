# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.evaluation.features.dense_features import resize_labels
from rekindle.evaluation.features.object_tokens import check_side, class_pixels, covered_pixels, nearest, token_classes


def test_counts_equal_slow_loops() -> None:
    ids = torch.randint(-1, 4, (12, 12), generator=torch.Generator().manual_seed(0))
    counts = class_pixels(ids, 3, 4)
    for p in range(9):
        cell = ids[4 * (p // 3) : 4 * (p // 3) + 4, 4 * (p % 3) : 4 * (p % 3) + 4]
        assert counts[p].tolist() == [int((cell == c).sum()) for c in range(3)]
    masks = torch.stack([ids == c for c in range(3)])
    assert torch.equal(covered_pixels(masks, 4), counts.T)


def test_nearest_is_the_resizing_of_labels() -> None:
    ids = torch.randint(0, 9, (17, 23), generator=torch.Generator().manual_seed(1))
    for side in (8, 17, 40):
        assert torch.equal(nearest(ids, side), resize_labels(ids, (side, side)))
    masks = torch.stack([ids == 1, ids == 2])
    assert torch.equal(
        nearest(masks, 8)[1], functional.interpolate(masks[None].float(), (8, 8), mode="nearest-exact")[0, 1] > 0
    )


def test_a_token_shows_the_commonest_class_unless_most_of_it_is_void() -> None:
    pixels = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 2.0], [1.0, 0.0]])
    assert token_classes(pixels, 2).tolist() == [1, 0, 1, -1]


def test_sides_that_the_patch_does_not_divide() -> None:
    with pytest.raises(
        RequestError, match=r"x\.size_px = 50 is not a multiple of the model's patch size 8; use 48 or 56"
    ):
        check_side(50, 8, "x.size_px")
    check_side(48, 8, "x.size_px")
