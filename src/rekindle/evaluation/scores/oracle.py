# SPDX-License-Identifier: Apache-2.0
"""Localisation without classification: predicted regions get the class of the true region that they overlap best.

LOCA, "disentangling" (specification 15.3): the mIoU of the relabelled map says how well regions are outlined, whatever
they are called.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def relabelled(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int, *, components: bool = False
) -> Tensor:
    """Return the prediction [H, W] with each region's class replaced by that of the best true region.

    Args:
        prediction: class ids in [0, C).
        label: class ids; pixels with `ignore_index` take no part in the IoUs.
        num_classes: C.
        ignore_index: outside [0, C).
        components: a region is one connected component (4 neighbours), not all pixels of a class.

    Returns: class ids; a region that meets no labelled pixel of any class keeps its own.
    """
    region = _components(prediction, num_classes) if components else prediction
    num_regions = int(region.max()) + 1
    own = torch.zeros(num_regions, dtype=torch.int64).scatter_(0, region.flatten(), prediction.flatten())
    counted = label != ignore_index
    pairs = region[counted] * num_classes + label[counted]
    overlap = torch.bincount(pairs, minlength=num_regions * num_classes).reshape(num_regions, num_classes).double()
    union = overlap.sum(dim=1, keepdim=True) + overlap.sum(dim=0, keepdim=True) - overlap
    best = (overlap / union.clamp(min=1.0)).max(dim=1)
    return torch.where(best.values > 0, best.indices, own)[region]


def _components(prediction: Tensor, num_classes: int) -> Tensor:
    """Number the connected components of each class, over all classes: [H, W]."""
    regions = np.zeros(tuple(prediction.shape), np.int64)
    first = 0
    for class_id in range(num_classes):
        numbered, count = ndimage.label(prediction.numpy() == class_id)
        regions = np.where(numbered > 0, numbered + first - 1, regions)
        first += count
    return torch.from_numpy(regions)
