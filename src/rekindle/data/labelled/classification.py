# SPDX-License-Identifier: Apache-2.0
"""Images with one class each: <split>/<class>/**, or <split>.csv that names files and classes."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.images import SUFFIXES
from rekindle.data.labelled.segmentation import listed_faults

LAYOUT = (
    "Expected: <split>/<class>/** with the images, or <split>.csv with the columns file and class (files below the folder, or "
    "below its folder images)"
)
_FILE_COLUMNS, _CLASS_COLUMNS = ("file", "filename"), ("class", "class_name", "label")


@dataclass(frozen=True)
class ClassListing:
    """What one split of a data set holds.

    Attributes:
        names: class names; the position is the id.
        items: names of the images.
        labels: class ids, one per item.
        images: one file per item, or uint8 [n, 3, H, W].
        layout: what the folder should look like, for messages.

    """

    names: list[str]
    items: list[str]
    labels: list[int]
    images: list[Path] | Tensor
    layout: str = LAYOUT


Find = Callable[[Path, str], ClassListing]
"""Lists one split of a folder (root, split), or raises RequestError."""


def own_layout(root: Path, split: str) -> ClassListing:
    """List a split of class folders, or of a table; the classes are those that it shows, sorted by name."""
    folder, table = root / split, root / f"{split}.csv"
    if folder.is_dir():
        found = list(_of_folder(folder))
    elif table.is_file():
        found = list(_of_table(table, root))
    else:
        known = ", ".join(splits(root)) or "none"
        raise RequestError(f"{root}: there is no split '{split}'; splits here: {known}. {LAYOUT}")
    found.sort()
    names = sorted({name for name, _, _ in found})
    ids = {name: number for number, name in enumerate(names)}
    return ClassListing(
        names, [item for _, item, _ in found], [ids[name] for name, _, _ in found], [path for _, _, path in found]
    )


class ClassFolder:
    """Images of one split with a class each.

    Args:
        root: the folder.
        split: name of the split.
        find: knows the folder's layout.

    Attributes:
        names: class names; the position is the id (in our own layout they are sorted).
        items: names of the images; in our own layout below <split>, or as the CSV has them, by class and name.
        labels: class ids, int64 [n].

    """

    def __init__(self, root: str | Path, split: str, find: Find = own_layout) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self._listing = find(self.root, split)
        self.names = self._listing.names
        self.items = self._listing.items
        if not self.items:
            raise RequestError(f"{self.root}: the split '{split}' is empty. {self._listing.layout}")
        if len(set(self.items)) < len(self.items):
            twice = next(item for item, count in Counter(self.items).items() if count > 1)
            raise RequestError(f"{self.root}, split '{split}': two images are called '{twice}'; rename one")
        self.labels: Tensor = torch.tensor(self._listing.labels, dtype=torch.int64)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def files(self) -> list[Path]:
        """The image of each item; none where images are rows of an array."""
        images = self._listing.images
        return [] if isinstance(images, Tensor) else images

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""
        images = self._listing.images
        return images[index] if isinstance(images, Tensor) else read_image(str(images[index]))

    def check(self) -> None:
        """Look at every file's header before any work starts. Raises: RequestError that lists missing and unreadable files."""
        listed_faults(self.root, self.split, self.items, self._fault, self._listing.layout)

    def _fault(self, index: int) -> tuple[str, str] | None:
        images = self._listing.images
        if isinstance(images, Tensor):
            return None
        try:
            image_size(str(images[index]))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        return None


@runtime_checkable
class WithClasses(Protocol):
    """A split whose items have classes by name."""

    root: Path
    split: str
    names: list[str]


def check_same_classes(train: WithClasses, test: WithClasses) -> None:
    """Raise RequestError if two splits have not the same classes, for then an id means two things."""
    if train.names == test.names:
        return
    only = [(a.split, sorted(set(a.names) - set(b.names))) for a, b in ((train, test), (test, train))]
    told = "; ".join(
        f"only in '{split}': {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for split, names in only
        if names
    )
    told = told or "the same names in another order"
    raise RequestError(f"{test.root}: the splits '{train.split}' and '{test.split}' have not the same classes ({told})")


def splits(root: Path) -> list[str]:
    """Names of the splits in a folder, sorted; none where there is no folder."""
    if not root.is_dir():
        return []
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and any(c.is_dir() for c in entry.iterdir())}
    return sorted(folders | {path.stem for path in root.glob("*.csv")})


def _of_folder(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield class, item and file of every image."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise RequestError(f"{folder}: there is no class in this split. {LAYOUT}")
    for name in classes:
        is_empty = True
        for parent, folders, files in os.walk(folder / name):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for file in files:
                path = Path(parent, file)
                if not file.startswith(".") and path.suffix.lower() in SUFFIXES:
                    is_empty = False
                    yield name, path.relative_to(folder).with_suffix("").as_posix(), path
        if is_empty:
            raise RequestError(f"{folder / name}: the class has no image; put some there, or remove the folder")


def _of_table(table: Path, root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield class, item and file of every row."""
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{table}: {error}. {LAYOUT}") from error
    columns = list(rows[0]) if rows else []
    file = next((name for name in _FILE_COLUMNS if name in columns), None)
    label = next((name for name in _CLASS_COLUMNS if name in columns), None)
    if file is None or label is None:
        raise RequestError(f"{table}: a table of images needs rows with the columns file and class. {LAYOUT}")
    base = root / "images" if rows and not (root / rows[0][file]).exists() else root
    for row in rows:
        yield row[label], Path(row[file]).with_suffix("").as_posix(), base / row[file]
