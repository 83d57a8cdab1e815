# SPDX-License-Identifier: Apache-2.0
"""Box error: l1 distance and generalised IoU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss


def box_error(predicted: Float[Tensor, "N 4"], wanted: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """Return 5 * l1 + 2 * (1 - GIoU) of each box: DETR's weights, as UP-DETR locates a query (arXiv:2011.09094).

    Args: predicted, (cx, cy, w, h); wanted, (y, x, h, w) with the upper left corner; both in fractions of the reference.
    """
    y, x, h, w = wanted.unbind(dim=1)
    centred = torch.stack([x + w / 2, y + h / 2, w, h], dim=1)
    corners = [torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], dim=1) for b in (predicted, centred)]
    overlap: Tensor = generalized_box_iou_loss(corners[0], corners[1], reduction="none")
    return 5 * (predicted - centred).abs().sum(dim=1) + 2 * overlap
