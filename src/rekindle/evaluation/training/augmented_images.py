# SPDX-License-Identifier: Apache-2.0
"""Training images of classification: random resized crops, mirror images, and the stronger augmentations of fine-tuning."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import (
    ColorJitter,
    Compose,
    GaussianBlur,
    Grayscale,
    RandomChoice,
    RandomSolarize,
)
from torchvision.transforms.v2 import functional as image_ops
from torchvision.transforms.v2.functional import InterpolationMode

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed, generator, seeded_default
from rekindle.data.labelled.classification import ClassFolder
from rekindle.views.crops import UniformStream, sample_box

RATIO = (3 / 4, 4 / 3)
WORKERS_ON_GPU = 8

Augmentation = Callable[[Tensor], Tensor]


@contextmanager
def seeded_libraries(seed: int, purpose: str, *keys: int) -> Iterator[None]:
    """Like `seeded_default`, for Python's and NumPy's generators too, from which timm's augmentations draw."""
    own, arrays = random.getstate(), np.random.get_state()
    try:
        random.seed(derived_seed(seed, purpose, *keys))
        np.random.seed(derived_seed(seed, purpose, *keys) % 2**32)
        with seeded_default(seed, purpose, *keys):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(arrays)


def random_crop(image: Tensor, size_px: int, area: tuple[float, float], source: torch.Generator) -> Tensor:
    """Cut a random share of the image, resize it bicubically to a square, and mirror it half of the time: uint8 [3, S, S]."""
    uniform = UniformStream(source, block=64)
    box = sample_box((image.shape[1], image.shape[2]), area, RATIO, uniform)
    cut = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    resized: Tensor = image_ops.resize(cut, [size_px, size_px], InterpolationMode.BICUBIC, antialias=True)
    return resized.flip(-1) if uniform.chance(0.5) else resized


def augmentation(name: str, mean: tuple[float, float, float], size_px: int) -> Augmentation:
    """Return what a name stands for, on bytes [3, H, W]; it draws from the default generators (`seeded_libraries`).

    Args:
        name: none, 3-augment, or a RandAugment of timm (rand-m9-mstd0.5-inc1).
        mean: of the normalisation; what lies off the image has this colour.
        size_px: side of the image; RandAugment shifts by up to 0.45 of it.

    Raises: RequestError for another name.
    """
    if name == "none":
        return lambda image: image
    if name == "3-augment":  # DeiT III, arXiv:2204.07118, sec. 3
        chosen = RandomChoice([Grayscale(3), RandomSolarize(128, 1.0), GaussianBlur(9, (0.1, 2.0))])
        three: Augmentation = Compose([chosen, ColorJitter(0.4, 0.4, 0.4)])
        return three
    unknown = RequestError(
        f"finetune.augmentation = '{name}' is not known; use none, 3-augment, or a RandAugment such as rand-m9-mstd0.5-inc1"
    )
    if not name.startswith("rand-"):
        raise unknown
    colour = tuple(round(255 * m) for m in mean)
    try:
        policy: Any = rand_augment_transform(name, {"translate_const": int(0.45 * size_px), "img_mean": colour})
    except (AssertionError, ValueError) as error:
        raise unknown from error

    def rand_augment(image: Tensor) -> Tensor:
        picture = policy(Image.fromarray(image.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    return rand_augment


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """The training images of a run in their order, with labels: the i-th follows from the seed and i alone.

    Args:
        data: images with classes.
        order: which image comes at which place.
        size_px: side of the crop.
        area: range of the share that the crop covers.
        augment: after crop and mirror image; see `augmentation`.
        seed: of everything random.
        cache_bytes: decoded images kept, at most.

    """

    def __init__(
        self,
        data: ClassFolder,
        order: list[int],
        *,
        size_px: int,
        area: tuple[float, float],
        augment: Augmentation,
        seed: int,
        cache_bytes: float,
    ) -> None:
        self._data, self._order, self._size_px, self._area = data, order, size_px, area
        self._augment, self._seed, self._room = augment, seed, cache_bytes
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self._order[position]
        source = generator(self._seed, "augmented", position)
        cropped = random_crop(self._read(index), self._size_px, self._area, source)
        with seeded_libraries(self._seed, "augmentation", position):
            return self._augment(cropped).contiguous(), int(self._data.labels[index])

    def _read(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        image = self._data.image(index)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[index] = image
        return image


def image_batches(images: AugmentedImages, batch_size: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield whole batches in order, [bytes [B, 3, S, S], labels [B]]; on a GPU, worker processes make them."""
    workers = WORKERS_ON_GPU if device.type == "cuda" else 0
    yield from DataLoader(images, batch_size, num_workers=workers, pin_memory=workers > 0)
