# SPDX-License-Identifier: Apache-2.0
"""Masks on disk to class ids: one channel of numbers, colours, or numbers spread over two channels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.decoding import UnreadableImage, image_size

Coding = Literal["ids", "colours", "dark or bright colours", "red + 256 green", "matlab"]
UNKNOWN = -1
"""Id of a stored value that stands for nothing."""

_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")  # modes that hold whole numbers
_LARGEST_LUT = 1 << 16


def color_code(color: Iterable[int]) -> int:
    """Return the number under which a colour (red, green, blue) stands in the table of a `LabelMap`."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class LabelMap:
    """How the values of a mask become class ids.

    Attributes:
        coding: what a stored value is. "ids": the one channel (of a palette image the index); "colours": `color_code` of the
            pixel; "dark or bright colours": the same, each channel rounded to 0 or 255; "red + 256 green": as ImageNet-S;
            "matlab": the variable LabelMap of a .mat file.
        table: stored value -> id; None where the value is the id.

    """

    coding: Coding = "ids"
    table: Mapping[int, int] | None = None

    def mode_is_right(self, mode: str) -> bool:
        """Whether an image of this Pillow mode can hold such values."""
        if self.coding == "ids":
            return mode in _ONE_CHANNEL
        return mode in ("RGB", "RGBA", "P")

    def header(self, path: Path) -> tuple[str, tuple[int, int]]:
        """Return the Pillow mode ("" of a .mat file) and (height, width). Raises: UnreadableImage."""
        if self.coding == "matlab":
            height, width = self.stored(path).shape
            return "", (height, width)
        size = image_size(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as mask:
                return mask.mode, size

    def stored(self, path: Path) -> NDArray[Any]:
        """Read the stored values, integers [H, W]. Raises: RequestError (wrong mode, missing file), UnreadableImage."""
        try:
            if self.coding == "matlab":
                return _matlab(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata; what makes a mask unreadable raises
                with Image.open(path) as mask:
                    if not self.mode_is_right(mask.mode):
                        wanted = "one channel of class ids" if self.coding == "ids" else "red, green and blue"
                        raise RequestError(f"{path}: a mask has {wanted}; this one has mode {mask.mode}")
                    if self.coding == "ids":
                        values = np.array(mask)
                        return values.astype(np.uint8) if values.dtype == np.bool_ else values
                    rgb = np.array(mask.convert("RGB"))
        except FileNotFoundError as error:
            raise RequestError(f"{path}: the mask is missing; every image needs one") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(str(path), str(error)) from error
        if self.coding == "dark or bright colours":
            rgb = (rgb > 127) * np.uint8(255)
        red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
        return red + 256 * green if self.coding == "red + 256 green" else red << 16 | green << 8 | blue

    def ids(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        """Return class ids, int64 of the same shape; `UNKNOWN` where the table has no entry."""
        if self.table is None:
            return stored.astype(np.int64)
        keys, values = self._sorted
        if keys[-1] < _LARGEST_LUT:
            lut = self._lut
            found: NDArray[np.int64] = lut[stored if stored.dtype == np.uint8 else stored.clip(-1, len(lut) - 1)]
            return found
        place = np.searchsorted(keys, stored).clip(max=len(keys) - 1)
        return np.where(keys[place] == stored, values[place], UNKNOWN)

    def told(self, stored: Iterable[int]) -> str:
        """Return stored values as people read them: numbers, or colours as (red, green, blue)."""
        if "colours" in self.coding:
            return ", ".join(str((code >> 16, code >> 8 & 255, code & 255)) for code in stored)
        return ", ".join(map(str, stored))

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.table, "a table has an entry"
        keys = sorted(self.table)
        return np.array(keys, np.int64), np.array([self.table[key] for key in keys], np.int64)

    @cached_property
    def _lut(self) -> NDArray[np.int64]:
        """Ids by stored value; the last entry (where -1 and what is too large lead) is `UNKNOWN`."""
        keys, values = self._sorted
        lut = np.full(max(int(keys[-1]) + 2, 257), UNKNOWN, np.int64)
        lut[keys] = values
        return lut


def read_mask(path: Path) -> Tensor:
    """Read class ids as stored, int64 [H, W]; of a palette image the index, not the colour.

    Raises: RequestError for colours or a missing file, UnreadableImage.
    """
    return torch.from_numpy(LabelMap().stored(path).astype(np.int64))


def present(values: NDArray[Any]) -> list[int]:
    """Return the distinct values of integers, ascending."""
    if values.dtype == np.uint8:
        return [int(v) for v in np.flatnonzero(np.bincount(values.reshape(-1), minlength=1))]
    return [int(v) for v in np.unique(values)]


def _matlab(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        values = loadmat(path)["LabelMap"]
    except (MatReadError, KeyError, TypeError) as error:
        raise UnreadableImage(str(path), f"no MATLAB file with the variable LabelMap ({error})") from error
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise UnreadableImage(str(path), f"LabelMap has shape {values.shape} and type {values.dtype}")
    return np.asarray(values)
