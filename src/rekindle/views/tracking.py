# SPDX-License-Identifier: Apache-2.0
"""Patch tracking: which reference patch a query patch shows, followed through both crops as LOCA does it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rekindle.views.batch import Crops


@dataclass(frozen=True)
class Tracked:
    """Where query patches come from.

    Attributes:
        index: patch of the reference; meaningless where not `valid`.
        valid: False where the reference does not hold the query patch.
    """

    index: Int64[Tensor, "N Q"]
    valid: Bool[Tensor, "N Q"]


def track_patches(
    reference: Crops, query: Crops, *, reference_grid: tuple[int, int], query_size_px: int, query_grid: tuple[int, int]
) -> Tracked:
    """Follow a map of the reference's patch numbers through its crop into the query (LOCA, arXiv:2212.02400, section 3.1).

    The map is pasted where the reference was cut, the query is cut from it, resized to the query's pixels and then to its
    patches, each time taking the nearest number at half-pixel centres: so a query patch gets the number under its centre, up to
    half a pixel. Computed in closed form along each axis, in whole pixels of the image.

    Args: crops with fields [N]; grids (rows, columns); query_size_px, side of the query view.
    """
    (r_rows, r_columns), (q_rows, q_columns) = _in_pixels(reference), _in_pixels(query)
    rows = _along(r_rows, q_rows, reference_grid[0], query_size_px, query_grid[0])
    columns = _along(r_columns, q_columns, reference_grid[1], query_size_px, query_grid[1])
    index = rows.index[:, :, None] * reference_grid[1] + columns.index[:, None, :]
    valid = rows.valid[:, :, None] & columns.valid[:, None, :]
    for axis, reference_flip, query_flip in (
        (1, reference.flipped_vertically, query.flipped_vertically),
        (2, reference.flipped, query.flipped),
    ):
        size = reference_grid[axis - 1]
        step = 1 if axis == 2 else reference_grid[1]
        place = index // step % size
        index = torch.where(reference_flip[:, None, None], index + (size - 1 - 2 * place) * step, index)
        flip = query_flip[:, None, None]
        index, valid = torch.where(flip, index.flip(axis), index), torch.where(flip, valid.flip(axis), valid)
    return Tracked(index.flatten(1), valid.flatten(1))


def relative_box(reference: Crops, query: Crops) -> tuple[Float[Tensor, "N 4"], Bool[Tensor, " N"]]:
    """Return the query's box (y, x, height, width) in fractions of the reference, clipped to it, and whether it counts.

    It counts if more than a tenth of both sides is left. LOCA's code; its box regression predicts it.
    """
    sides = []
    for start, extent in (("top", "height"), ("left", "width")):
        r0, r = getattr(reference, start), getattr(reference, extent)
        q0, q = getattr(query, start), getattr(query, extent)
        place = (q0 - r0).clamp_min(0) / r
        sides.append((place, ((torch.minimum(q0 + q, r0 + r) - r0) / r - place).clamp_min(0)))
    (y, height), (x, width) = sides
    return torch.stack([y, x, height, width], dim=-1), (height > 0.1) & (width > 0.1)


_Span = tuple[Tensor, Tensor]
"""Start and extent along an axis, in whole pixels of the image."""


def _in_pixels(crops: Crops) -> tuple[_Span, _Span]:
    """Rows and columns of crops, from fractions of the image."""

    def span(start: Tensor, extent: Tensor, image: Tensor) -> _Span:
        return (start * image).round().long(), (extent * image).round().long()

    rows = span(crops.top, crops.height, crops.image_height)
    return rows, span(crops.left, crops.width, crops.image_width)


def _along(reference: _Span, query: _Span, reference_count: int, size: int, count: int) -> Tracked:
    """One axis: the reference's patch under each of the query's `count` patches, [N, count]; whole numbers throughout."""
    patch = torch.arange(count, device=query[0].device)
    pixel = (2 * patch + 1) * size // (2 * count)  # of the query view, under the patch's centre
    place = query[0][:, None] + (2 * pixel + 1) * query[1][:, None] // (2 * size)  # of the image
    offset = place - reference[0][:, None]
    length = reference[1][:, None]
    valid = (offset >= 0) & (offset < length)
    index = (2 * offset + 1) * reference_count // (2 * length)
    return Tracked(index.clamp(0, reference_count - 1), valid)
