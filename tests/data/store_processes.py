# SPDX-License-Identifier: Apache-2.0
"""What processes of a store's tests run: in a module of its own, so that a spawned one imports little."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rekindle.data.images import ImageRef, ImageSource, read_image
from rekindle.data.options import DataOptions
from rekindle.data.store import ImageStore, StoredImages

OPTIONS = DataOptions()
READ: dict[str, Any] = {"draft_px": OPTIONS.draft_px, "max_pixels": OPTIONS.max_pixels}
SIZE = 48 * 56 * 3  # bytes of an image of `write_images`
SLOT = -(-SIZE // 64) * 64


class Counting(ImageSource):
    """Notes every decode as a byte in a file, so that all processes are counted."""

    def __init__(self, refs: list[ImageRef], note: Path) -> None:
        super().__init__(refs)
        self._note = note

    def read(self, index: int, **how: Any) -> Tensor:
        with self._note.open("ab") as stream:
            stream.write(b"x")
        return super().read(index, **how)

    def decodes(self) -> int:
        return self._note.stat().st_size if self._note.exists() else 0


def copied(image: Tensor, generator: torch.Generator) -> tuple[int, Tensor]:
    return os.getpid(), image.clone()


def fill(images: StoredImages, barrier: Any) -> None:
    barrier.wait(60)
    for i in range(len(images)):
        images.read(i, **READ)


class Stuck:
    """Pixels whose copying never ends: assignment into the store asks for their values and waits."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def __len__(self) -> int:
        return SIZE

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> None:
        where, key, _ = args
        where[key.start : key.start + SIZE // 2] = 77
        self._told.set()
        time.sleep(60)


def write_and_hang(store: ImageStore, told: Any) -> None:
    store._put(2, Stuck(told), 48, 56, 1)  # type: ignore[arg-type]


def expected(source: ImageSource, index: int) -> Tensor:
    return read_image(source.refs[index].path)
