# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.pixel_counts import image_statistics
from rekindle.evaluation.scores.segmentation_metrics import class_iou, mean_accuracy, mean_iou, pixel_accuracy


def stats(prediction: list[int], label: list[int], num_classes: int = 2) -> np.ndarray:
    return image_statistics(torch.tensor(prediction), torch.tensor(label), num_classes, 255)


def test_s33_two_by_two_confusion_gives_the_closed_form() -> None:
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


def test_s33_ignored_pixels_change_nothing() -> None:
    assert np.array_equal(stats([0, 1, 1, 0, 1], [0, 1, 0, 255, 255]), stats([0, 1, 1], [0, 1, 0]))


def test_s33_absent_class_is_skipped_and_one_only_predicted_counts_as_zero() -> None:
    assert mean_iou(stats([0, 0, 1], [0, 0, 1], num_classes=3)) == 1.0
    counts = stats([0, 0, 2], [0, 0, 0], num_classes=3).reshape(1, -1)
    only_predicted = MeanIou(class_names=["a", "b", "c"], absent="skip").metrics(counts)
    assert only_predicted["mIoU"] == pytest.approx((2 / 3 + 0) / 2)
    assert only_predicted["mAcc"] == pytest.approx(2 / 3)
    assert "IoU/b" not in only_predicted
    assert only_predicted["IoU/c"] == 0.0


def test_of_a_verdict_a_class_that_only_predictions_hold_is_left_out() -> None:
    """The default: both sides average over the classes that the labels hold."""
    counts = stats([0, 0, 2], [0, 0, 0], num_classes=3).reshape(1, -1)
    found = MeanIou(class_names=["a", "b", "c"]).metrics(counts)
    assert found == pytest.approx({"mIoU": 2 / 3, "mAcc": 2 / 3, "aAcc": 2 / 3, "IoU/a": 2 / 3})


def test_summed_statistics_equal_torchmetrics_over_all_pixels() -> None:
    source = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 5, (6, 9, 7), generator=source)
    labels = torch.randint(0, 5, (6, 9, 7), generator=source)
    labels[torch.rand(labels.shape, generator=source) < 0.2] = 255
    each = np.stack([image_statistics(p, t, 5, 255) for p, t in zip(predictions, labels, strict=True)])
    expected = MulticlassJaccardIndex(5, average="none", ignore_index=255)(predictions, labels)
    assert class_iou(each.sum(axis=0)) == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_all_three_metrics_equal_torchmetrics_on_random_maps(seed: int) -> None:
    """With ignored pixels; every class is labelled somewhere, for torchmetrics counts an absent one as 0."""
    source = torch.Generator().manual_seed(seed)
    predictions = torch.randint(0, 7, (4, 16, 12), generator=source)
    labels = torch.randint(0, 7, (4, 16, 12), generator=source)
    agree = torch.rand(labels.shape, generator=source) < 0.6
    predictions = torch.where(agree, labels, predictions)
    labels[torch.rand(labels.shape, generator=source) < 0.3] = 255
    each = np.stack([image_statistics(p, t, 7, 255) for p, t in zip(predictions, labels, strict=True)])
    found = MeanIou(class_names=[f"c{i}" for i in range(7)]).metrics(each.reshape(4, -1))
    expected = {
        "mIoU": MulticlassJaccardIndex(7, average="macro", ignore_index=255),
        "mAcc": MulticlassAccuracy(7, average="macro", ignore_index=255),
        "aAcc": MulticlassAccuracy(7, average="micro", ignore_index=255),
    }
    for name, metric in expected.items():
        assert found[name] == pytest.approx(float(metric(predictions, labels)), abs=1e-6), name


def test_s33_pixels_that_do_not_count_are_scored_as_if_they_had_never_been_there() -> None:
    """A worked case."""
    label = torch.tensor([255, 255, 0, 0, 1, 1, 255])
    prediction = torch.tensor([0, 1, 0, 0, 1, 0, 1])
    found = image_statistics(prediction, label, 2, 255)
    assert found.tolist() == [[2, 1], [2, 2], [3, 1]]
    assert mean_iou(found) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert pixel_accuracy(found) == pytest.approx(3 / 4)
