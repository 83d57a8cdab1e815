# SPDX-License-Identifier: Apache-2.0
"""Token masks: which patches of a view stay visible to others, or enter the encoder at all."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.rng import generator, row_uniform
from rekindle.views.options import VisibleShape


def draw_kept(
    progress: Progress,
    rows: int,
    grid: tuple[int, int],
    count: int,
    *,
    shape: VisibleShape = "unstructured",
    shared: bool = True,
    purpose: str,
) -> Int64[Tensor, "B L"]:
    """Draw which `count` patches of a view are kept, ascending, for each of `rows` images.

    `structured` is a run of consecutive patches in reading order; `first` the first ones; `structured2d` a rectangle of at most
    `count` patches, nearly square; `unstructured` any. LOCA (arXiv:2212.02400), section 3.2, and its code, whose "block" is the
    run. shared: one draw for all images of the step.

    Returns: on the CPU. Raises: ValueError for a count outside 0 .. patches.
    """
    height, width = grid
    total = height * width
    if not 0 <= count <= total:
        raise ValueError(f"{count} patches cannot be kept of {total}")
    if shared:
        draw = torch.rand(1, total, generator=generator(progress.seed, purpose, progress.step)).expand(rows, -1)
    else:
        draw = row_uniform(purpose, progress, rows, total)
    if shape == "unstructured":
        return draw.argsort(dim=1)[:, :count].sort(dim=1).values
    if shape == "structured2d":
        tall = min(math.isqrt(count), height)
        wide = min(count // max(tall, 1), width)
        top = (draw[:, 0] * (height - tall + 1)).long()
        left = (draw[:, 1] * (width - wide + 1)).long()
        y = top[:, None, None] + torch.arange(tall)[:, None]
        return (y * width + left[:, None, None] + torch.arange(wide)).flatten(1)
    first = torch.zeros(rows, dtype=torch.int64) if shape == "first" else (draw[:, 0] * (total - count + 1)).long()
    return first[:, None] + torch.arange(count)
