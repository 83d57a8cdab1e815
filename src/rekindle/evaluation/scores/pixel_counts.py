# SPDX-License-Identifier: Apache-2.0
"""Pixel counts of class maps; the metrics of the counts are in `segmentation_metrics`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> NDArray[np.int64]:
    """Count the pixels of each true class (rows) and predicted class of one image (or several): [C, C].

    Args:
        prediction: class ids in [0, C).
        label: class ids of the same shape; `ignore_index` where the pixel does not count.
        num_classes: C.
        ignore_index: outside [0, C).

    """
    # here, because it imports matplotlib, scipy.signal and transformers: 0.1 GiB in every training, which counts no pixels
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix = multiclass_confusion_matrix(
        prediction, label, num_classes=num_classes, ignore_index=ignore_index, validate_args=False
    )
    return matrix.cpu().numpy().astype(np.int64)


def statistics_of(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return intersection, label and predicted area of each class, [3, C], of a matrix [true C, predicted C]."""
    return np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)])


def image_statistics(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> NDArray[np.int64]:
    """Count the pixels of one image (or several): [3, C] of intersection, label and predicted area; see `confusion_matrix`."""
    return statistics_of(confusion_matrix(prediction, label, num_classes, ignore_index))
