# SPDX-License-Identifier: Apache-2.0
"""Segmentation data sets in a folder: ours (images/<split>/**, masks/<split>/**.png, classes.json) or any that is listed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.images import SUFFIXES
from rekindle.data.labelled.label_maps import LabelMap, color_code, present

_LAYOUT = "Expected: images/<split>/**, masks/<split>/**.png of the same stem, classes.json"
_AS_STORED = LabelMap()
_SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and what messages and results call it."""

    item: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Listing:
    """What one split of a data set holds.

    Attributes:
        names: class names; the position is the id.
        pairs: images with their masks, in the order of the items.
        layout: what the folder should look like, for messages.
        labels: how the values of the masks become ids.
        ignore_index: id of pixels that do not count.
        colors: one [r, g, b] per class, or None.

    """

    names: list[str]
    pairs: list[Pair]
    layout: str
    labels: LabelMap = _AS_STORED
    ignore_index: int = 255
    colors: list[list[int]] | None = None


Find = Callable[[Path, str], Listing]
"""Lists one split of a folder (root, split), or raises RequestError."""


def own_layout(root: Path, split: str) -> Listing:
    """List a split of our own layout.

    With `"palette": true` in classes.json the masks hold the colours of `colors`, and those of `ignored_colors` do not count.
    """
    known = splits(root)
    if split not in known:
        raise RequestError(f"{root}: there is no split '{split}'; splits here: {', '.join(known)}")
    description = _classes(root / "classes.json")
    ignore_index = description.get("ignore_index", 255)
    images = images_by_stem(root / "images" / split)
    if not images:
        raise RequestError(
            f"{root / 'images' / split}: the split is empty; put images there "
            f"({' '.join(sorted(SUFFIXES))}), or name another split: {', '.join(known)}"
        )
    pairs = [Pair(stem, images[stem], root / "masks" / split / f"{stem}.png") for stem in sorted(images)]
    colors: list[list[int]] | None = description.get("colors")
    labels = _AS_STORED
    if description.get("palette", False):
        table = {color_code(color): ignore_index for color in description.get("ignored_colors", [])}
        labels = LabelMap("colours", table | {color_code(color): i for i, color in enumerate(colors or [])})
    return Listing(description["names"], pairs, _LAYOUT, labels, ignore_index, colors)


class SegmentationFolder:
    """Images of one split with their masks of class ids.

    Args:
        root: the folder.
        split: name of the split.
        find: knows the folder's layout.

    Attributes:
        names: class names; the position is the id.
        colors: one [r, g, b] per class, or None.
        ignore_index: id of pixels that do not count.
        items: names of the images (in our own layout: files below images/<split>, without suffix), sorted.

    """

    def __init__(self, root: str | Path, split: str, find: Find = own_layout) -> None:
        self.root = Path(root).expanduser()
        self.split = split
        self._listing = find(self.root, split)
        self.names = self._listing.names
        self.colors = self._listing.colors
        self.ignore_index = self._listing.ignore_index
        self.items: list[str] = [pair.item for pair in self._listing.pairs]
        if not self.items:
            raise RequestError(f"{self.root}: the split '{split}' is empty. {self._listing.layout}")

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored id apart."""
        return len(self.names)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def files(self) -> list[Path]:
        """The image of each item."""
        return [pair.image for pair in self._listing.pairs]

    def image_path(self, index: int) -> Path:
        """Where the image of an item is."""
        return self._listing.pairs[index].image

    def mask_path(self, index: int) -> Path:
        """Where the mask of an item should be."""
        return self._listing.pairs[index].mask

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""
        return read_image(str(self.image_path(index)))

    def mask(self, index: int) -> Tensor:
        """Return the class ids, int64 [H, W]."""
        labels = self._listing.labels
        ids = labels.ids(labels.stored(self.mask_path(index)))
        if labels.table is not None and int(ids.min(initial=0)) < 0:
            raise RequestError(f"{self.mask_path(index)}: it holds values that are neither a class nor ignored")
        return torch.from_numpy(ids)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and mask."""
        return self.image(index), self.mask(index)

    def check(self) -> None:
        """Look at every file before any work starts, and tell of images whose every pixel is ignored.

        Raises: RequestError that lists missing masks, masks with the wrong channels, sizes that differ from the image, unreadable
        files, and values that are neither a class nor ignored; or if not one pixel of the split has a class.
        """
        ignored: list[str] = []

        def fault(index: int) -> tuple[str, str] | None:
            return self._fault(index, ignored)

        listed_faults(self.root, self.split, self.items, fault, self._listing.layout)
        if len(ignored) == len(self.items):
            raise RequestError(
                f"{self.root}, split '{self.split}': every pixel of every mask is ignored, so nothing can be learnt or measured; "
                f"does the split have labels, and is ignore_index = {self.ignore_index} meant?"
            )
        if ignored:
            logging.getLogger("rekindle").warning(
                "%s, split '%s': every pixel is ignored in %d of %d images: %s",
                *(self.root, self.split, len(ignored), len(self.items), _some(ignored)),
            )

    def _fault(self, index: int, ignored: list[str]) -> tuple[str, str] | None:
        """Return the fault of an item; note it in `ignored` if no pixel counts."""
        path, labels = self.mask_path(index), self._listing.labels
        if not path.is_file():
            place = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            return "images without a mask (add it, or remove the image)", f" ({place.as_posix()})"
        try:
            mode, mask_size = labels.header(path)
            size = image_size(str(self.image_path(index)))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        if mode and not labels.mode_is_right(mode):
            kind = (
                "masks with several channels (save one channel of class ids; or, if they hold the colours of classes, "
                'give "colors" and "palette": true in classes.json)'
                if labels.coding == "ids"
                else "masks without colours (save red, green and blue)"
            )
            return kind, f" (mode {mode})"
        if mask_size != size:
            shapes = f" (mask {mask_size[0]} x {mask_size[1]}, image {size[0]} x {size[1]})"
            return "masks of another size than their image (height x width; do not resize one alone)", shapes
        try:
            values = present(labels.stored(path))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        ids = dict(zip(values, labels.ids(np.array(values)).tolist(), strict=True))
        unknown = [v for v, i in ids.items() if i != self.ignore_index and not 0 <= i < self.num_classes]
        if unknown:
            return self._told(unknown)
        if set(ids.values()) <= {self.ignore_index}:
            ignored.append(self.items[index])
        return None

    def _told(self, unknown: list[int]) -> tuple[str, str]:
        labels = self._listing.labels
        told = labels.told(unknown[:_SHOWN]) + (" ..." if len(unknown) > _SHOWN else "")
        if labels.table is None:
            kind = (
                f"class ids out of range (allowed: 0 to {self.num_classes - 1} and {self.ignore_index}; "
                "mend the masks, or the names in classes.json)"
            )
            return kind, f" (ids {told})"
        what = "colours" if "colours" in labels.coding else "values"
        return f"{what} that stand for no class (mend the masks, or the list of classes)", f" ({told})"


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
        content = read_json(path)
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
    if content.get("palette", False) and colors is None:
        raise RequestError(
            f"{path}: 'palette' says that masks hold colours; name them in 'colors', one [r, g, b] a class"
        )
    for color in [*(colors or []), *content.get("ignored_colors", [])]:
        if not _is_color(color):
            raise RequestError(f"{path}: {color!r} is no colour; expected [r, g, b] of whole numbers from 0 to 255")
    ignored = content.get("ignore_index", 255)
    if not isinstance(ignored, int) or 0 <= ignored < len(names):
        raise RequestError(
            f"{path}: 'ignore_index' = {ignored!r} must be a whole number that is no class id "
            f"(0 to {len(names) - 1} are taken); use 255"
        )
    return dict(content)


def _is_color(color: object) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in color)


def _some(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
