# SPDX-License-Identifier: Apache-2.0
"""Oracle relabelling (LOCA, property 21 of the specification)."""

from __future__ import annotations

import torch
from torch import Tensor

from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.oracle import relabelled
from rekindle.evaluation.scores.pixel_counts import image_statistics

IOU = MeanIou(class_names=["a", "b", "c"])


def miou(prediction: Tensor, label: Tensor) -> float:
    return IOU.value(image_statistics(prediction, label, 3, 255).reshape(1, -1))


def test_classes_permuted_within_an_image_are_put_right() -> None:
    label = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 2]])
    permuted = torch.tensor([2, 0, 1])[label]
    assert miou(permuted, label) < 1
    assert miou(relabelled(permuted, label, 3, 255), label) == 1.0


def test_one_class_everywhere_becomes_the_largest_region() -> None:
    label = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 2]])
    assert bool((relabelled(torch.zeros_like(label), label, 3, 255) == 1).all())


def test_ignored_pixels_take_no_part() -> None:
    label = torch.tensor([[255, 255, 255, 1], [255, 255, 2, 1]])
    prediction = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 0]])
    found = relabelled(prediction, label, 3, 255)
    assert found.tolist() == [[1, 1, 1, 1], [1, 1, 2, 1]]
    nothing = torch.full_like(label, 255)
    assert torch.equal(relabelled(prediction, nothing, 3, 255), prediction)


def test_components_are_judged_one_by_one() -> None:
    label = torch.tensor([[0, 0, 2, 1, 1]])
    prediction = torch.tensor([[0, 0, 2, 0, 0]])
    assert relabelled(prediction, label, 3, 255).tolist() == [[0, 0, 2, 0, 0]]
    assert relabelled(prediction, label, 3, 255, components=True).tolist() == [[0, 0, 2, 1, 1]]


def test_equal_to_a_search_over_all_regions() -> None:
    source = torch.Generator().manual_seed(0)
    for _ in range(20):
        label, prediction = torch.randint(0, 3, (2, 6, 6), generator=source)
        label[torch.rand(6, 6, generator=source) < 0.2] = 255
        counted = label != 255
        slow = prediction.clone()
        for own in range(3):
            region = (prediction == own) & counted
            ious = [
                int((region & (label == c)).sum()) / max(1, int((region | (counted & (label == c))).sum()))
                for c in range(3)
            ]
            if max(ious) > 0:
                slow[prediction == own] = ious.index(max(ious))
        assert torch.equal(relabelled(prediction, label, 3, 255), slow)
