# SPDX-License-Identifier: Apache-2.0
"""Names for clusters: which class each cluster is taken for, and the pixel counts of the classes that follow. Torch-free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Counts = NDArray[np.int64]


def one_to_one(confusion: Counts) -> Counts:
    """Return the class of each cluster so that the sum of the IoUs of the pairs is greatest; -1 for a cluster without one.

    Args:
        confusion: [K, C], pixels of each class in each cluster.

    """
    counts = confusion.astype(np.float64)
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    clusters, classes = linear_sum_assignment(counts / np.maximum(union, 1.0), maximize=True)
    named = np.full(len(counts), -1, np.int64)
    named[clusters] = classes
    return named


def majority(confusion: Counts) -> Counts:
    """Return the most frequent class of each cluster; -1 for a cluster without pixels. Several may share a class."""
    return np.where(confusion.sum(axis=1) > 0, confusion.argmax(axis=1), -1).astype(np.int64)


def named_statistics(confusions: Counts, named: Counts) -> Counts:
    """Return the pixel counts [n, 3, C] (intersection, label area, predicted area) of images after naming.

    Args:
        confusions: [n, K, C], pixels of each class in each cluster.
        named: [K]; the pixels of a cluster without a class are predicted to be nothing.

    """
    taken = (named[:, None] == np.arange(confusions.shape[2])).astype(np.int64)  # [K, C]
    intersection = (confusions * taken).sum(axis=1)
    predicted = confusions.sum(axis=2) @ taken
    return np.stack([intersection, confusions.sum(axis=1), predicted], axis=1)
