# SPDX-License-Identifier: Apache-2.0
"""Retrieval data of revisited Oxford and Paris: <set>/jpg/*.jpg and <set>/gnd_<set>.pkl, or the same content as JSON."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import parse_json
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.labelled.segmentation import listed_faults

LAYOUT = (
    "Expected: <split>/jpg/*.jpg and <split>/gnd_<split>.pkl (or .json): imlist and qimlist, the names without suffix, and gnd, "
    "for each query the positions easy, hard, junk in imlist and the box bbx [x0, y0, x1, y1]; for example --split roxford5k"
)
# What the published files are made of besides lists, dicts, strings and numbers, under the names of NumPy 1 and 2.
_ARRAYS = {
    (f"{package}.{module}", name)
    for package in ("numpy.core", "numpy._core")
    for module, names in (("multiarray", ("_reconstruct", "scalar")), ("numeric", ("_frombuffer",)))
    for name in names
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


@dataclass(frozen=True)
class Query:
    """What is right for one query; positions among the database's images.

    Attributes:
        easy, hard, junk: positions.
        box: (x0, y0, x1, y1) in pixels, or None.

    """

    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]
    box: tuple[float, float, float, float] | None


class RetrievalFolder:
    """A database of images, queries, and which images a query should find.

    Attributes:
        items: names of the queries.
        database: names of the images to be found.
        truth: one per query.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root).expanduser(), split
        folder = self.root / split
        if not folder.is_dir():
            known = sorted(p.parent.name for p in self.root.glob("*/jpg"))
            raise RequestError(
                f"{self.root}: there is no set '{split}'; sets here: {', '.join(known) or 'none'} (--split). {LAYOUT}"
            )
        content = _content(folder, split)
        try:
            self.database = [str(name) for name in content["imlist"]]
            self.items: list[str] = [str(name) for name in content["qimlist"]]
            self.truth: list[Query] = [_query(entry) for entry in content["gnd"]]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise RequestError(f"{folder}: the list of queries is not complete ({error!r}). {LAYOUT}") from error
        if not self.items or len(self.items) != len(self.truth):
            raise RequestError(f"{folder}: {len(self.items)} queries, but truth of {len(self.truth)}. {LAYOUT}")
        greatest = max((i for q in self.truth for i in (*q.easy, *q.hard, *q.junk)), default=-1)
        if greatest >= len(self.database):
            raise RequestError(
                f"{folder}: a query names image {greatest}, and imlist has {len(self.database)} (counted from 0)"
            )

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """Return a query's image, uint8 [3, H, W], as a whole."""
        return read_image(str(self._path(self.items[index])))

    def database_image(self, index: int) -> Tensor:
        """Return an image of the database, uint8 [3, H, W]."""
        return read_image(str(self._path(self.database[index])))

    def check(self) -> None:
        """Look at every file's header. Raises: RequestError that lists missing and unreadable files, and boxes off the image."""
        names = [*self.items, *self.database]
        boxes = [q.box for q in self.truth] + [None] * len(self.database)

        def fault(index: int) -> tuple[str, str] | None:
            try:
                height, width = image_size(str(self._path(names[index])))
            except UnreadableImage as error:
                return "unreadable files (replace them)", f" ({error.reason})"
            box = boxes[index]
            if box is not None and not (0 <= box[0] < box[2] <= width + 1 and 0 <= box[1] < box[3] <= height + 1):
                return "queries whose box (x0, y0, x1, y1) is not on the image", f" ({box} on {width} x {height})"
            return None

        listed_faults(self.root, self.split, names, fault, LAYOUT)

    def _path(self, name: str) -> Path:
        return self.root / self.split / "jpg" / f"{name}.jpg"


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings, numbers and arrays; refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what the file may name."""
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a list of queries does not need")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def plain_unpickled(content: bytes) -> Any:
    """Read a pickle of plain values and arrays. Raises: pickle.UnpicklingError for one that names anything else."""
    return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()


def _content(folder: Path, split: str) -> dict[str, Any]:
    stem = folder / f"gnd_{split}"
    path = next((p for p in (stem.with_suffix(".json"), stem.with_suffix(".pkl")) if p.is_file()), None)
    if path is None:
        raise RequestError(f"{folder}: neither gnd_{split}.pkl nor gnd_{split}.json is there. {LAYOUT}")
    try:
        content = path.read_bytes()
        found = parse_json(content) if path.suffix == ".json" else plain_unpickled(content)
    except Exception as error:  # a damaged pickle may raise anything
        raise RequestError(f"{path} cannot be read: {error}. {LAYOUT}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path} holds a {type(found).__name__}, not a table of names. {LAYOUT}")
    return found


def _query(entry: dict[str, Any]) -> Query:
    box = entry.get("bbx")
    found = Query(
        _positions(entry["easy"]),
        _positions(entry["hard"]),
        _positions(entry["junk"]),
        None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
    )
    if len({*found.easy, *found.hard, *found.junk}) < len(found.easy) + len(found.hard) + len(found.junk):
        raise ValueError("a position stands twice among easy, hard and junk")
    return found


def _positions(values: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(int(v) for v in values)
    if any(v < 0 for v in found):
        raise ValueError(f"position {min(found)} is below 0")
    return found
