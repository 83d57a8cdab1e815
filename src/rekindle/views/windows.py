# SPDX-License-Identifier: Apache-2.0
"""Stratified sampling of patches: one of each window of the grid (UDI, FLSL)."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import row_uniform


def sample_windows(
    progress: Progress,
    rows: int,
    views: int,
    grid: tuple[int, int],
    window: int,
    *,
    is_random: bool = True,
    purpose: str = "windows",
) -> Int64[Tensor, "V B M"]:
    """Draw one patch of each window of `window` x `window` patches, for `rows` images of `views` views each.

    The grid holds whole windows only; the area that they cover lies in one of the grid's four corners, drawn per view. Not
    random: the first patch of each window, and the corner is drawn all the same (FLSL's code, whose queries would otherwise
    never move). Returns: indices of patches, on the CPU.
    Raises: ValueError if no window fits into the grid.
    """
    counts = [side // window for side in grid]
    if min(counts) < 1:
        raise ValueError(f"a window of {window} x {window} patches does not fit into a grid of {grid[0]} x {grid[1]}")
    num = counts[0] * counts[1]
    draw = row_uniform(purpose, progress, rows, views, 2 + 2 * num)
    corner = (draw[..., :2] >= 0.5).long() * torch.tensor([s - n * window for s, n in zip(grid, counts, strict=True)])
    offset = (draw[..., 2:].reshape(rows, views, num, 2) * window).long().clamp_max(window - 1)
    places = torch.cartesian_prod(*(torch.arange(n) * window for n in counts)).view(num, 2)
    cell = places + corner[..., None, :] + (offset if is_random else 0)
    index: Tensor = (cell[..., 0] * grid[1] + cell[..., 1]).transpose(0, 1).contiguous()
    return index


def check_windows(method: str, window: int, local_window: int, large: int, small: int | None) -> None:
    """Refuse windows that do not fit into the views.

    Args: window, local_window, sides of the windows of large and small views; large, small, sides of the views, in patches.
    Raises: RequestError that names the option.
    """
    wanted = [("window", window, "global", large)]
    if small is not None:
        wanted.append(("local-window", local_window, "local", small))
    for option, side, view, grid in wanted:
        if side > grid:
            raise RequestError(
                f"--{method}.{option} {side} does not fit into views of {grid} x {grid} patches; use at most {grid}, or raise "
                f"--views.{view}-size-px"
            )
