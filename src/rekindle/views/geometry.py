# SPDX-License-Identifier: Apache-2.0
"""Patch matching: which patch of one view shows the same place as which patch of another.

The one coordinate convention: (y, x), fractions of the original image with edges at 0 and 1; patch i of n
spans [i/n, (i+1)/n] of its view; patches are counted row by row. A patch is a vertical times a horizontal
interval, so relations are computed per axis ([B, gh, gh'] and [B, gw, gw']) and then combined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rekindle.views.batch import Crops
from rekindle.views.options import MatchMode as MatchMode
from rekindle.views.options import checked_threshold


@dataclass(frozen=True)
class Match:
    """The partners of each student patch among the teacher's patches, C(x_s) of GLARE.

    Attributes:
        relation: True where student patch s and teacher patch t show the same place.
        nearest: the single best teacher patch; an element of C(s) wherever `valid`, meaningless elsewhere.
        valid: True where the student patch has any partner.

    """

    relation: Bool[Tensor, "B Ns Nt"]
    nearest: Int64[Tensor, "B Ns"]
    valid: Bool[Tensor, "B Ns"]


@dataclass(frozen=True)
class _Axis:
    """One axis of a crop's patches: centres [B, n], and the half extent [B, 1, 1] that all of them share."""

    centres: Tensor
    half: Tensor


def _axis(start: Tensor, extent: Tensor, flipped: Tensor, count: int) -> _Axis:
    # Half precision resolves 1/2000 near 1, a thirtieth of a patch: never compute places in it.
    start, extent = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (start, extent))
    place = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    place = torch.where(flipped[..., None], 1.0 - place, place)
    return _Axis(start[..., None] + place * extent[..., None], (extent / (2 * count))[..., None, None])


def _axes(crops: Crops, grid: tuple[int, int]) -> tuple[_Axis, _Axis]:
    gh, gw = grid
    return (
        _axis(crops.top, crops.height, crops.flipped_vertically, gh),
        _axis(crops.left, crops.width, crops.flipped, gw),
    )


def patch_centres(crops: Crops, grid: tuple[int, int]) -> Float[Tensor, "*lead P 2"]:
    """Centres (y, x) of the patches of each view in its image, row by row; mirrored views are followed back.

    Args: crops with any leading shape; grid (gh, gw), P = gh * gw. Returns: float32, or as the crops.
    """
    rows, columns = (axis.centres for axis in _axes(crops, grid))
    gh, gw = grid
    y = rows[..., :, None].expand(*rows.shape, gw)
    x = columns[..., None, :].expand(*columns.shape[:-1], gh, gw)
    return torch.stack([y, x], dim=-1).flatten(-3, -2)


def shared_region(a: Crops, b: Crops) -> tuple[Float[Tensor, "*lead 4"], Float[Tensor, "*lead"]]:
    """Return the rectangle (top, left, height, width) that two crops of an image share, and its area (0 if there is none).

    In fractions of the image, float32.
    """
    sides = []
    for start, extent in (("top", "height"), ("left", "width")):
        first, second = getattr(a, start).float(), getattr(b, start).float()
        ends = torch.minimum(first + getattr(a, extent).float(), second + getattr(b, extent).float())
        begin = torch.maximum(first, second)
        sides.append((begin, (ends - begin).clamp_min(0.0)))
    (top, height), (left, width) = sides
    return torch.stack([top, left, height, width], dim=-1), height * width


def places_in(crops: Crops, points: Float[Tensor, "*lead M 2"]) -> Float[Tensor, "*lead M 2"]:
    """Where points (y, x) of the image lie in each view, as fractions of it; outside [0, 1] they are not in it.

    Mirrored views are followed.
    """
    axes = []
    for place, start, extent, flipped in (
        (points[..., 0], crops.top, crops.height, crops.flipped_vertically),
        (points[..., 1], crops.left, crops.width, crops.flipped),
    ):
        share = (place - start.float()[..., None]) / extent.float()[..., None]
        axes.append(torch.where(flipped[..., None], 1.0 - share, share))
    return torch.stack(axes, dim=-1)


def bilinear_rows(
    places: Float[Tensor, "*lead M 2"], grid: tuple[int, int], *, eps: float = 1e-6
) -> Float[Tensor, "*lead M P"]:
    """Weights of the patches of a view that interpolate its tokens at `places`; rows sum to 1, outside the view to 0.

    Patch i of n has its centre at (i + 1/2) / n; between the outer centres and the edge the outer patch counts alone.
    """
    inside = ((places >= -eps) & (places <= 1 + eps)).all(dim=-1)
    weights = []
    for axis, count in enumerate(grid):
        place = (places[..., axis] * count - 0.5).clamp(0, count - 1)
        distance = (place[..., None] - torch.arange(count, device=place.device, dtype=place.dtype)).abs()
        weights.append((1 - distance).clamp_min(0.0))
    rows = (weights[0][..., :, None] * weights[1][..., None, :]).flatten(-2)
    return rows * inside[..., None]


def match_patches(
    student: Crops,
    teacher: Crops,
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    *,
    mode: MatchMode = "containment",
    threshold: float | None = None,
    eps: float = 1e-6,
) -> Match:
    """Relate the patches of student views to those of teacher views of the same images.

    GLARE (Ebouky et al.), C(x_s), whose rule the paper leaves open; the modes:
    `containment`: the centre of either patch lies inside the other (set-valued and symmetric);
    `center`: the teacher patch that holds the student patch's centre, at most one (LOCA);
    `overlap`: shared area at least `threshold` (default 0.5) of the smaller patch;
    `nearest`: the nearest centre if closer than `threshold` (default 1) teacher patches (VICRegL).

    Args: crops with fields [B]; grids (gh, gw); eps, the tolerance in image fractions, so that rounding does
    not decide on shared edges. Raises: ValueError for a threshold out of range, or one where the mode has
    none.
    """
    limit = checked_threshold(mode, threshold)
    s_axes, t_axes = _axes(student, student_grid), _axes(teacher, teacher_grid)
    distance = [(s.centres[:, :, None] - t.centres[:, None, :]).abs() for s, t in zip(s_axes, t_axes, strict=True)]
    best = [_first_nearest(d, eps) for d in distance]
    nearest = (best[0][:, :, None] * teacher_grid[1] + best[1][:, None, :]).flatten(1)

    s_in_t = [d <= t.half + eps for d, t in zip(distance, t_axes, strict=True)]
    if mode == "containment":
        t_in_s = [d <= s.half + eps for d, s in zip(distance, s_axes, strict=True)]
        relation = _outer(*s_in_t) | _outer(*t_in_s)
    elif mode == "center":
        relation = _outer(*(inside & _one_hot(b, inside) for inside, b in zip(s_in_t, best, strict=True)))
    elif mode == "overlap":
        relation = _overlapping(distance, s_axes, t_axes, limit, eps)
    else:
        squares = [(d / (2 * t.half)) ** 2 for d, t in zip(distance, t_axes, strict=True)]
        close = (squares[0][:, :, None, :, None] + squares[1][:, None, :, None, :]) < limit**2
        relation = _outer(*(_one_hot(b, d) for b, d in zip(best, distance, strict=True))) & close.flatten(1, 2).flatten(
            2
        )
    return Match(relation, nearest, relation.any(dim=-1))


def region_partner(region_mask: Bool[Tensor, "B M Ns"], relation: Bool[Tensor, "B Ns Nt"]) -> Bool[Tensor, "B M Nt"]:
    """R': the union of the partners C(s) of a region's patches."""
    # A sum of ones is positive in any precision, so autocast may do as it likes here.
    return torch.bmm(region_mask.float(), relation.float()) > 0


def _first_nearest(distance: Tensor, eps: float) -> Tensor:
    """[B, ns, nt] -> [B, ns]: lowest index among those at the least distance, up to rounding."""
    return (distance <= distance.amin(dim=-1, keepdim=True) + 2 * eps).to(torch.uint8).argmax(dim=-1)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None] == torch.arange(like.shape[-1], device=like.device)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """[B, gh, gh'] and [B, gw, gw'] -> [B, gh * gw, gh' * gw']: both axes agree."""
    return (rows[:, :, None, :, None] & columns[:, None, :, None, :]).flatten(1, 2).flatten(2)


def _overlapping(
    distance: list[Tensor], s_axes: tuple[_Axis, _Axis], t_axes: tuple[_Axis, _Axis], limit: float, eps: float
) -> Tensor:
    shared, smaller = [], []
    for d, s, t in zip(distance, s_axes, t_axes, strict=True):
        smaller.append(2 * torch.minimum(s.half, t.half))
        shared.append(torch.minimum((s.half + t.half - d).clamp(min=0), smaller[-1]))
    area = shared[0][:, :, None, :, None] * shared[1][:, None, :, None, :]
    s_area, t_area = (4 * a[0].half * a[1].half for a in (s_axes, t_axes))
    needed = limit * torch.minimum(s_area, t_area)[:, :, :, None, None]
    slack = (eps * (smaller[0] + smaller[1]))[:, :, :, None, None]  # what eps on each side is worth in area
    return ((area + slack >= needed) & (area > slack)).flatten(1, 2).flatten(2)
