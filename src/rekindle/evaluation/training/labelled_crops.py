# SPDX-License-Identifier: Apache-2.0
"""Training crops of labelled images: random scale and place, mirror image, photometric distortion.

After Segmenter's recipe (LOCA, appendix), as the public segmentation toolkits do it. What lies outside the image has the
mean colour of the normalisation, so that it is zero for the network, and the label that is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rekindle.core.rng import generator
from rekindle.evaluation.features.dense_features import resize_image
from rekindle.evaluation.training.fitting import endless_order
from rekindle.evaluation.training.options import SegmentationTrainingOptions
from rekindle.evaluation.training.photometric_distortion import distort_colours

TRIES = 10
WORKERS_ON_GPU = 8


@runtime_checkable
class LabelMaps(Protocol):
    """Images with a map of labels each."""

    ignore_index: int

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 [3, H, W], and its labels [H, W]."""


def draw_box(
    mask: Tensor, options: SegmentationTrainingOptions, ignore_index: int, source: torch.Generator
) -> tuple[int, int, int]:
    """Draw where a crop lies: (top, left, side) in pixels of the image as stored; it may hang over the border.

    The image is thought of as resized to the short side `size_px` times a random scale, and cropped to `crop_px` there. A crop
    in which one class fills more than `max_class_share` of the labelled pixels is drawn again, ten times at most.
    """
    height, width = mask.shape
    low, high = options.scale
    draw = torch.rand(1 + 2 * TRIES, generator=source).tolist()
    resize = options.size_px * (low + draw[0] * (high - low)) / min(height, width)
    side = max(1, round(options.crop_px / resize))
    place = (0, 0)
    for y, x in zip(draw[1::2], draw[2::2], strict=True):
        place = int(y * (max(0, height - side) + 1)), int(x * (max(0, width - side) + 1))
        part = mask[place[0] : place[0] + side, place[1] : place[1] + side]
        counts = torch.bincount(part[part != ignore_index]) if options.max_class_share < 1 else part[:0]
        if len(counts) == 0 or int(counts.max()) <= options.max_class_share * int(counts.sum()):
            break
    return (*place, side)


def cut(
    image: Tensor, mask: Tensor, box: tuple[int, int, int], size_px: int, mean: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Cut a box out of image and labels and resize it: uint8 [3, size, size] and labels [size, size]."""
    top, left, side = box
    image, mask = image[:, top : top + side, left : left + side], mask[top : top + side, left : left + side]
    height, width = mask.shape
    size = max(1, round(height * size_px / side)), max(1, round(width * size_px / side))
    pixels = mean[:, None, None].expand(3, size_px, size_px).clone()
    labels = torch.full((size_px, size_px), ignore_index, dtype=mask.dtype)
    pixels[:, : size[0], : size[1]] = resize_image(image, size)
    labels[: size[0], : size[1]] = _nearest(mask, size)
    return pixels, labels


class LabelledCrops(Dataset[tuple[Tensor, Tensor]]):
    """The training crops of a run in their order: the i-th follows from the seed and i alone.

    Args:
        data: labelled images.
        indices: those to train on.
        options: see `SegmentationTrainingOptions`.
        mean: of the normalisation, for pixels in [0, 1].
        count: how many crops.
        seed: of everything random.
        cache_bytes: decoded images kept, at most.

    """

    def __init__(
        self,
        data: LabelMaps,
        indices: list[int],
        options: SegmentationTrainingOptions,
        *,
        mean: tuple[float, float, float],
        count: int,
        seed: int,
        cache_bytes: float,
    ) -> None:
        order = endless_order(indices, seed, "crops-order")
        self._order = [next(order) for _ in range(count)]
        self._data, self._options, self._seed = data, options, seed
        self._mean = (torch.tensor(mean) * 255).round().to(torch.uint8)
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        image, mask = self._read(self._order[position])
        source, ignored = generator(self._seed, "crop", position), self._data.ignore_index
        box = draw_box(mask, self._options, ignored, source)
        pixels, labels = cut(image, mask, box, self._options.crop_px, self._mean, ignored)
        if float(torch.rand((), generator=source)) < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        return (distort_colours(pixels, source) if self._options.jitter else pixels), labels

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self._cache:
            return self._cache[index]
        image, mask = self._data.read(index)
        size = image.nbytes + mask.nbytes
        if size <= self._room:
            self._room -= size
            self._cache[index] = image, mask
        return image, mask


def crop_batches(crops: LabelledCrops, batch_size: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield batches in order, [pixels, labels]; on a GPU, worker processes make them."""
    workers = WORKERS_ON_GPU if device.type == "cuda" else 0
    loader = DataLoader(crops, batch_size, num_workers=workers, pin_memory=workers > 0)
    yield from loader


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    resized = torch.nn.functional.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")
    return resized[0, 0].to(mask.dtype)
