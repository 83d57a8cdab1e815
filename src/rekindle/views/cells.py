# SPDX-License-Identifier: Apache-2.0
"""Equal cells of a rectangle that two views share, read from the tokens of each: RoI alignment, mirrored views followed."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.views.batch import Crops

ROUNDING = 1e-4
"""Of a patch: by so much a rectangle may stick out without another sample."""


CellWeights: TypeAlias = tuple[Tensor, Tensor]
"""Weights of rows and of columns."""


def cell_weights(
    region: Float[Tensor, "N 4"], crops: Crops, grid: tuple[int, int], cells: int
) -> tuple[Float[Tensor, "N C gh"], Float[Tensor, "N C gw"]]:
    """Weights of rows and columns of patches that average the tokens of a view over cells * cells equal cells of a rectangle.

    RoI alignment (Mask R-CNN, arXiv:1703.06870, section 3) as torchvision has it: per axis as many samples in a cell as it is
    wide in patches, rounded up, each interpolated between the centres of two patches. Cells are counted in the image, so that
    those of two views show the same, whichever of them is mirrored.

    Args: region (top, left, height, width) in fractions of the image, inside the crops [N]; grid (gh, gw) of the view.
    Returns: weights whose rows sum to 1.
    """
    weights = []
    for axis, (start, extent, flipped) in enumerate(
        ((crops.top, crops.height, crops.flipped_vertically), (crops.left, crops.width, crops.flipped))
    ):
        count, begin, length = grid[axis], region[:, axis, None], region[:, axis + 2, None]
        patches = length / extent.float()[:, None] * count  # [N, 1], the rectangle's side
        samples = (patches / cells - ROUNDING).ceil().clamp_min(1)
        found = begin.new_zeros(len(region), cells, count)
        cell = torch.arange(cells, device=begin.device, dtype=begin.dtype)
        for sample in range(int(samples.amax())):
            place = begin + length * (cell + (sample + 0.5) / samples) / cells
            share = (place - start.float()[:, None]) / extent.float()[:, None]
            share = torch.where(flipped[:, None], 1 - share, share)
            between = (share * count - 0.5).clamp(0, count - 1)
            away = (between[..., None] - torch.arange(count, device=begin.device, dtype=begin.dtype)).abs()
            found += (1 - away).clamp_min(0) * ((sample < samples) / samples)[..., None]
        weights.append(found)
    return weights[0], weights[1]


def over_cells(
    values: Float[Tensor, "N gh gw K"], weights: tuple[Float[Tensor, "N C gh"], Float[Tensor, "N C gw"]]
) -> Float[Tensor, "N C C K"]:
    """Average the values of patches over the cells of `cell_weights`."""
    rows, columns = (w.to(values.dtype) for w in weights)
    return torch.einsum("nih,nhwk,njw->nijk", rows, values, columns)
