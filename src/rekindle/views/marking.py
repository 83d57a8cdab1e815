# SPDX-License-Identifier: Apache-2.0
"""Drawing on views: boxes, patches, and what is hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

BLUE, RED = (0, 114, 178), (213, 94, 0)  # told apart by colour-blind readers
HIDDEN_LEVEL = 0.75  # how far hidden patches fade to white


def as_bytes(
    pixels: Float[Tensor, "... 3 H W"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[Tensor, "... 3 H W"]:
    """Undo the normalisation."""
    gain = torch.tensor(std, device=pixels.device)[:, None, None]
    levels = pixels.float() * gain + torch.tensor(mean, device=pixels.device)[:, None, None]
    return (levels * 255).round().clamp(0, 255).to("cpu", torch.uint8)


def faded(view: UInt8[Tensor, "3 H W"], visible: Bool[Tensor, "gh gw"]) -> UInt8[Tensor, "3 H W"]:
    """Fade patches that are not visible to white."""
    scale = view.shape[-2] // visible.shape[0], view.shape[-1] // visible.shape[1]
    shown = visible.repeat_interleave(scale[0], 0).repeat_interleave(scale[1], 1)
    pale = view.float() + HIDDEN_LEVEL * (255 - view.float())
    return torch.where(shown, view.float(), pale).round().to(torch.uint8)


def boxed(
    view: UInt8[Tensor, "3 H W"], boxes: Float[Tensor, "n 4"], colour: tuple[int, int, int], *, width_px: int = 1
) -> UInt8[Tensor, "3 H W"]:
    """Draw boxes (top, left, height, width) in fractions of the view; what lies outside is cut off."""
    height, width = view.shape[-2:]
    top, left, tall, wide = boxes.unbind(dim=1)
    corners = torch.stack([left * width, top * height, (left + wide) * width - 1, (top + tall) * height - 1], dim=1)
    limit = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    meets = (corners[:, 2:] >= 0).all(dim=1) & (corners[:, :2] <= limit[:2]).all(dim=1)
    kept = torch.minimum(corners[meets].clamp(min=0).round(), limit).long()
    return draw_bounding_boxes(view, kept, colors=colour, width=width_px) if len(kept) else view


def patch_boxes(index: Tensor, grid: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Boxes of patches by their number in reading order, in fractions of the view."""
    row, column = index // grid[1], index % grid[1]
    tall, wide = torch.full(index.shape, 1 / grid[0]), torch.full(index.shape, 1 / grid[1])
    return torch.stack([row / grid[0], column / grid[1], tall, wide], dim=1)


def located(
    views: UInt8[Tensor, "n 3 H W"], visible: Bool[Tensor, "n gh gw"], places: Tensor, boxes: Float[Tensor, "n 4"]
) -> UInt8[Tensor, "n 3 H W"]:
    """Draw where patches of a query were placed in its reference (red), and its true box (blue); fade what it could not see.

    Args:
        views: the references.
        visible: patches that the query could read.
        places: [n, Q] numbers of patches of the grid, in reading order.
        boxes: (top, left, height, width) of the queries in fractions of the reference.
    """
    grid = visible.shape[1], visible.shape[2]
    drawn = []
    for view, seen, place, box in zip(views, visible, places, boxes, strict=True):
        found = boxed(faded(view, seen), patch_boxes(place, grid), RED)
        drawn.append(boxed(found, box[None], BLUE, width_px=2))
    return torch.stack(drawn)
