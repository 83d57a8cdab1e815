# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from rekindle.evaluation.features.dense_features import extract_each, fitted_size, resize_labels
from rekindle.evaluation.features.extractors import FeatureExtractor
from tests.evaluation.toy import tiny_backbone


def images(count: int = 3, width: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, width), dtype=torch.uint8)


def test_tokens_equal_the_backbones_on_normalised_pixels() -> None:
    backbone = tiny_backbone().eval()
    extractor = FeatureExtractor(backbone)
    pixels = images()
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    expected = backbone((pixels / 255.0 - mean) / std)
    (found,) = extractor.extract(pixels)
    assert torch.allclose(found.patches, expected.patches, atol=1e-5)
    assert not found.patches.requires_grad
    assert (extractor.patch_size, extractor.dims, extractor.depth) == (8, (16, 16), 2)


def test_an_images_tokens_do_not_depend_on_its_batch() -> None:
    extractor = FeatureExtractor(tiny_backbone())
    mixed = [*images(2), *images(1, width=40), *images(10)]
    for image, tokens in zip(mixed, extract_each(extractor, mixed, (0, -1)), strict=True):
        alone = extractor.extract(image[None], (0, -1))
        for a, b in zip(tokens, alone, strict=True):
            assert torch.allclose(a.patches, b.patches, atol=1e-5)


def test_bf16_gives_close_float32_features() -> None:
    pixels = images()
    exact = FeatureExtractor(tiny_backbone()).extract(pixels)[0].patches
    rounded = FeatureExtractor(tiny_backbone(), bf16=True).extract(pixels)[0].patches
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).abs().max()) < 0.2


def test_trainable_copy_leaves_the_original_alone() -> None:
    backbone = tiny_backbone().requires_grad_(False)
    twin = FeatureExtractor(backbone).trainable_copy()
    assert twin.training
    assert all(p.requires_grad for p in twin.parameters())
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_sizes_are_multiples_of_the_patch() -> None:
    assert fitted_size(360, 480, 224, 16) == (224, 304)
    assert fitted_size(480, 360, 224, 14) == (294, 224)
    assert fitted_size(10, 1008, 5, 8) == (8, 504)


def test_labels_are_resized_without_new_ids() -> None:
    labels = torch.tensor([[0, 7], [255, 65_535]])
    assert resize_labels(labels, (4, 4))[::2, ::2].tolist() == labels.tolist()
