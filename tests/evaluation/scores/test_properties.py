# SPDX-License-Identifier: Apache-2.0
"""Properties of protocols that no test of a single protocol states, by their numbers in the specifications."""

from __future__ import annotations

import torch

from rekindle.evaluation.description.similarity import count_pairs
from rekindle.evaluation.segmentation.prompted_seg import threshold_iou


def test_mmc_12_predictions_are_nested_in_the_threshold() -> None:
    """With the whole image as the target, IoU is the predicted share: it can only fall as the threshold rises."""
    source = torch.Generator().manual_seed(0)
    cosines, pixels = torch.rand(5, 40, generator=source) * 2 - 1, torch.full((40,), 64.0)
    thresholds = torch.linspace(-1.0, 1.0, 21)
    shares = threshold_iou(cosines, pixels, pixels, thresholds)
    assert bool((shares.diff(dim=1) <= 0).all())
    each = torch.stack([(cosines > t).double().mean(dim=1) for t in thresholds], dim=1)
    torch.testing.assert_close(shares.double(), each, atol=1e-6, rtol=0)


def test_mmc_13_the_order_of_the_patches_changes_no_pair() -> None:
    source = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(50, 4, generator=source), dim=1)
    classes = torch.randint(0, 4, (50,), generator=source)
    order = torch.randperm(50, generator=source)
    for one, other in zip(
        count_pairs(tokens, classes, 20, 1), count_pairs(tokens[order], classes[order], 20, 1), strict=True
    ):
        assert one.histogram.tolist() == other.histogram.tolist()
        assert one.count == other.count
