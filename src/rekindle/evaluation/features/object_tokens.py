# SPDX-License-Identifier: Apache-2.0
"""Masks on the grid of the patch tokens: how many pixels of a token an object covers, and which class a token shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError


def check_side(size_px: int, patch: int, option: str) -> None:
    """Raise RequestError if patches do not tile a square image of this side."""
    if size_px % patch:
        below, above = size_px // patch * patch, (size_px // patch + 1) * patch
        raise RequestError(
            f"{option} = {size_px} is not a multiple of the model's patch size {patch}; use "
            + (f"{below} or {above}" if below else str(above))
        )


def nearest(maps: Tensor, side: int) -> Tensor:
    """Resize masks or class ids [..., H, W] of any type, on the CPU, to squares by taking the nearest pixel."""
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(np.int64) for length in maps.shape[-2:])
    return torch.from_numpy(maps.numpy().take(rows, axis=-2).take(columns, axis=-1))  # 3 times as fast as torch's


def covered_pixels(masks: Tensor, patch: int) -> Tensor:
    """Count the pixels of each token that masks [..., S, S] cover: float32 [..., P], at most patch * patch."""
    side = masks.shape[-1] // patch
    cells = masks.reshape(*masks.shape[:-2], side, patch, side, patch)
    return cells.sum(dim=(-3, -1)).flatten(-2).float()


def class_pixels(ids: Tensor, num_classes: int, patch: int) -> Tensor:
    """Count the pixels of each class in each token of class ids [S, S]: float32 [P, C]; other ids count for nothing."""
    side = len(ids) // patch
    token = torch.arange(side).repeat_interleave(patch)
    token = token[:, None] * side + token
    known = torch.where((ids >= 0) & (ids < num_classes), ids, num_classes)
    counts = torch.bincount((token * (num_classes + 1) + known).flatten(), minlength=side * side * (num_classes + 1))
    return counts.reshape(side * side, num_classes + 1)[:, :num_classes].float()


def token_classes(pixels: Tensor, patch: int) -> Tensor:
    """Return the class that most pixels of a token show, int64 [P]; -1 where more than half of them show none.

    Args:
        pixels: counts [P, C]; of a tie the lowest id wins.
        patch: side of a token in pixels.

    """
    return torch.where(2 * pixels.sum(dim=1) >= patch * patch, pixels.argmax(dim=1), -1)


def unit_tokens(patches: Tensor) -> Tensor:
    """[gh, gw, D] of any precision to float32 [gh * gw, D] of unit length."""
    return functional.normalize(patches.flatten(0, 1).float(), dim=1)
