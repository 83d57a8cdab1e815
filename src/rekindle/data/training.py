# SPDX-License-Identifier: Apache-2.0
"""Training images: which one each step sees, as pure functions of (seed, step), so that a run can resume, and their reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rekindle.core.errors import RekindleError
from rekindle.core.rng import generator
from rekindle.data.decoding import UnreadableImage
from rekindle.data.options import DataOptions

T = TypeVar("T")


class ReadableImages(Protocol):
    """What `TrainingImages` needs of a source; `ImageSource` is one."""

    def __len__(self) -> int: ...

    def read(self, index: int, *, draft_px: int | None, max_pixels: int) -> Tensor:
        """Return uint8 [3, H, W] or raise UnreadableImage."""


class TrainingImages(Dataset[tuple[int, tuple[int, ...], T]], Generic[T]):
    """Images with their random transform; a key says which image, and which draw of its transform.

    An item is (image index, indices skipped, transform's result). An image that cannot be read is replaced by
    the next one that can, cyclically, and is reported as skipped.

    Args: transform, called with the image and a generator of its own; seed of the run.
    """

    def __init__(
        self,
        images: ReadableImages,
        transform: Callable[[Tensor, torch.Generator], T],
        seed: int,
        options: DataOptions,
    ) -> None:
        self._images = images
        self._transform = transform
        self._seed = seed
        self._options = options

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, tuple[int, ...], T]:
        """Read and transform the image of (draw id, index). Raises: RekindleError if no image is readable."""
        draw_id, wanted = key
        options = self._options
        skipped: list[int] = []
        for step in range(len(self._images)):
            index = (wanted + step) % len(self._images)
            try:
                image = self._images.read(index, draft_px=options.draft_px, max_pixels=options.max_pixels)
            except UnreadableImage as error:
                skipped.append(index)
                last = error
                continue
            return index, tuple(skipped), self._transform(image, generator(self._seed, "views", draw_id))
        raise RekindleError(
            f"no readable image among {len(self._images)}; the last one: {last}. "
            "Run `rekindle check --images SRC` for a list, and mend or replace the files"
        )


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The keys (draw id, index) of this process's part of every step's batch.

    An epoch is a permutation from (seed, "order", epoch); its last images that fill no batch are left out. A
    step's batch is cut into `num_slots` equal slots in order, and for each step one list per slot of this
    process is yielded. A draw id, epoch * num_images + position, never comes twice in a run.

    Args: slots of this process, each in 0 .. num_slots - 1; steps, the end of the run; start_step, where to
    begin. Raises: ValueError for counts that do not fit.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        num_slots: int,
        slots: Sequence[int],
        steps: int,
        start_step: int,
        seed: int,
    ) -> None:
        if not 1 <= batch_size <= num_images:
            raise ValueError(f"batch_size must be in 1 .. number of images ({num_images}); got {batch_size}")
        if num_slots < 1 or batch_size % num_slots:
            raise ValueError(f"batch_size={batch_size} must be a multiple of num_slots={num_slots}")
        if not all(0 <= slot < num_slots for slot in slots):
            raise ValueError(f"slots must lie in 0 .. {num_slots - 1}; got {list(slots)}")
        self._num_images = num_images
        self._batch_size = batch_size
        self._num_slots = num_slots
        self._slots = tuple(slots)
        self._steps = steps
        self._start_step = start_step
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return self._num_images // self._batch_size

    def __len__(self) -> int:
        return max(0, self._steps - self._start_step) * len(self._slots)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_slot = self._batch_size // self._num_slots
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self._start_step, self._steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self._num_images, generator=generator(self._seed, "order", epoch))
            first = (step % self.steps_per_epoch) * self._batch_size
            for slot in self._slots:
                start = first + slot * per_slot
                indices = order[start : start + per_slot].tolist()
                base = epoch * self._num_images + start
                yield [(base + place, index) for place, index in enumerate(indices)]
