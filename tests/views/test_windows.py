# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from rekindle.core.progress import Progress
from rekindle.views.windows import sample_windows

START = Progress(0, 10)


@pytest.mark.parametrize(("grid", "window", "num"), [((14, 14), 3, 16), ((6, 6), 2, 9), ((6, 9), 2, 12)])
def test_one_patch_of_each_window_and_the_windows_begin_in_one_of_four_corners(
    grid: tuple[int, int], window: int, num: int
) -> None:
    """S32: sampled positions, one per window."""
    index = sample_windows(START, 40, 2, grid, window)
    assert index.shape == (2, 40, num)
    rows, columns = index // grid[1], index % grid[1]
    spare = [side % window for side in grid]
    corners = set()
    for view_rows, view_columns in zip(rows.flatten(0, 1), columns.flatten(0, 1), strict=True):
        fits = []
        for top in {0, spare[0]}:
            for left in {0, spare[1]}:
                cells = {
                    (int(r - top) // window, int(c - left) // window)
                    for r, c in zip(view_rows, view_columns, strict=True)
                    if r >= top and c >= left
                }
                if len(cells) == num and max(cells) == (grid[0] // window - 1, grid[1] // window - 1):
                    fits.append((top, left))
        assert fits
        if len(fits) == 1:
            corners.add(fits[0])
    if min(spare):
        assert len(corners) >= 3


def test_not_random_is_the_first_patch_of_each_window_from_a_drawn_corner() -> None:
    """FLSL's code draws the corner even where the patch is fixed: 64 patches of 14 x 14 are queries in turn, 16 at a time."""
    index = sample_windows(START, 60, 1, (7, 7), 3, is_random=False)
    corners = {tuple(row) for row in index[0].tolist()}
    assert corners == {tuple(top * 7 + left + place for place in (0, 3, 21, 24)) for top in (0, 1) for left in (0, 1)}
    seen: set[int] = set()
    for step in range(60):
        seen |= set(sample_windows(Progress(step, 60), 1, 1, (14, 14), 3, is_random=False).flatten().tolist())
    assert len(seen) == 64


def test_all_patches_of_a_window_are_drawn_and_a_split_batch_draws_the_same() -> None:
    index = sample_windows(START, 400, 1, (2, 2), 2)
    assert sorted(set(index.flatten().tolist())) == [0, 1, 2, 3]
    halves = [sample_windows(Progress(0, 10, slot=slot, num_slots=2), 200, 1, (2, 2), 2) for slot in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), index)


def test_a_window_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="3 x 3 patches does not fit into a grid of 2 x 6"):
        sample_windows(START, 1, 1, (2, 6), 3)
