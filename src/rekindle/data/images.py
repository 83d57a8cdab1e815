# SPDX-License-Identifier: Apache-2.0
"""Finding the images of a source: a folder, a glob, a list file, tar files, or a data set of the hub.

What is found is a flat, repeatable order of references; nothing is decoded. Folders, globs and tar files are
sorted by name, a list keeps its own order.
"""

from __future__ import annotations

import csv
import glob
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.decoding import UnreadableImage, image_size, read_image, taken_at
from rekindle.data.options import PILLOW_MAX_PIXELS, DataOptions

__all__ = ["ImageRef", "ImageSource", "UnreadableImage", "chosen_images", "find_images", "image_size", "read_image"]

SUFFIXES = frozenset(".jpg .jpeg .jfif .png .bmp .tif .tiff .webp .gif .ppm .pgm .pbm .pnm .jp2 .avif .tga".split())
_ALLOWED = (
    "Allowed: a folder, a glob ('photos/**/*.jpg'), a list file (.txt, .csv, .parquet), "
    "a tar pattern ('shards-{000..003}.tar'), or hf:NAME"
)
_LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_COLUMNS = ("file", "path", "image")
_PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image is.

    Attributes:
        path: a file, or the tar file that holds it, or the name of a hub data set.
        member: its name inside `path`, empty for a plain file.
        offset: first byte inside the tar file, or the row of the data set.
        size: number of bytes inside the tar file.

    """

    path: str
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}:{self.member}" if self.member else self.path


class ImageSource:
    """A numbered collection of images that can be read one by one, also in forked or spawned workers."""

    def __init__(self, refs: list[ImageRef], table: Any = None) -> None:
        self.refs = refs
        self._table = table

    def __len__(self) -> int:
        return len(self.refs)

    def name(self, index: int) -> str:
        """Name of an image for messages: its path, with the member of a tar file."""
        return self.refs[index].name

    def part(self, fraction: float, seed: int) -> ImageSource:
        """Return floor(fraction * n) of the images, at least one; a smaller share of a seed is part of a larger one."""
        count = max(1, int(fraction * len(self) + 1e-9))  # 0.29 * 100 is a little less than 29
        order = torch.randperm(len(self), generator=generator(seed, "image-share")).tolist()
        return ImageSource([self.refs[i] for i in sorted(order[:count])], self._table)

    def read(self, index: int, *, draft_px: int | None = None, max_pixels: int = PILLOW_MAX_PIXELS) -> Tensor:
        """Decode one image to uint8 [3, H, W]. Raises: UnreadableImage."""
        ref = self.refs[index]
        return read_image(self._content(ref), name=ref.name, draft_px=draft_px, max_pixels=max_pixels)

    def taken_at(self, index: int) -> float | None:
        """Return when an image was taken, in seconds, from its file's EXIF data alone; None where they do not say it."""
        return taken_at(self._content(self.refs[index]))

    def why_unreadable(self, index: int, options: DataOptions) -> str:
        """Return why an image cannot be read as the options ask for it; it may have become readable since."""
        try:
            self.read(index, draft_px=options.draft_px, max_pixels=options.max_pixels)
        except UnreadableImage as error:
            return error.reason
        return "it could not be read when it was wanted, and can be now"

    def _content(self, ref: ImageRef) -> str | bytes:
        if self._table is not None:
            cell = self._table[ref.offset]["image"]
            content: str | bytes = cell["bytes"] or cell["path"]
            return content
        if not ref.member:
            return ref.path
        try:
            with open(ref.path, "rb") as file:
                file.seek(ref.offset)
                return file.read(ref.size)
        except OSError as error:
            raise UnreadableImage(ref.name, str(error)) from error


def find_images(source: str | Path) -> ImageSource:
    """Find the images of a source. Raises: RequestError if it is missing, empty or holds no image."""
    text = os.path.expanduser(str(source))
    if text.startswith("hf:"):
        return _from_hub(text[3:])
    if "://" in text or text.startswith("pipe:"):
        raise RequestError(f"images = '{source}': addresses are not read; download the files first. {_ALLOWED}")
    if os.path.isdir(text):
        refs = [ImageRef(path) for path in sorted(_walk(text))]
        return _checked(refs, text, _folder_hint(text))
    if text.lower().endswith(_PACKED_TAR):
        raise RequestError(
            f"images = '{source}': a compressed tar file cannot be read at random places; unpack it, "
            f"or pack it again as a plain .tar. {_ALLOWED}"
        )
    if os.path.isfile(text):
        if text.lower().endswith(_LIST_SUFFIXES):
            return _from_list(text)
        return _checked(_of_file(text), text, f"it is one file without an image suffix ({_suffix_text()})")
    paths = sorted({path for pattern in _braces(text) for path in glob.glob(pattern, recursive=True)})
    if not paths:
        raise RequestError(f"images = '{source}': nothing is there; check the spelling. {_ALLOWED}")
    missing = [name for name in _braces(text) if not glob.has_magic(name) and not os.path.exists(name)]
    if missing:
        raise RequestError(
            f"images = '{source}': {len(missing)} files of the pattern are missing, first {missing[0]}; "
            "copy them, or shorten the range"
        )
    refs = [ref for path in paths if os.path.isfile(path) for ref in _of_file(path)]
    return _checked(refs, text, f"{len(paths)} paths match, none is an image ({_suffix_text()}) or a tar file")


def chosen_images(source: str | Path, options: DataOptions) -> ImageSource:
    """Find the images of a source, and take the share of them that the options ask for. Raises: as `find_images`."""
    found = find_images(source)
    return found if options.fraction == 1.0 else found.part(options.fraction, options.fraction_seed)


def _checked(refs: list[ImageRef], source: str, found: str) -> ImageSource:
    if not refs:
        raise RequestError(f"images = '{source}': no image was found: {found}. {_ALLOWED}")
    return ImageSource(refs)


def _suffix_text() -> str:
    return " ".join(sorted(SUFFIXES))


def _is_image_name(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in SUFFIXES


def _walk(folder: str) -> Iterator[str]:
    """Yield the images below a folder, without hidden ones; a folder is entered once, links or not."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in files if _is_image_name(name))


def _folder_hint(folder: str) -> str:
    names = os.listdir(folder)
    if not names:
        return "the folder is empty"
    if any(name.endswith(".tar") for name in names):
        return f"the folder holds tar files; give '{os.path.join(folder, '*.tar')}'"
    return f"the folder holds no file with an image suffix ({_suffix_text()})"


def _braces(pattern: str) -> list[str]:
    """Expand {000..003} (with the zeros of its first number) and {a,b}, as a shell and WebDataset do."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        low, high = int(span[1]), int(span[2])
        choices = [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
    else:
        choices = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [expanded for choice in choices for expanded in _braces(head + choice + tail)]


def _of_file(path: str) -> list[ImageRef]:
    if path.lower().endswith(".tar"):
        return _tar_members(path)
    return [ImageRef(path)] if _is_image_name(path) else []


def _tar_members(path: str) -> list[ImageRef]:
    try:
        with tarfile.open(path, "r:") as archive:
            refs = [
                ImageRef(path, member.name, member.offset_data, member.size)
                for member in archive
                if member.isreg() and _is_image_name(member.name)
            ]
    except (tarfile.TarError, OSError) as error:
        raise RequestError(
            f"images: {path} is not a readable tar file ({error}); it may be cut short: copy it again, "
            "or leave it out of the pattern"
        ) from error
    return sorted(refs, key=lambda ref: ref.member)


def _from_list(path: str) -> ImageSource:
    """Read paths from a list; relative ones start at the list's folder."""
    if path.lower().endswith(".csv"):
        entries = _csv_column(path)
    elif path.lower().endswith(".parquet"):
        entries = _parquet_column(path)
    else:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
        entries = [line for line in lines if line and not line.startswith("#")]
    folder = os.path.dirname(path)
    files = [os.path.join(folder, os.path.expanduser(entry)) for entry in entries]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise RequestError(
            f"images = '{path}': {len(missing)} of {len(files)} listed files do not exist, first "
            f"{missing[0]}; relative paths start at the list's folder; mend the list or copy the files"
        )
    return _checked([ImageRef(file) for file in files], path, "the list has no entry")


def _csv_column(path: str) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.reader(file) if row and any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    named = next((header.index(name) for name in _COLUMNS if name in header), None)
    if named is None:
        # Without a known heading the first column counts; its first cell is a heading unless it is an image.
        named, rows = 0, rows if _is_image_name(rows[0][0].strip()) else rows[1:]
    else:
        rows = rows[1:]
    short = next((number for number, row in enumerate(rows, start=1) if len(row) <= named), None)
    if short is not None:
        raise RequestError(f"images = '{path}': entry {short} has no column {named + 1}; give every row a path")
    return [row[named].strip() for row in rows]


def _parquet_column(path: str) -> list[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RequestError(
            f"images = '{path}': reading parquet needs pyarrow; install it with: pip install 'rekindle[readers]'"
        ) from error
    import pyarrow

    try:
        names = parquet.read_schema(path).names
        lower = [name.lower() for name in names]
        column = next((names[lower.index(name)] for name in _COLUMNS if name in lower), names[0] if names else None)
        values = [] if column is None else parquet.read_table(path, columns=[column])[column].to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise RequestError(f"images = '{path}': not a readable parquet file ({error}); write it again") from error
    if not all(isinstance(value, str) for value in values):
        raise RequestError(
            f"images = '{path}': column '{column}' does not hold paths; name the column of paths "
            "'file', 'path' or 'image'"
        )
    return values


def _from_hub(name: str) -> ImageSource:
    """Load NAME or NAME:SPLIT (default: train) and take the column `image`, or the first column of images."""
    try:
        import datasets
    except ImportError as error:
        raise RequestError(
            f"images = 'hf:{name}': data sets of the hub need the package datasets; install it with: "
            "pip install 'rekindle[readers]'"
        ) from error
    repository, _, split = name.partition(":")
    try:
        table = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise RequestError(
            f"images = 'hf:{name}': the data set could not be loaded ({error}); check its name, its split "
            "(hf:NAME:SPLIT, default train) and the connection"
        ) from error
    columns = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise RequestError(f"images = 'hf:{name}': no column holds images; columns: {', '.join(table.features)}")
    column = "image" if "image" in columns else columns[0]
    table = table.select_columns([column]).rename_column(column, "image") if column != "image" else table
    table = table.cast_column("image", datasets.Image(decode=False)).select_columns(["image"])
    refs = [ImageRef(f"hf:{name}", str(row), row) for row in range(len(table))]
    if not refs:
        raise RequestError(f"images = 'hf:{name}': the split is empty; name another one as hf:NAME:SPLIT")
    return ImageSource(refs, table)
