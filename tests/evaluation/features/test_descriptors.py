# SPDX-License-Identifier: Apache-2.0
"""Descriptors of whole images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import functional as image_ops
from torchvision.transforms.v2.functional import InterpolationMode

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.features.dense_features import centre_crop
from rekindle.evaluation.features.descriptors import (
    Descriptors,
    check_descriptor,
    check_image_side,
    describe,
    image_descriptors,
)
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures, Sizing
from rekindle.networks.tokens import Tokens
from tests.evaluation.pictures import PatchOnlyExtractor, write_classes
from tests.evaluation.toy import tiny_backbone


def test_hyb_has_twice_the_width_and_unit_length() -> None:
    """MMC, property 22; the halves are joined as they are and normalised together (M29)."""
    found = Descriptors(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    assert found.unit("hyb").tolist() == [pytest.approx([0.6, 0.0, 0.0, 0.8])]
    assert found.unit("cls").tolist() == [[1.0, 0.0]]
    assert found.names == ["cls", "pat", "hyb"]


def test_pat_ignores_the_class_token_and_cls_the_patches() -> None:
    """MMC, property 22."""
    source = torch.Generator().manual_seed(0)
    cls, patches = torch.randn(2, 4, generator=source), torch.randn(2, 3, 5, 4, generator=source)
    registers = torch.zeros(2, 0, 4)
    plain = describe(Tokens(cls, registers, patches))
    moved = describe(Tokens(cls + 1, registers, patches))
    assert torch.equal(plain.pat, moved.pat)
    assert torch.allclose(plain.pat, patches.flatten(1, 2).mean(dim=1))
    assert torch.equal(describe(Tokens(cls, registers, patches + 1)).plain("cls"), cls)


def test_a_network_without_class_token_has_the_mean_alone() -> None:
    found = Descriptors(None, torch.ones(1, 2))
    assert found.names == ["pat"]
    with pytest.raises(RequestError, match="needs a class token, and this model has none; use pat"):
        found.plain("hyb")
    with pytest.raises(RequestError, match=r"knn\.descriptor = cls needs a class token"):
        check_descriptor("knn.descriptor", "cls", PatchOnlyExtractor())
    check_descriptor("knn.descriptor", "pat", PatchOnlyExtractor())


def test_a_side_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"knn\.size_px = 20 is not a multiple of the model's patch size 8; use 16 or 24"
    ):
        check_image_side("knn.size_px", 20, PatchOnlyExtractor())


def test_the_centre_crop_is_that_of_the_papers() -> None:
    """Short side 256, bicubic, centre crop 224, as torchvision does it."""
    image = torch.randint(0, 256, (3, 300, 401), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = image_ops.resize(image, [256], InterpolationMode.BICUBIC, antialias=True)
    expected = image_ops.center_crop(resized, [224, 224])
    found = centre_crop(image, 224)
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().mean() < 0.5
    assert Sizing("centre", 224).of(300, 401, 16) == (224, 224)


def test_descriptors_are_those_of_the_cropped_images_in_their_order(tmp_path: Path) -> None:
    data = ClassFolder(write_classes(tmp_path, num_train=1, size=20), "train")
    extractor = FeatureExtractor(tiny_backbone())
    found = image_descriptors(SharedFeatures(extractor), data, 16)
    for index in range(len(data)):
        tokens = extractor.extract(centre_crop(data.image(index), 16)[None])[0]
        assert torch.allclose(found.plain("cls")[index], tokens.class_token[0], atol=1e-5)
        assert torch.allclose(found.plain("pat")[index], tokens.patches[0].mean(dim=(0, 1)), atol=2e-3)
