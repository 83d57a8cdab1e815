# SPDX-License-Identifier: Apache-2.0
"""Model, image and point in; map and mask out. And the point that a report asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.measuring.looking import (
    attention_pictures,
    class_picture,
    look,
    marked,
    place_of_interest,
    similar_to,
    similarity,
)
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    backbone, _ = create_backbone(
        "vit:width=32,depth=2,heads=2,patch=8,img=32", NetworkOptions(), init="random", seed=0
    )
    return FeatureExtractor(backbone)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_similarity_is_one_at_its_own_place_and_the_mask_is_what_exceeds_the_threshold(
    extractor: FeatureExtractor, image: torch.Tensor
) -> None:
    found = similarity(extractor, image, (0.9, 0.1), size_px=32, threshold=0.7)
    assert found.cosines.shape == (4, 6) and found.picture.shape == (32, 48, 3)
    assert found.cosines[3, 0] == pytest.approx(1.0) and found.cosines.max() == pytest.approx(1.0)
    assert np.array_equal(found.mask, found.cosines > 0.7) and found.mask[3, 0]


def test_similarity_is_the_cosine_of_the_tokens(extractor: FeatureExtractor, image: torch.Tensor) -> None:
    seen = look(extractor, image, size_px=32)
    chosen, other = seen.patches[1, 2].astype(np.float64), seen.patches[3, 5].astype(np.float64)
    expected = chosen @ other / np.linalg.norm(chosen) / np.linalg.norm(other)
    assert similar_to(seen, (0.3, 0.4)).cosines[3, 5] == pytest.approx(expected, abs=1e-6)


def test_a_place_outside_the_image_is_refused(extractor: FeatureExtractor, image: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="outside the image"):
        similarity(extractor, image, (1.0, 0.2), size_px=32)


def test_attention_of_both_models_has_one_scale(extractor: FeatureExtractor, image: torch.Tensor) -> None:
    seen = look(extractor, image, size_px=32)
    assert seen.attention is not None and seen.attention.shape == (4, 6)
    (pictures,), high = attention_pictures([(seen, seen)])
    assert np.array_equal(pictures[0], pictures[1])
    assert high == pytest.approx(np.percentile(seen.attention, 99.5), rel=1e-3)  # of the same map twice


def test_the_place_is_deepest_in_the_smallest_class_that_counts() -> None:
    """A 5 x 5 square of class 2 around (12, 22); class 3 is one pixel in 800; 255 does not count."""
    labels = np.zeros((20, 40), np.int64)
    labels[:, :8] = 1
    labels[10:15, 20:25] = 2
    labels[0, 39] = 3
    labels[16:, 30:] = 255
    assert place_of_interest(labels, 255) == (12.5 / 20, 22.5 / 40)
    assert place_of_interest(None, 255) == place_of_interest(np.full((4, 4), 255), 255) == (0.5, 0.5)


def test_ignored_pixels_are_grey_and_a_mark_leaves_the_rest() -> None:
    labels = np.array([[0, 1], [255, 1]])
    colours = np.array([[10, 20, 30], [1, 2, 3]], np.uint8)
    assert class_picture(labels, colours, 255)[1, 0].tolist() == [128, 128, 128]
    picture = np.full((100, 100, 3), 7, np.uint8)
    ringed = marked(picture, (0.5, 0.5))
    assert (ringed != 7).any() and (ringed[:40] == 7).all() and (ringed[50, 50] == 7).all() and (picture == 7).all()
