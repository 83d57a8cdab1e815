# SPDX-License-Identifier: Apache-2.0
"""Position tables at another grid than the one they were learned at.

The three modes are three different functions, not three qualities of one. Between a native side n and a new
side G:

| mode | bicubic sampling position of new cell `dst` | low-pass |
|---|---|---|
| `dino` | (dst + 0.5) * n / (G + 0.1) - 0.5 | no |
| `size` | (dst + 0.5) * n / G - 0.5 | no |
| `antialias` | as `size` | yes, when shrinking |

The 0.1 once guarded DINO's code against a rounding error; checkpoints were trained through it, so it is part
of them: DINO's, and DINOv2's without registers. DINOv2 with registers (Darcet et al., arXiv:2309.16588) is `antialias`, and
so is timm for all models; transformers' Dinov2 and ViT are `size`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision

PositionMode = Literal["dino", "size", "antialias"]
DINO_OFFSET = 0.1


def interpolate_positions(
    table: Float[Tensor, "1 rows D"],
    grid: tuple[int, int],
    native: tuple[int, int],
    *,
    num_prefix: int,
    mode: PositionMode,
) -> Float[Tensor, "1 new_rows D"]:
    """Return the table for `grid`: untouched at the native grid, prefix rows untouched at every other.

    Args:
        table: prefix rows, then the native grid row by row.
        grid: (gh, gw) wanted.
        native: (gh, gw) of the table.
        num_prefix: rows in front that belong to class and register tokens.
        mode: see the module's table.

    Raises:
        ValueError: if the table does not hold num_prefix + native rows.

    """
    if table.shape[1] != num_prefix + native[0] * native[1]:
        raise ValueError(
            f"the position table has {table.shape[1]} rows; expected {num_prefix} prefix rows + "
            f"{native[0]} x {native[1]} patches = {num_prefix + native[0] * native[1]}"
        )
    if tuple(grid) == tuple(native):
        return table
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    image = patches.reshape(1, *native, -1).permute(0, 3, 1, 2)
    resized = _resample(image, grid, mode).to(table.dtype)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@full_precision
def _resample(image: Tensor, grid: tuple[int, int], mode: PositionMode) -> Tensor:
    if mode == "dino":
        scale = [(g + DINO_OFFSET) / n for g, n in zip(grid, image.shape[-2:], strict=True)]
        return F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    return F.interpolate(image, size=grid, mode="bicubic", align_corners=False, antialias=mode == "antialias")


def rope_rows(rope: Tensor, keep: Tensor) -> Tensor:
    """Rows of a rotary table [P, d] (or one per head, [heads, P, d]) for the kept patches [N, L]: [N, 1 or heads, L, d]."""
    return rope[keep][:, None] if rope.ndim == 2 else rope[:, keep].transpose(0, 1)
