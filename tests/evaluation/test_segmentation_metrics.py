# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from rekindle.evaluation.pixel_counts import image_statistics, reduce_zero_label
from rekindle.evaluation.segmentation_metrics import (
    class_iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    segmentation_metrics,
)


def stats(prediction: list[int], label: list[int], num_classes: int = 2) -> np.ndarray:
    return image_statistics(torch.tensor(prediction), torch.tensor(label), num_classes, 255)


def test_two_by_two_confusion_gives_the_closed_form() -> None:
    # truth 0: three right, one wrong; truth 1: two wrong, four right
    found = stats([0, 0, 0, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    assert found.tolist() == [[3, 4], [4, 6], [5, 5]]
    assert mean_iou(found) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert mean_accuracy(found) == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert pixel_accuracy(found) == pytest.approx(7 / 10)


def test_hand_cases() -> None:
    assert mean_iou(stats([0, 0, 1, 1], [0, 0, 1, 1])) == 1.0
    assert mean_iou(stats([1, 1, 0, 0], [0, 0, 1, 1])) == 0.0
    assert class_iou(stats([0, 1, 1, 0], [0, 0, 1, 1])).tolist() == pytest.approx([1 / 3, 1 / 3])


def test_ignored_pixels_change_nothing() -> None:
    assert np.array_equal(stats([0, 1, 1, 0, 1], [0, 1, 0, 255, 255]), stats([0, 1, 1], [0, 1, 0]))


def test_absent_class_is_skipped_and_one_only_predicted_counts_as_zero() -> None:
    assert mean_iou(stats([0, 0, 1], [0, 0, 1], num_classes=3)) == 1.0
    only_predicted = segmentation_metrics(stats([0, 0, 2], [0, 0, 0], num_classes=3)[None], ["a", "b", "c"])
    assert only_predicted["mIoU"] == pytest.approx((2 / 3 + 0) / 2)
    assert only_predicted["mAcc"] == pytest.approx(2 / 3)
    assert "IoU/b" not in only_predicted
    assert only_predicted["IoU/c"] == 0.0


def test_summed_statistics_equal_torchmetrics_over_all_pixels() -> None:
    source = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 5, (6, 9, 7), generator=source)
    labels = torch.randint(0, 5, (6, 9, 7), generator=source)
    labels[torch.rand(labels.shape, generator=source) < 0.2] = 255
    each = np.stack([image_statistics(p, t, 5, 255) for p, t in zip(predictions, labels, strict=True)])
    expected = MulticlassJaccardIndex(5, average="none", ignore_index=255)(predictions, labels)
    assert class_iou(each.sum(axis=0)) == pytest.approx(expected.numpy(), abs=1e-6)


def test_reduce_zero_label() -> None:
    assert reduce_zero_label(torch.tensor([0, 1, 7, 255], dtype=torch.uint8)).tolist() == [255, 0, 6, 255]
