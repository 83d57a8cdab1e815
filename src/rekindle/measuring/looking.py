# SPDX-License-Identifier: Apache-2.0
"""Similarity and attention in one image: its patch tokens, and what is like a chosen place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from rekindle.drawing.pictures import Bytes, overlay
from rekindle.drawing.token_pictures import cosines_to
from rekindle.evaluation.features.dense_features import fitted_size, resize_image
from rekindle.evaluation.features.extractors import FeatureExtractor

Place = tuple[float, float]
"""A place in an image, (y, x) as shares of its height and width, in [0, 1)."""
SMALLEST_SHARE = 0.01  # of the image, that a class must cover to be asked for


@dataclass(frozen=True)
class Look:
    """One image through one model.

    Attributes:
        image: bytes [H, W, 3] as the model got it.
        patches: [gh, gw, D].
        heads: [heads, gh, gw], attention of the class token in the last block; None without a class token.

    """

    image: Bytes
    patches: NDArray[np.float32]
    heads: NDArray[np.float32] | None

    @property
    def attention(self) -> NDArray[np.float32] | None:
        """Mean over the heads, [gh, gw]."""
        return None if self.heads is None else self.heads.mean(axis=0)


@dataclass(frozen=True)
class PlaceSimilarity:
    """What is like a chosen place.

    Attributes:
        cosines: [gh, gw], of every patch with that at the place.
        mask: [gh, gw], where the cosine exceeds the threshold.
        picture: bytes [H, W, 3], the cosines from 0 (dark) to 1 (pale) over the grey image.

    """

    cosines: NDArray[np.float64]
    mask: NDArray[np.bool_]
    picture: Bytes


def look(extractor: FeatureExtractor, image: Tensor, *, size_px: int) -> Look:
    """Look at one image, bytes [3, H, W] of any size; `size_px` is the short side that the model gets."""
    size = fitted_size(image.shape[1], image.shape[2], size_px, extractor.patch_size)
    resized = resize_image(image, size)
    tokens = extractor.attending(resized[None])
    heads = None if tokens.cls_attention is None else tokens.cls_attention[0].cpu().numpy()
    return Look(resized.permute(1, 2, 0).numpy(), tokens.patches[0].cpu().numpy(), heads)


def similar_to(seen: Look, place: Place, *, threshold: float = 0.5) -> PlaceSimilarity:
    """Say what in an image that was looked at is like one of its places. Raises RequestError for a place outside."""
    cosines = cosines_to(seen.patches, place)
    picture = overlay(seen.image[None], cosines[None], low=0.0, high=1.0)[0]
    return PlaceSimilarity(cosines, cosines > threshold, picture)


def similarity(
    extractor: FeatureExtractor, image: Tensor, place: Place, *, size_px: int, threshold: float = 0.5
) -> PlaceSimilarity:
    """Model, image and point in; map and mask out. `look` and `similar_to` in one, for a single question.

    Args:
        extractor: the model.
        image: bytes [3, H, W].
        place: the point.
        size_px: short side that the model gets.
        threshold: cosine above which a patch belongs to the mask.

    """
    return similar_to(look(extractor, image, size_px=size_px), place, threshold=threshold)


def marked(picture: Bytes, place: Place) -> Bytes:
    """Return a picture [H, W, 3] with a ring around a place, white within black, so that it shows on any ground."""
    height, width = picture.shape[:2]
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y - place[0] * height, x - place[1] * width)
    radius = max(3.0, 0.03 * min(height, width))
    found = picture.copy()
    found[np.abs(distance - radius) < radius / 2] = 0
    found[np.abs(distance - radius) < radius / 4] = 255
    return found


def place_of_interest(labels: NDArray[np.int64] | None, ignore_index: int) -> Place:
    """Return the place deepest inside the smallest class of an image that covers a hundredth of it; without labels the middle.

    Args: labels, [H, W] of class ids, or None.
    """
    if labels is None:
        return (0.5, 0.5)
    ids, areas = np.unique(labels[labels != ignore_index], return_counts=True)
    large = areas >= SMALLEST_SHARE * labels.size
    if not large.any():
        return (0.5, 0.5)
    chosen = ids[large][areas[large].argmin()]
    inside = np.pad(labels == chosen, 1)
    depth = distance_transform_edt(inside)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), labels.shape)
    return ((int(y) + 0.5) / labels.shape[0], (int(x) + 0.5) / labels.shape[1])


def class_picture(labels: NDArray[np.int64], colours: NDArray[np.uint8], ignore_index: int) -> Bytes:
    """Return class ids [H, W] as colours [H, W, 3]; what is ignored is grey."""
    known = np.where(labels == ignore_index, 0, labels)
    picture = np.asarray(colours[known], dtype=np.uint8)
    picture[labels == ignore_index] = 128
    return picture


def attention_pictures(looks: Sequence[tuple[Look, ...]]) -> tuple[list[tuple[Bytes, ...]], float]:
    """Return attention over the grey images, and what is shown brightest: one scale for all images and models.

    The 99.5th percentile, so that a single patch does not darken the rest. Every look must have attention.
    """
    maps = [seen.attention for side in looks for seen in side if seen.attention is not None]
    high = float(np.percentile(np.concatenate([m.ravel() for m in maps]), 99.5))
    return [tuple(_over(seen, high) for seen in side) for side in looks], high


def _over(seen: Look, high: float) -> Bytes:
    assert seen.attention is not None
    return np.asarray(overlay(seen.image[None], seen.attention[None], low=0.0, high=high)[0])


def on_best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
