# SPDX-License-Identifier: Apache-2.0
"""Features are computed once for all protocols of a model, and never more is kept than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures, Sizing
from rekindle.networks.tokens import Tokens
from tests.evaluation.toy import tiny_backbone, write_data


class Counting(FeatureExtractor):
    """Counts the images that pass through it."""

    passed = 0

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        self.passed += len(images)
        return super().extract(images, blocks)


def test_a_second_reader_costs_no_pass(tmp_path: Path) -> None:
    data = SegmentationFolder(write_data(tmp_path), "val")
    extractor = Counting(tiny_backbone())
    shared = SharedFeatures(extractor)
    first = list(shared.of(data, Sizing("short", 16)))
    again = list(shared.of(data, Sizing("short", 16)))
    assert extractor.passed == 3
    assert all(torch.equal(a[0].patches, b[0].patches) for a, b in zip(first, again, strict=True))
    direct = FeatureExtractor(tiny_backbone()).extract(data.image(0)[None])[0]
    torch.testing.assert_close(first[0][0].patches.float(), direct.patches, atol=2e-3, rtol=2e-3)
    list(shared.of(data, Sizing("square", 16)))
    list(shared.of(data, Sizing("short", 16), blocks=(0, 1)))
    assert extractor.passed == 9
    shared.forget()
    list(shared.of(data, Sizing("short", 16)))
    assert extractor.passed == 12


@pytest.mark.parametrize(("limit", "passes"), [(10.0, 2), (3 * 2 * 6 * 16 * 2 + 3 * 16 * 4, 1)])
def test_what_does_not_fit_is_computed_again(tmp_path: Path, limit: float, passes: int) -> None:
    """Three images of 2 x 6 patches, 16 wide, as float16, and their class tokens."""
    data = SegmentationFolder(write_data(tmp_path), "val")
    extractor = Counting(tiny_backbone())
    shared = SharedFeatures(extractor, float(limit))
    found = [list(shared.of(data, Sizing("short", 16))) for _ in range(2)]
    assert extractor.passed == 3 * passes
    assert all(torch.equal(a[0].patches, b[0].patches) for a, b in zip(*found, strict=True))
