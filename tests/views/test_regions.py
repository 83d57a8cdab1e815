# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.views.regions import Anchor, Regions, sample_regions

START = Progress(step=0, total=10)
GRID = (14, 12)


def attention(n: int = 12, heads: int = 6) -> Tensor:
    return torch.rand(n, heads, *GRID, generator=torch.Generator().manual_seed(0))


def rectangles(regions: Regions) -> Tensor:
    """[N, M, gh, gw] rebuilt from the corners, cell by cell."""
    rebuilt = torch.zeros_like(regions.mask)
    for n, m in torch.ones(regions.top.shape).nonzero().tolist():
        top, left = int(regions.top[n, m]), int(regions.left[n, m])
        rebuilt[n, m, top : top + int(regions.height[n, m]), left : left + int(regions.width[n, m])] = True
    return rebuilt


@pytest.mark.parametrize("anchor", get_args(Anchor))
def test_regions_are_rectangles_inside_the_grid_that_contain_the_start(anchor: Anchor) -> None:
    table = attention()
    regions = sample_regions(START, 6, 2, GRID, anchor=anchor, cls_attention=table)
    assert regions.mask.shape == (12, 6, *GRID)  # one region per head
    assert torch.equal(regions.mask, rectangles(regions))
    assert torch.equal(regions.mask.flatten(2).sum(-1), regions.height * regions.width)
    peak = table.flatten(2).argmax(-1, keepdim=True)
    assert regions.mask.flatten(2).gather(2, peak).all()
    least = 1 if anchor == "clip" else 3
    for extent in (regions.height, regions.width):
        assert least <= int(extent.min())
        assert int(extent.max()) <= 7


def test_sizes_are_uniform_between_the_limits() -> None:
    regions = sample_regions(START, 400, 2, GRID, num_regions=4, start="random")
    for extent in (regions.height, regions.width):
        share = torch.bincount(extent.flatten(), minlength=8)[3:].float() / extent.numel()
        torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.03, rtol=0)


def test_top_left_starts_at_the_peak_unless_the_border_shifts_it() -> None:
    table = torch.zeros(2, 2, *GRID)
    table[:, 0, 2, 3] = 1
    table[:, 1, 13, 11] = 1
    corner = sample_regions(START, 1, 2, GRID, cls_attention=table)
    assert (corner.top[:, 0] == 2).all()
    assert (corner.left[:, 0] == 3).all()
    assert torch.equal(corner.top[:, 1] + corner.height[:, 1], torch.tensor([14, 14]))
    cut = sample_regions(START, 1, 2, GRID, cls_attention=table, anchor="clip")
    assert (cut.height[:, 1] == 1).all()
    centre = sample_regions(START, 1, 2, GRID, cls_attention=table, anchor="center", min_patches=3, max_patches=3)
    assert (centre.top[:, 0] == 1).all()
    assert (centre.left[:, 0] == 2).all()


def test_fewer_regions_than_heads_take_a_random_subset_of_heads() -> None:
    table = torch.zeros(40, 6, *GRID)
    for head in range(6):
        table[:, head, 0, head] = 1
    regions = sample_regions(START, 20, 2, GRID, num_regions=2, min_patches=1, max_patches=1, cls_attention=table)
    heads = regions.left
    assert (heads[:, 0] != heads[:, 1]).all()
    assert set(heads.flatten().tolist()) == set(range(6))


def test_more_regions_than_heads_repeat_heads_with_another_size() -> None:
    table = attention(12, 2)
    regions = sample_regions(START, 6, 2, (14, 12), num_regions=4, anchor="clip", cls_attention=table)
    assert torch.equal(regions.top[:, :2], regions.top[:, 2:])
    assert not torch.equal(regions.height[:, :2], regions.height[:, 2:])


def test_a_grid_smaller_than_the_largest_size_clips_the_size() -> None:
    regions = sample_regions(START, 8, 2, (2, 5), num_regions=3, start="random")
    assert (regions.height == 2).all()
    assert int(regions.width.max()) == 5
    assert torch.equal(regions.mask, rectangles(regions))


@pytest.mark.parametrize("num_regions", [2, 3])
def test_two_halves_of_a_batch_get_the_regions_of_the_whole(num_regions: int) -> None:
    table = attention(8, 3)
    whole = sample_regions(Progress(5, 9), 4, 2, GRID, num_regions=num_regions, cls_attention=table).mask
    for slot in (0, 1):
        part = table.view(2, 4, 3, *GRID)[:, 2 * slot : 2 * slot + 2].flatten(0, 1)
        share = Progress(5, 9, slot=slot, num_slots=2)
        half = sample_regions(share, 2, 2, GRID, num_regions=num_regions, cls_attention=part).mask
        assert torch.equal(half.view(2, 2, -1), whole.view(2, 4, -1)[:, 2 * slot : 2 * slot + 2])


def test_wrong_requests_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match="1 <= min_patches <= max_patches; got 5 and 4"):
        sample_regions(START, 1, 2, GRID, num_regions=1, start="random", min_patches=5, max_patches=4)
    with pytest.raises(ValueError, match="give one of them"):
        sample_regions(START, 1, 2, GRID, start="random")
    with pytest.raises(ValueError, match="pass the teacher's, or use start='random'"):
        sample_regions(START, 1, 2, GRID, num_regions=2)
    with pytest.raises(ValueError, match=r"expected \(4, heads, 14, 12\)"):
        sample_regions(START, 2, 2, GRID, cls_attention=attention(2))
