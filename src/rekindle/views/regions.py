# SPDX-License-Identifier: Apache-2.0
"""Rectangular regions on the patch grid, for the regional consistency of GLARE (Ebouky et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.rng import row_uniform

Anchor = Literal["top_left", "clip", "center"]


@dataclass(frozen=True)
class Regions:
    """M rectangles of patches for each of N views.

    Attributes:
        mask: which patches belong to the region.
        top, left, height, width: the rectangle, in patches.

    """

    mask: Bool[Tensor, "N M gh gw"]
    top: Int64[Tensor, "N M"]
    left: Int64[Tensor, "N M"]
    height: Int64[Tensor, "N M"]
    width: Int64[Tensor, "N M"]


def sample_regions(
    progress: Progress,
    rows: int,
    views: int,
    grid: tuple[int, int],
    *,
    num_regions: int | None = None,
    min_patches: int = 3,
    max_patches: int = 7,
    start: Literal["attention", "random"] = "attention",
    anchor: Anchor = "top_left",
    cls_attention: Float[Tensor, "N heads gh gw"] | None = None,
    purpose: str = "regions",
) -> Regions:
    """Draw the regions of `rows` images with `views` views each; N = views * rows, views first.

    Height and width are uniform in min_patches .. max_patches, at most the grid. A region starts at the patch
    that the class token attends to most in one head (one region per head; fewer: a random subset of heads,
    more: heads repeat with another size), or at a random patch. Anchor `top_left`: the start is the corner,
    and the rectangle is shifted inwards at the border, so that it keeps its size; `clip`: it is cut at the
    border; `center`: the start is the centre, then shifted.

    Args: cls_attention over patches only; its device is the result's (else the CPU).
    Raises: ValueError for sizes out of order, a missing or misshapen attention, an unknown number of regions.
    """
    if not 1 <= min_patches <= max_patches:
        raise ValueError(f"need 1 <= min_patches <= max_patches; got {min_patches} and {max_patches}")
    if num_regions is None and cls_attention is None:
        raise ValueError(
            "num_regions is not given and there is no cls_attention whose heads could tell; give one of them"
        )
    if num_regions is not None and num_regions < 1:
        raise ValueError(f"num_regions is at least 1; got {num_regions}")
    count = num_regions
    if count is None:
        assert cls_attention is not None
        count = cls_attention.shape[1]

    if start == "random":
        device = torch.device("cpu") if cls_attention is None else cls_attention.device
        draw = _view_major(row_uniform(f"{purpose}/start", progress, rows, views, count))
        first = (draw * (grid[0] * grid[1])).long().to(device)
    elif cls_attention is None:
        raise ValueError("start='attention' needs cls_attention; pass the teacher's, or use start='random'")
    else:
        if cls_attention.shape[0] != rows * views or tuple(cls_attention.shape[2:]) != grid:
            raise ValueError(
                f"cls_attention has shape {tuple(cls_attention.shape)}; expected "
                f"({rows * views}, heads, {grid[0]}, {grid[1]})"
            )
        first = cls_attention.flatten(2).argmax(dim=-1)
        heads = _chosen_heads(progress, rows, views, first.shape[1], count, purpose)
        first = first.gather(1, heads.to(first.device))

    smallest = (min(min_patches, grid[0]), min(min_patches, grid[1]))
    largest = (min(max_patches, grid[0]), min(max_patches, grid[1]))
    draw = _view_major(row_uniform(f"{purpose}/size", progress, rows, views, count, 2)).to(first.device)
    height, width = (
        s + (draw[..., axis] * (large - s + 1)).long()
        for axis, (s, large) in enumerate(zip(smallest, largest, strict=True))
    )
    top, height = _placed(first // grid[1], height, grid[0], anchor)
    left, width = _placed(first % grid[1], width, grid[1], anchor)
    in_rows, in_columns = _interval(top, height, grid[0]), _interval(left, width, grid[1])
    return Regions(in_rows[..., :, None] & in_columns[..., None, :], top, left, height, width)


def _view_major(draw: Tensor) -> Tensor:
    """[B, V, ...] -> [V * B, ...]."""
    return draw.transpose(0, 1).flatten(0, 1)


def _chosen_heads(progress: Progress, rows: int, views: int, heads: int, count: int, purpose: str) -> Tensor:
    """[N, count]: all heads in order, a random subset in order, or all of them again and again."""
    if count >= heads:
        return (torch.arange(count) % heads).expand(rows * views, count)
    draw = _view_major(row_uniform(f"{purpose}/heads", progress, rows, views, heads))
    return draw.argsort(dim=-1)[:, :count].sort(dim=-1).values


def _placed(start: Tensor, extent: Tensor, size: int, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """First index and extent along one axis."""
    if anchor == "clip":
        return start, torch.minimum(extent, size - start)
    if anchor == "center":
        start = (start - extent // 2).clamp(min=0)
    return torch.minimum(start, size - extent), extent


def _interval(first: Tensor, extent: Tensor, size: int) -> Tensor:
    index = torch.arange(size, device=first.device)
    return (index >= first[..., None]) & (index < (first + extent)[..., None])
