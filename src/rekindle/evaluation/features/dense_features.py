# SPDX-License-Identifier: Apache-2.0
"""Patch features of images of any size: resized to multiples of the patch, batched where sizes agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops
from torchvision.transforms.v2.functional import InterpolationMode

from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.networks.tokens import Tokens

BATCH = 8  # images per forward pass
CROP_MARGIN = 256 / 224  # short side to centre crop, as in the classification protocols of DINO and MAE


def fitted_size(height: int, width: int, short_px: int, patch: int) -> tuple[int, int]:
    """Return the size with this short side and the same shape, both sides rounded to multiples of the patch.

    Example:
        >>> fitted_size(360, 480, 224, 16)
        (224, 304)
    """
    scale = short_px / min(height, width)
    return max(1, round(height * scale / patch)) * patch, max(1, round(width * scale / patch)) * patch


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bytes [3, H, W] bilinearly, with antialiasing."""
    resized: Tensor = image_ops.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return resized


def centre_crop(image: Tensor, size_px: int) -> Tensor:
    """Resize bytes [3, H, W] bicubically to a short side of 256 / 224 of `size_px`, and cut that square from the middle."""
    scale = round(size_px * CROP_MARGIN) / min(image.shape[1:])
    size = [max(size_px, round(side * scale)) for side in image.shape[1:]]
    resized = image_ops.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = image_ops.center_crop(resized, [size_px, size_px])
    return cropped


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize class ids [H, W] by taking the nearest."""
    resized = torch.nn.functional.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")
    return resized[0, 0].to(labels.dtype)  # ids below 2^24 are exact in float32


def extract_each(
    extractor: FeatureExtractor, images: Iterable[Tensor], blocks: Sequence[int] = (-1,)
) -> Iterator[list[Tokens]]:
    """Yield each image's tokens (one image, per block), in order; neighbours of one size share a pass."""
    waiting: list[Tensor] = []
    for image in images:
        if waiting and (len(waiting) == BATCH or image.shape != waiting[0].shape):
            yield from _one_by_one(extractor.extract(torch.stack(waiting), blocks))
            waiting = []
        waiting.append(image)
    if waiting:
        yield from _one_by_one(extractor.extract(torch.stack(waiting), blocks))


def _one_by_one(per_block: list[Tokens]) -> Iterator[list[Tokens]]:
    split = [tokens.chunk(len(tokens.patches)) for tokens in per_block]
    yield from map(list, zip(*split, strict=True))
