# SPDX-License-Identifier: Apache-2.0
"""A segmentation data set in a folder: images/<split>/**, masks/<split>/**.png, classes.json."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.images import SUFFIXES

_LAYOUT = "Expected: images/<split>/**, masks/<split>/**.png of the same stem, classes.json"
_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")  # one channel of whole numbers
_SHOWN = 5


class SegmentationFolder:
    """Images of one split with their masks of class ids.

    Attributes:
        names: class names; the position is the id.
        colors: one [r, g, b] per class, or None.
        ignore_index: id of pixels that do not count.
        items: file names below images/<split>, without suffix, sorted.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root).expanduser()
        self.split = split
        known = splits(self.root)
        if split not in known:
            raise RequestError(f"{self.root}: there is no split '{split}'; splits here: {', '.join(known)}")
        description = _classes(self.root / "classes.json")
        self.names: list[str] = description["names"]
        self.colors: list[list[int]] | None = description.get("colors")
        self.ignore_index: int = description.get("ignore_index", 255)
        self._images = images_by_stem(self.root / "images" / split)
        self.items: list[str] = sorted(self._images)
        if not self.items:
            raise RequestError(
                f"{self.root / 'images' / split}: the split is empty; put images there "
                f"({' '.join(sorted(SUFFIXES))}), or name another split: {', '.join(known)}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored id apart."""
        return len(self.names)

    def __len__(self) -> int:
        return len(self.items)

    def image_path(self, index: int) -> Path:
        """Where the image of an item is."""
        return self._images[self.items[index]]

    def mask_path(self, index: int) -> Path:
        """Where the mask of an item should be."""
        return self.root / "masks" / self.split / f"{self.items[index]}.png"

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""
        return read_image(str(self.image_path(index)))

    def mask(self, index: int) -> Tensor:
        """Return the class ids, int64 [H, W]."""
        return read_mask(self.mask_path(index))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and mask."""
        return self.image(index), self.mask(index)

    def check(self) -> None:
        """Look at every file before any work starts.

        Raises: RequestError that lists missing masks, masks with several channels, sizes that differ from the
        image, unreadable files, and ids that are neither a class nor `ignore_index`.
        """
        listed_faults(self.root, self.split, self.items, self._fault, _LAYOUT)

    def _fault(self, index: int) -> tuple[str, str] | None:
        path = self.mask_path(index)
        if not path.is_file():
            return "images without a mask (add masks/<split>/<stem>.png, or remove the image)", ""
        try:
            mode, mask_size = _mask_header(path)
            size = image_size(str(self.image_path(index)))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        if mode not in _MASK_MODES:
            return (
                "masks with several channels (save one channel of class ids, not colours)",
                f" (mode {mode})",
            )
        if mask_size != size:
            shapes = f" (mask {mask_size[0]} x {mask_size[1]}, image {size[0]} x {size[1]})"
            return "masks of another size than their image (height x width; do not resize one alone)", shapes
        try:
            present = np.unique(read_mask(path).numpy()).tolist()
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        unknown = [v for v in present if v != self.ignore_index and not 0 <= v < self.num_classes]
        if unknown:
            kind = (
                f"class ids out of range (allowed: 0 to {self.num_classes - 1} and {self.ignore_index}; "
                "mend the masks, or the names in classes.json)"
            )
            return kind, f" (ids {', '.join(map(str, unknown[:_SHOWN]))})"
        return None


def listed_faults(
    root: Path, split: str, items: Sequence[str], fault_of: Callable[[int], tuple[str, str] | None], layout: str
) -> None:
    """Ask every item for its fault (kind and detail, or None) and raise RequestError that lists what was found."""
    faults: dict[str, list[str]] = {}
    for index, item in enumerate(items):
        fault = fault_of(index)
        if fault is not None:
            kind, detail = fault
            faults.setdefault(kind, []).append(f"{item}{detail}")
    if faults:
        lines = [f"{root}, split '{split}': the data cannot be used."]
        lines += [f"- {kind}: {_some(found)}" for kind, found in faults.items()]
        raise RequestError("\n".join([*lines, layout]))


def splits(root: str | Path) -> list[str]:
    """Names of the splits in a folder, sorted. Raises: RequestError if the folder has not the layout."""
    root = Path(root).expanduser()
    images = root / "images"
    if not images.is_dir():
        where = "the folder does not exist" if not root.is_dir() else "there is no folder 'images' in it"
        raise RequestError(f"{root}: {where}. {_LAYOUT}")
    names = sorted(entry.name for entry in images.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise RequestError(f"{images}: there is no split; put the images into a folder such as 'train'. {_LAYOUT}")
    return names


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Find the images below a folder by their relative path without suffix. Raises: RequestError for two of one stem."""
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            path = Path(parent) / name
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise RequestError(f"{found[stem]} and {path} have the same stem and thus the same mask; rename one")
            found[stem] = path
    return found


def _classes(path: Path) -> dict[str, Any]:
    example = '{"names": ["sky", "road"], "ignore_index": 255}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{path}: the file is missing; it names the classes, for example {example}") from error
    except (ValueError, OSError) as error:
        raise RequestError(f"{path}: not readable as JSON ({error}); expected, for example, {example}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{path}: 'names' must be a list of class names; expected, for example, {example}")
    colors = content.get("colors")
    if colors is not None and (not isinstance(colors, list) or len(colors) != len(names)):
        raise RequestError(
            f"{path}: 'colors' must hold one [r, g, b] for each of the {len(names)} names, or be left out"
        )
    ignored = content.get("ignore_index", 255)
    if not isinstance(ignored, int) or 0 <= ignored < len(names):
        raise RequestError(
            f"{path}: 'ignore_index' = {ignored!r} must be a whole number that is no class id "
            f"(0 to {len(names) - 1} are taken); use 255"
        )
    return dict(content)


def _mask_header(path: Path) -> tuple[str, tuple[int, int]]:
    height_width = image_size(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as mask:
            return mask.mode, height_width


def read_mask(path: Path) -> Tensor:
    """Read class ids as stored, int64 [H, W]; of a palette image the index, not the colour.

    Raises: RequestError for colours or a missing file, UnreadableImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as mask:
                if mask.mode not in _MASK_MODES:
                    raise RequestError(f"{path}: a mask has one channel of class ids; this one has mode {mask.mode}")
                ids = np.array(mask)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: the mask is missing; every image needs one. {_LAYOUT}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(str(path), str(error)) from error
    return torch.from_numpy(ids.astype(np.int64))


def _some(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
