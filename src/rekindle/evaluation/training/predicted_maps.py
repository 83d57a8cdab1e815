# SPDX-License-Identifier: Apache-2.0
"""Predicted class maps: what is kept while they are counted, a confusion matrix, and the worst and best images.

An image is ranked by its own mean IoU over the classes that its label or its prediction holds, of equals by its pixel accuracy,
then by its place. That ranks images and is no metric: metrics are of the pixels of all images together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.dense_features import resize_image, resize_labels
from rekindle.evaluation.scores.pixel_counts import confusion_matrix, statistics_of
from rekindle.evaluation.scores.segmentation_metrics import mean_iou, pixel_accuracy

KEPT_PX = 320
"""Long side of the pictures, at most."""


@dataclass(frozen=True)
class KeptMap:
    """A predicted map that is kept.

    Attributes:
        index: of the image in its split.
        item: its name.
        iou: its own mean IoU.
        accuracy: share of its labelled pixels that are right.
        prediction: class ids [h, w], made small (nearest), in two bytes.

    """

    index: int
    item: str
    iou: float
    accuracy: float
    prediction: Tensor

    @property
    def _rank(self) -> tuple[float, float, int]:
        return self.iou, self.accuracy, self.index


@dataclass(frozen=True)
class MapPicture:
    """One image to draw, in its own shape: image uint8 [3, h, w], label and prediction, ids [h, w]."""

    kept: KeptMap
    image: Tensor
    label: Tensor
    prediction: Tensor


@dataclass
class PredictedMaps:
    """Takes the maps of one measurement one by one.

    Attributes:
        data: the split that they are of.
        keep: how many of the worst and of the best images are kept.
        confusion: [C, C] pixels by true class (rows) and predicted class.
        worst: the worst images, the worst first.
        best: the best images, the best first; none that is among the worst.

    """

    data: SegmentationFolder
    keep: int
    confusion: NDArray[np.int64] = field(init=False)
    worst: list[KeptMap] = field(init=False, default_factory=list)
    _best: list[KeptMap] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.data.num_classes, self.data.num_classes), np.int64)

    def count(self, index: int, prediction: Tensor, label: Tensor) -> NDArray[np.int64]:
        """Take the map of one image, ids [H, W] on the CPU, and return its pixel counts [3, C]."""
        matrix = confusion_matrix(prediction, label, self.data.num_classes, self.data.ignore_index)
        self.confusion += matrix
        counts = statistics_of(matrix)
        if self.keep and counts[1].any():
            iou, accuracy = float(mean_iou(counts)), float(pixel_accuracy(counts))
            is_bad = len(self.worst) < self.keep or (iou, accuracy) < self.worst[-1]._rank[:2]
            is_good = len(self._best) < self.keep or (iou, accuracy) > self._best[-1]._rank[:2]
            if is_bad or is_good:
                kept = KeptMap(
                    index,
                    self.data.items[index],
                    iou,
                    accuracy,
                    resize_labels(prediction, _fitting(prediction)).to(torch.int16),
                )
                self.worst = sorted([*self.worst, kept], key=lambda k: k._rank)[: self.keep]
                self._best = sorted([*self._best, kept], key=lambda k: (-k.iou, -k.accuracy, k.index))[: self.keep]
        return counts

    @property
    def best(self) -> list[KeptMap]:
        """The best images, the best first; none that is among the worst."""
        among_worst = {kept.index for kept in self.worst}
        return [kept for kept in self._best if kept.index not in among_worst]

    def picture(self, kept: KeptMap) -> MapPicture:
        """Read image and label of a kept map, and bring all three to one size."""
        image, label = self.data.read(kept.index)
        size = _fitting(label)
        prediction = resize_labels(kept.prediction.long(), size)
        return MapPicture(kept, resize_image(image, size), resize_labels(label, size), prediction)


def _fitting(labels: Tensor) -> tuple[int, int]:
    """Return the size of a picture of labels [H, W]: as it is, or with a long side of `KEPT_PX`."""
    height, width = labels.shape
    scale = min(1.0, KEPT_PX / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
