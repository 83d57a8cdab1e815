# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics from pixel counts of each class; per-image IoUs are never averaged.

Statistics are [..., 3, C] pixel counts: intersection I, label area G, predicted area P; ignored pixels are
in none of them. Torch-free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def class_iou(totals: NDArray[np.number]) -> Values:
    """Return I / (G + P - I) of each class; NaN for a class that neither labels nor predictions hold."""
    intersection, label, predicted = np.moveaxis(totals.astype(np.float64), -2, 0)
    return _ratio(intersection, label + predicted - intersection)


def mean_iou(totals: NDArray[np.number]) -> Values:
    """Return the mean IoU [...] over the classes that are defined; NaN where none is."""
    return _defined_mean(class_iou(totals))


def mean_accuracy(totals: NDArray[np.number]) -> Values:
    """Return the mean of I / G [...] over the classes that the labels hold."""
    return _defined_mean(_ratio(totals[..., 0, :].astype(np.float64), totals[..., 1, :].astype(np.float64)))


def pixel_accuracy(totals: NDArray[np.number]) -> Values:
    """Return the share of right pixels [...]: sum I / sum G."""
    sums = totals.astype(np.float64).sum(axis=-1)
    return _ratio(sums[..., 0], sums[..., 1])


def accuracy_metrics(statistics: NDArray[np.number]) -> dict[str, float]:
    """Return mAcc and aAcc, where defined, of the images [n, 3, C] together."""
    totals = statistics.sum(axis=0)
    values = {"mAcc": float(mean_accuracy(totals)), "aAcc": float(pixel_accuracy(totals))}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def _ratio(above: Values, below: Values) -> Values:
    is_defined = below > 0
    return np.where(is_defined, above / np.where(is_defined, below, 1.0), np.nan)


def _defined_mean(values: Values) -> Values:
    is_defined = ~np.isnan(values)
    total = np.where(is_defined, values, 0.0).sum(axis=-1)
    return _ratio(np.asarray(total), np.asarray(is_defined.sum(axis=-1), dtype=np.float64))
