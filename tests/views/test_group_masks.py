# SPDX-License-Identifier: Apache-2.0
"""Properties 1 and 2 of MMC's specification, and what the generator promises besides."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.views.group_masks import BlockFill, Lenders, corrupt_groups, draw_groups

START = Progress(step=0, total=10)


def clean(rows: int = 4, size: int = 224) -> Tensor:
    return torch.randn(2, rows, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("replace_p", "low", "high"), [(0.0, 0.5, 0.85), (1.0, 0.3, 0.4)])
def test_property_1_coverage_edges_and_untouched_pixels(replace_p: float, low: float, high: float) -> None:
    pixels = clean(24)
    found = corrupt_groups(pixels, START, replace_p=replace_p)
    coverage = found.mask().float().mean(dim=(-2, -1))
    assert low <= float(coverage.min()) and float(coverage.max()) < high
    assert found.cells.shape == (2, 24, 14, 14) and found.align_px == 16  # edges are multiples of 16
    outside = ~found.mask()[:, :, None].expand_as(pixels)
    assert torch.equal(found.pixels[outside], pixels[outside])
    assert (found.pixels[~outside] != pixels[~outside]).float().mean() > 0.999


def test_property_1_noise_is_standard_normal_and_fresh_for_every_view() -> None:
    found = corrupt_groups(clean(), START, replace_p=0.0)
    noise = found.pixels[found.mask()[:, :, None].expand_as(found.pixels)]
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    both = (found.mask()[0, 0] & found.mask()[1, 0]).expand(3, -1, -1)
    assert not torch.equal(found.pixels[0, 0][both], found.pixels[1, 0][both])


def test_property_1_replaced_pixels_are_another_images_at_the_same_place() -> None:
    pixels = clean(5, 64)
    pixels[:] = torch.arange(5.0)[None, :, None, None, None] + torch.arange(2.0)[:, None, None, None, None] * 10
    pixels += torch.linspace(0, 0.5, 64 * 64).view(64, 64)
    lenders = set()
    for step in range(20):
        found = corrupt_groups(pixels, Progress(step, 20), replace_p=1.0, align_px=8)
        for view in range(2):
            for image in range(5):
                inside = found.mask()[view, image].expand(3, -1, -1)
                shift = (found.pixels - pixels)[view, image][inside]
                assert float(shift.std()) < 1e-5  # one lender, same coordinates, same view
                lender = image + round(float(shift.mean()))
                assert lender != image and 0 <= lender < 5
                lenders.add((image, lender))
    assert len(lenders) == 20  # every other image lends


def test_property_2_a_third_of_the_views_is_replaced() -> None:
    found = corrupt_groups(torch.zeros(1, 2000, 3, 8, 8), START, align_px=1, max_block=0.6, fill="zeros")
    assert abs(float(found.replaced.float().mean()) - 0.35) < 0.035


def test_the_border_is_covered_less_often_as_measured_of_the_original_generator() -> None:
    """Section 3: means 0.634 and 0.316; first row 0.37, last 0.53, middle 0.69."""
    share = 0.5 + 0.25 * torch.rand(200, 2, generator=torch.Generator().manual_seed(1))
    mask = draw_groups(START, share, (224, 224), align_px=16, max_block=0.3).float()
    assert float(mask.mean()) == pytest.approx(0.634, abs=0.01)
    rows = mask.mean(dim=(0, 1, 3))
    assert [float(rows[0]), float(rows[-1]), float(rows[4:-4].mean())] == pytest.approx([0.37, 0.53, 0.69], abs=0.04)
    third = draw_groups(START, torch.full((200, 2), 0.3), (224, 224), align_px=16, max_block=0.3).float()
    assert float(third.mean()) == pytest.approx(0.316, abs=0.005)


def test_rectangles_stop_as_soon_as_the_share_is_covered() -> None:
    """Of one-cell rectangles, exactly as many are taken as are wanted."""
    mask = draw_groups(START, torch.full((8, 2), 0.25), (64, 64), align_px=8, max_block=0.1)
    assert (mask.flatten(2).sum(dim=-1) == 16).all()


@pytest.mark.parametrize("fill", get_args(BlockFill))
@pytest.mark.parametrize("replace_p", [0.0, 1.0])
def test_two_halves_of_a_batch_are_corrupted_like_the_whole(fill: BlockFill, replace_p: float) -> None:
    pixels = clean(4, 64)
    whole = corrupt_groups(pixels, Progress(3, 10), fill=fill, replace_p=replace_p, align_px=8)
    for slot in range(2):
        rows = slice(2 * slot, 2 * slot + 2)
        share = Progress(3, 10, slot=slot, num_slots=2)
        half = corrupt_groups(
            pixels[:, rows],
            share,
            fill=fill,
            replace_p=replace_p,
            align_px=8,
            lenders=Lenders.of_step(torch.split(pixels, 2, dim=1)),
        )
        assert torch.equal(half.cells, whole.cells[:, rows])
        assert torch.equal(half.pixels, whole.pixels[:, rows])
    other = corrupt_groups(pixels, Progress(4, 10), fill=fill, replace_p=replace_p, align_px=8)
    assert not torch.equal(other.cells, whole.cells)


def test_zeros_and_the_views_own_pixels_fill_as_well() -> None:
    pixels = clean(6, 64)
    zeros = corrupt_groups(pixels, START, fill="zeros", replace_p=0.0, align_px=8)
    inside = zeros.mask()[:, :, None].expand_as(pixels)
    assert not zeros.pixels[inside].any()
    own = corrupt_groups(pixels, START, fill="self", replace_p=0.0, align_px=8)
    for view in range(2):
        for image in range(6):
            inside = own.mask()[view, image].expand(3, -1, -1)
            moved = [
                pixels[view, image].roll((y, x), (1, 2)) for y in range(0, 64, 8) for x in range(0, 64, 8) if y or x
            ]
            assert sum(torch.equal(own.pixels[view, image][inside], m[inside]) for m in moved) == 1


def test_wrong_requests_are_refused_with_the_fix() -> None:
    with pytest.raises(RequestError, match="at least two in a step"):
        corrupt_groups(clean(1, 32), START, align_px=8, max_block=0.6)
    with pytest.raises(RequestError, match="16 px do not tile a view of 40 x 40 px at least twice"):
        corrupt_groups(clean(2, 40), START)
    with pytest.raises(RequestError, match=r"reach 0\.56 of it(.|\n)*raise max_block"):
        draw_groups(START, torch.full((1, 1), 0.7), (32, 32), align_px=8, max_block=0.3)
