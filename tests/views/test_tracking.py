# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.views.batch import Crops
from rekindle.views.tracking import relative_box, track_patches

Box = tuple[int, int, int, int]


def crops(boxes: list[Box], size: tuple[int, int], *, flipped: bool = False, upside_down: bool = False) -> Crops:
    y, x, h, w = torch.tensor(boxes, dtype=torch.float64).unbind(1)
    height, width = (torch.full((len(boxes),), float(s)) for s in size)
    top, left, tall, wide = (v.float() for v in (y / size[0], x / size[1], h / size[0], w / size[1]))
    over, under = (torch.full((len(boxes),), f) for f in (flipped, upside_down))
    return Crops(top, left, tall, wide, over, under, height, width)


def slow(reference: Box, query: Box, size: tuple[int, int], grid: int, side: int, count: int) -> Tensor:
    """The maps themselves, resized with torch's nearest-exact (section 4.1 of the specification)."""

    def resized(values: Tensor, to: tuple[int, int]) -> Tensor:
        return F.interpolate(values[None, None].double(), size=to, mode="nearest-exact")[0, 0]

    world = torch.full(size, -1.0, dtype=torch.float64)
    y, x, h, w = reference
    world[y : y + h, x : x + w] = resized(torch.arange(grid * grid).view(grid, grid), (h, w))
    y, x, h, w = query
    return resized(resized(world[y : y + h, x : x + w], (side, side)), (count, count)).flatten().long()


def tracked(reference: Crops, query: Crops, side: int = 96, count: int = 6) -> Tensor:
    found = track_patches(reference, query, reference_grid=(14, 14), query_size_px=side, query_grid=(count, count))
    return torch.where(found.valid, found.index, -1)


def test_the_closed_form_is_the_tracking_of_maps() -> None:
    draw = torch.Generator().manual_seed(0)
    same = total = 0
    for _ in range(120):
        height, width = (int(torch.randint(40, 500, (), generator=draw)) for _ in range(2))
        boxes: list[Box] = []
        for _ in range(2):
            h, w = (int(torch.randint(20, s + 1, (), generator=draw)) for s in (height, width))
            y, x = (int(torch.randint(0, s - e + 1, (), generator=draw)) for s, e in ((height, h), (width, w)))
            boxes.append((y, x, h, w))
        for side, count in ((96, 6), (224, 14)):
            ours = tracked(crops(boxes[:1], (height, width)), crops(boxes[1:], (height, width)), side, count)[0]
            theirs = slow(boxes[0], boxes[1], (height, width), 14, side, count)
            same, total = same + int((ours == theirs).sum()), total + len(theirs)
    assert same / total > 0.999  # the rest are ties of rounding


def test_identity_and_coarse_identity() -> None:
    """Properties 1, 2 and 7: left-edge sampling would give 0, 2, 4, 7, 9, 11."""
    whole = crops([(0, 0, 224, 224)], (224, 224))
    assert torch.equal(tracked(whole, whole, 224, 14)[0], torch.arange(196))
    places = torch.tensor([1, 3, 5, 8, 10, 12])
    assert torch.equal(tracked(whole, whole)[0].view(6, 6), 14 * places[:, None] + places)


def test_the_worked_examples() -> None:
    """Properties 3 to 6."""
    size = (320, 480)
    reference, query = crops([(20, 40, 240, 360)], size), crops([(80, 100, 96, 144)], size)
    expected = torch.tensor([44, 58, 72, 86, 100, 114])[:, None] + torch.arange(6)
    assert torch.equal(tracked(reference, query)[0].view(6, 6), expected)
    assert torch.equal(
        tracked(reference, crops([(80, 100, 96, 144)], size, flipped=True))[0].view(6, 6), expected.flip(1)
    )
    box, valid = relative_box(reference, query)
    torch.testing.assert_close(box, torch.tensor([[0.25, 1 / 6, 0.4, 0.4]]))
    assert bool(valid)
    partial = tracked(reference, crops([(0, 0, 96, 144)], size))[0].view(6, 6)
    rows = [[-1] * 6, [-1, -1, 0, 1, 2, 3], [-1, -1, 14, 15, 16, 17], [-1, -1, 28, 29, 30, 31]]
    assert partial.tolist() == [*rows, [-1, -1, 42, 43, 44, 45], [-1, -1, 42, 43, 44, 45]]
    box, _ = relative_box(reference, crops([(0, 0, 96, 144)], size))
    torch.testing.assert_close(box, torch.tensor([[0.0, 0.0, 76 / 240, 104 / 360]]))
    apart = crops([(0, 0, 15, 30)], size)
    assert (tracked(reference, apart) == -1).all() and not relative_box(reference, apart)[1]


@pytest.mark.parametrize("axis", ["flipped", "flipped_vertically"])
def test_a_mirrored_reference_shows_its_patches_in_mirrored_order(axis: str) -> None:
    reference, query = crops([(0, 0, 224, 224)], (224, 224)), crops([(10, 20, 150, 160)], (224, 224))
    plain = tracked(reference, query)[0]
    mirrored = tracked(replace(reference, **{axis: torch.tensor([True])}), query)[0]
    row, column = plain // 14, plain % 14
    expected = row * 14 + 13 - column if axis == "flipped" else (13 - row) * 14 + column
    assert torch.equal(mirrored, expected)
