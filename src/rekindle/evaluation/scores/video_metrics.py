# SPDX-License-Identifier: Apache-2.0
"""Region overlap J and contour accuracy F of video object segmentation (Perazzi et al., 2016; the DAVIS toolkit's rules)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
TOLERANCE = 0.008  # of the diagonal
FOUND = 0.5  # frames above it count for the recall


def region_overlap(predicted: Mask, truth: Mask) -> float:
    """Return J, the intersection over union; 1 where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def contour(mask: Mask) -> Mask:
    """Return the pixels whose right, lower or lower right neighbour differs."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1, :] |= mask[:-1, :] ^ mask[1:, :]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def contour_accuracy(predicted: Mask, truth: Mask) -> float:
    """Return F, the harmonic mean of the shares of each contour that lie within the tolerance of the other.

    The tolerance is ceil(0.008 * diagonal) pixels (8 at 480 x 854). Both contours empty: 1; one empty: 0.
    """
    found, wanted = contour(predicted), contour(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    radius = math.ceil(TOLERANCE * math.hypot(*predicted.shape))
    precision = float((found & _near(wanted, radius)).sum() / found.sum())
    recall = float((wanted & _near(found, radius)).sum() / wanted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def decay(values: Sequence[float]) -> float:
    """Mean of the first quarter of the frames minus that of the last one, quarters as the toolkit cuts them."""
    ends = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    quarters = [np.asarray(values[a : b + 1]) for a, b in pairwise(ends)]
    return float(quarters[0].mean() - quarters[-1].mean())


def recall(values: Sequence[float]) -> float:
    """Share of the frames above 0.5."""
    return float(np.mean(np.asarray(values) > FOUND))


def _near(edge: Mask, radius: int) -> Mask:
    """Dilate by a disk: everything within `radius` of the edge."""
    near: Mask = ndimage.distance_transform_edt(~edge) <= radius
    return near
