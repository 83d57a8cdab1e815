# SPDX-License-Identifier: Apache-2.0
"""Group-masked corruption of whole views: rectangles of noise, or of another image, until a share of the view is covered.

GMML (Atito et al., arXiv:2205.14986) as MMC uses it. Draws are one row per image, so that a batch split over processes is
corrupted like the whole. The image that lends its pixels is any other of the step (`Lenders`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rekindle.core.distributed import all_rows
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import derived_seed, row_uniform

BlockFill = Literal["noise", "zeros", "self"]
AreaRange = tuple[float, float]

_CHUNK = 32
"""Rectangles drawn at a time for each view; about as many as cover 60 % of it."""


@dataclass(frozen=True)
class CorruptedViews:
    """Views with groups of pixels replaced, beside which they are.

    Attributes:
        pixels: [V, B, 3, H, W], where the clean ones are.
        cells: [V, B, H / align, W / align], on the CPU; True where every pixel of a cell was replaced.
        replaced: [V, B], on the CPU; True where the pixels are another image's.
        align_px: side of a cell.
    """

    pixels: Tensor
    cells: Tensor
    replaced: Tensor
    align_px: int

    def mask(self) -> Bool[Tensor, "V B H W"]:
        """True for every corrupted pixel; on the CPU."""
        return _enlarged(self.cells, self.align_px)


class Lenders:
    """The views of all images of a step, of which any other may lend its pixels.

    Args: parts, of equal size, images first, in the order of the step.
    """

    def __init__(self, parts: Sequence[Float[Tensor, "B V 3 H W"]]) -> None:
        self._parts = parts

    @staticmethod
    def of_step(parts: Sequence[Float[Tensor, "V B 3 H W"]]) -> Lenders:
        """Those of all processes. Args: parts, each micro-batch of this process; every process has as many, of as many images."""
        # slots go round the processes, so the rows of all of them stand in the order of the step
        return Lenders([all_rows(part.transpose(0, 1))[0] for part in parts])

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def views(self, number: Int64[Tensor, "B V"]) -> Float[Tensor, "V B 3 H W"]:
        """Views of images by their number in the step: of image `number[b, v]`, view v."""
        part, row = number // len(self._parts[0]), number % len(self._parts[0])
        places = zip(part.T.tolist(), row.T.tolist(), strict=True)
        return torch.stack(
            [torch.stack([self._parts[p][r, view] for p, r in zip(*at, strict=True)]) for view, at in enumerate(places)]
        )


def draw_groups(
    progress: Progress,
    share: Float[Tensor, "B V"],
    size: tuple[int, int],
    *,
    align_px: int,
    max_block: float,
    purpose: str = "groups",
) -> Bool[Tensor, "V B gh gw"]:
    """Draw rectangles of whole cells until they cover at least `share` of each view.

    The upper left corner is uniform over [0, H - align) x [0, W - align), rounded down to a cell; the sides are uniform integers
    in [align, max_block * H), cut at the border and rounded to cells. Rectangles may overlap. Cells of the first and last
    rows and columns are therefore covered less often, as in the code of GMML.

    Args: share, in [0, 1]; size (H, W) of a view in pixels; align_px, side of a cell; max_block, longest side of a rectangle
    as a share of the view's.

    Returns: on the CPU, a cell is `align_px` pixels wide.

    Raises: RequestError if cells do not tile the view, or rectangles this small can never cover the share.
    """
    grid = _grid(size, align_px)
    reach = 1.0
    for side, cells in zip(size, grid, strict=True):
        longest = round((_end(side, align_px, max_block) - 1) / align_px)
        reach *= min(cells, (side - align_px - 1) // align_px + longest) / cells
    if float(share.max()) > reach:
        raise RequestError(
            f"rectangles of at most {max_block:g} of a view of {size[0]} x {size[1]} px reach {reach:.2f} of it, and "
            f"{float(share.max()):.2f} shall be corrupted; raise max_block, lower the area, or take larger views"
        )
    wanted = (share.double() * (grid[0] * grid[1])).flatten().tolist()
    masks = np.zeros((len(wanted), *grid), dtype=np.bool_)
    covered, chunk = [0] * len(wanted), 0
    while any(found < aim for found, aim in zip(covered, wanted, strict=True)):
        draws = row_uniform(f"{purpose}/{chunk}", progress, *share.shape, _CHUNK, 4).double()
        boxes = _rectangles(draws, size, align_px, max_block).flatten(0, 1).tolist()
        for view, mask in enumerate(masks):
            covered[view] += _cover(mask, boxes[view], wanted[view] - covered[view])
        chunk += 1
    return torch.from_numpy(masks).view(*share.shape, *grid).transpose(0, 1).contiguous()


def corrupt_groups(
    pixels: Float[Tensor, "V B 3 H W"],
    progress: Progress,
    *,
    fill: BlockFill = "noise",
    replace_p: float = 0.35,
    fill_area: AreaRange = (0.5, 0.75),
    replace_area: AreaRange = (0.3, 0.3),
    align_px: int = 16,
    max_block: float = 0.3,
    purpose: str = "corruption",
    lenders: Lenders | None = None,
) -> CorruptedViews:
    """Replace groups of pixels of each view, either by `fill` or, with probability `replace_p`, by those of another image.

    MMC, section 3 of its specification. `noise`: standard normal in normalised units, fresh for every pixel; `zeros`; `self`:
    the same view's pixels, moved around by one displacement per view. Another image lends its view of the same number, at the
    same coordinates. Pixels outside the mask keep their bits, and the argument its values.

    Args: fill_area and replace_area, smallest and largest share of the view that is drawn to be covered (the last rectangle
    may go beyond it); lenders, all images of the step; None: these are all.

    Raises: RequestError if another image is wanted and there is none, and for what `draw_groups` refuses.
    """
    num_views, rows, _, height, width = pixels.shape
    lenders = Lenders([pixels.transpose(0, 1)]) if lenders is None else lenders
    if replace_p > 0 and len(lenders) < 2:
        raise RequestError(
            "the corruption takes pixels of another image and needs at least two in a step; raise --batch-size, give more "
            "images, or set replace_p to 0"
        )
    draws = row_uniform(f"{purpose}/mode", progress, rows, num_views, 3).double()
    replaced = draws[..., 0] < replace_p
    low, high = (torch.where(replaced, a, b) for a, b in zip(replace_area, fill_area, strict=True))
    share = (low + (high - low) * draws[..., 1]).float()
    cells = draw_groups(
        progress, share, (height, width), align_px=align_px, max_block=max_block, purpose=f"{purpose}/groups"
    )
    source = _filled(pixels, fill, progress, align_px, purpose)
    if replace_p > 0:
        own = progress.slot * rows + torch.arange(rows)[:, None]
        other = (own + 1 + (draws[..., 2] * (len(lenders) - 1)).long()) % len(lenders)
        lent = lenders.views(torch.where(replaced, other, own))
        source = torch.where(replaced.T.to(pixels.device)[..., None, None, None], lent, source)
    mask = _enlarged(cells.to(pixels.device, non_blocking=True), align_px)[:, :, None]
    return CorruptedViews(torch.where(mask, source, pixels), cells, replaced.T, align_px)


def _filled(pixels: Tensor, fill: BlockFill, progress: Progress, align_px: int, purpose: str) -> Tensor:
    """What is put in place of pixels where no other image lends its own."""
    num_views, rows, _, height, width = pixels.shape
    if fill == "zeros":
        return torch.zeros_like(pixels)
    if fill == "noise":
        # one stream per image, drawn where the pixels are: no process draws the others' noise, and none of it travels
        source = torch.Generator(device=pixels.device)
        noise = torch.empty_like(pixels)
        for row in range(rows):
            number = progress.slot * rows + row
            source.manual_seed(derived_seed(progress.seed, f"{purpose}/noise", progress.step, number))
            noise[:, row] = torch.randn(
                num_views, *pixels.shape[2:], generator=source, device=pixels.device, dtype=pixels.dtype
            )
        return noise
    cells = height // align_px * (width // align_px)
    step = 1 + (row_uniform(f"{purpose}/self", progress, rows, num_views) * (cells - 1)).long()  # never 0: never itself
    y, x = step // (width // align_px) * align_px, step % (width // align_px) * align_px
    from_y = (torch.arange(height) + y.T[..., None]) % height
    from_x = (torch.arange(width) + x.T[..., None]) % width
    moved = pixels.take_along_dim(from_y.to(pixels.device)[:, :, None, :, None], dim=3)
    return moved.take_along_dim(from_x.to(pixels.device)[:, :, None, None, :], dim=4)


def _grid(size: tuple[int, int], align_px: int) -> tuple[int, int]:
    if min(size) < 2 * align_px or size[0] % align_px or size[1] % align_px:
        raise RequestError(
            f"groups of {align_px} px do not tile a view of {size[0]} x {size[1]} px at least twice; set align_px to a divisor"
        )
    return size[0] // align_px, size[1] // align_px


def _end(side: int, align_px: int, max_block: float) -> int:
    """One more than the longest side of a rectangle that is drawn, in pixels."""
    return max(int(max_block * side), align_px + 1)


def _rectangles(draws: Tensor, size: tuple[int, int], align_px: int, max_block: float) -> Tensor:
    """[B, V, K, 4] uniform numbers to (top, bottom, left, right) in cells."""
    edges = []
    for axis, side in enumerate(size):
        first = (draws[..., axis] * (side - align_px)).long() // align_px
        length = align_px + (draws[..., 2 + axis] * (_end(side, align_px, max_block) - align_px)).long()
        cut = torch.minimum(length, side - first * align_px)
        edges += [first, first + (cut / align_px).round().long()]
    return torch.stack(edges, dim=-1)


def _cover(mask: np.ndarray[Any, np.dtype[np.bool_]], boxes: list[list[int]], missing: float) -> int:
    """Add rectangles to a mask in order until `missing` cells more are covered; return how many are.

    One by one: most rectangles are a few cells, and their union before each one must be known.
    """
    added = 0
    for top, bottom, left, right in boxes:
        if added >= missing:
            break
        window = mask[top:bottom, left:right]
        added += window.size - int(np.count_nonzero(window))
        window[...] = True
    return added


def _enlarged(cells: Tensor, align_px: int) -> Tensor:
    """[..., gh, gw] -> [..., H, W]."""
    return cells.repeat_interleave(align_px, dim=-2).repeat_interleave(align_px, dim=-1)
