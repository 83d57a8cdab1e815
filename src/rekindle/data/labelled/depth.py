# SPDX-License-Identifier: Apache-2.0
"""Images with depth in a folder: images/<split>/**, depth/<split>/**.png (16 bit) or .npz of the same stem."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.labelled.segmentation import images_by_stem, listed_faults, splits

LAYOUT = (
    "Expected: images/<split>/**, depth/<split>/**.png (16 bit, 1/256 m a level, 0 = unknown) or .npz "
    '(`depth`, metres) of the same stem; another unit stands in depth.json as {"metres_per_unit": 0.001}'
)
PNG_UNIT_M = 1 / 256
FARTHEST_MEDIAN_M = 1000.0


@runtime_checkable
class DepthMaps(Protocol):
    """One split of images with depth, in whatever layout."""

    items: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 [3, H, W], and its depth in metres, float32 [H, W], 0 where it is unknown."""

    def check(self) -> None:
        """Raise RequestError that lists what is wrong with the files."""


class DepthFolder:
    """Images of one split with their depth in metres.

    Attributes:
        items: file names below images/<split>, without suffix, sorted.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root).expanduser(), split
        known = splits(self.root)
        if split not in known:
            raise RequestError(f"{self.root}: there is no split '{split}'; splits here: {', '.join(known)}")
        if not (self.root / "depth" / split).is_dir():
            raise RequestError(f"{self.root}: there are no depth maps of the split '{split}'. {LAYOUT}")
        self._unit_m = _unit(self.root / "depth.json")
        self._images = images_by_stem(self.root / "images" / split)
        self.items: list[str] = sorted(self._images)
        if not self.items:
            raise RequestError(f"{self.root / 'images' / split}: the split is empty. {LAYOUT}")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 [3, H, W], and its depth in metres, float32 [H, W], 0 where it is unknown."""
        return read_image(str(self._images[self.items[index]])), torch.from_numpy(self._depth(index))

    def check(self) -> None:
        """Look at every file before any work starts.

        Raises: RequestError that lists missing maps, maps of another size or unit, and unreadable files.
        """
        listed_faults(self.root, self.split, self.items, self._fault, LAYOUT)

    def _map_path(self, index: int) -> Path | None:
        stem = self.root / "depth" / self.split / self.items[index]
        return next((p for p in (stem.with_name(stem.name + s) for s in (".png", ".npz")) if p.is_file()), None)

    def _depth(self, index: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        path = self._map_path(index)
        if path is None:
            raise RequestError(f"{self.root}, split '{self.split}': {self.items[index]} has no depth map. {LAYOUT}")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                levels, unit = np.asarray(arrays["depth"], np.float32), self._unit_m or 1.0
        else:
            with Image.open(path) as picture:
                levels, unit = np.asarray(picture).astype(np.float32), self._unit_m or PNG_UNIT_M
        metres = levels * np.float32(unit)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))

    def _fault(self, index: int) -> tuple[str, str] | None:
        path = self._map_path(index)
        if path is None:
            return "images without a depth map (add depth/<split>/<stem>.png or .npz, or remove the image)", ""
        try:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    if not picture.mode.startswith("I"):
                        return (
                            "depth maps that are not 16-bit PNG (8 bits cannot hold metres)",
                            f" (mode {picture.mode})",
                        )
            depth = self._depth(index)
            size = image_size(str(self._images[self.items[index]]))
        except (UnreadableImage, OSError, ValueError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
            return "unreadable files (replace or remove them)", f" ({error})"
        if depth.shape != size:
            shapes = f" (depth {' x '.join(map(str, depth.shape))}, image {size[0]} x {size[1]})"
            return "depth maps of another size than their image (height x width)", shapes
        known = depth[depth > 0]
        if known.size and float(np.median(known)) > FARTHEST_MEDIAN_M:
            told = f" (median {float(np.median(known)):.0f} m)"
            return 'depths that cannot be metres (say the unit in depth.json: {"metres_per_unit": 0.001})', told
        return None


def _unit(path: Path) -> float | None:
    """Return the metres of a unit where depth.json tells."""
    if not path.exists():
        return None
    example = '{"metres_per_unit": 0.001}'
    try:
        content = read_json(path)
        unit = content["metres_per_unit"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path}: {error!r}; expected, for example, {example}") from error
    if not isinstance(unit, int | float) or isinstance(unit, bool) or not unit > 0:
        raise RequestError(f"{path}: metres_per_unit = {unit!r} must be a number above 0, for example {example}")
    return float(unit)
