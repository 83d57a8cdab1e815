# SPDX-License-Identifier: Apache-2.0
"""Annotations in COCO's JSON: polygons, and run lengths as lists or as compressed strings, all decoded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.labelled.segmentation import listed_faults

Mask = NDArray[np.bool_]
LAYOUT = (
    'Expected: annotations/instances_<split>.json with "images" (id, file_name, height, width), "annotations" (image_id, '
    'category_id, segmentation, iscrowd) and "categories" (id, name); the images in <split>/ or images/<split>/'
)


@dataclass(frozen=True)
class Annotation:
    """One region of an image.

    Attributes:
        category_index: position of its category among the names.
        mask: bool [H, W].
        is_crowd: it covers many objects of the category at once.

    """

    category_index: int
    mask: Mask
    is_crowd: bool


def polygon_mask(points: Sequence[float], size: tuple[int, int]) -> Mask:
    """Return the pixels [H, W] whose centre lies inside a polygon (even-odd rule).

    Args:
        points: x0, y0, x1, y1, ... in pixels, edges of the image at 0 and W or H.
        size: (H, W).

    """
    height, width = size
    start = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    crossings = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(start, np.roll(start, -1, axis=0), strict=True):
        rows = np.arange(max(0, int(np.ceil(min(y0, y1) - 0.5))), min(height, int(np.ceil(max(y0, y1) - 0.5))))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossings[rows, np.ceil(x - 0.5).clip(0, width).astype(np.int64)] += 1  # every pixel from here on flips
    inside: Mask = crossings.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


def run_length_mask(counts: Sequence[int], size: tuple[int, int]) -> Mask:
    """Return the mask [H, W] of run lengths: columns one after the other, zeros first. Raises: ValueError for a wrong sum."""
    height, width = size
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"run lengths sum to {sum(counts)}, and the image has {height} x {width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def run_lengths(text: str) -> list[int]:
    """Decode the string that COCO's tools write: base 32, least digit first, from the third run on as differences.

    Each character holds 5 bits above "0", and bit 6 says that more follow; the last digit's highest bit is the sign. A run is the
    difference to the one two places before, because widths repeat.

    Raises: ValueError for a string that ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the string of run lengths ends within a number")
    return counts


class CocoAnnotations:
    """Images of one split with their annotations.

    Attributes:
        names: category names, by ascending id.
        items: file names of the images, without suffix, sorted.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root).expanduser(), split
        content = _content(annotation_file(self.root, split))
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        self.names: list[str] = [str(category["name"]) for category in categories]
        self._index = {category["id"]: i for i, category in enumerate(categories)}
        self._images = sorted(content["images"], key=lambda image: str(image["file_name"]))
        self.items: list[str] = [Path(image["file_name"]).with_suffix("").as_posix() for image in self._images]
        if not self.items:
            raise RequestError(f"{annotation_file(self.root, split)}: it names no image. {LAYOUT}")
        self._regions: dict[Any, list[dict[str, Any]]] = {}
        for region in content["annotations"]:
            self._regions.setdefault(region["image_id"], []).append(region)
        own = self.root / split
        self._folder = own if own.is_dir() else self.root / "images" / split

    def __len__(self) -> int:
        return len(self.items)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image, as the file of annotations says."""
        image = self._images[index]
        return int(image["height"]), int(image["width"])

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""
        return read_image(str(self._path(index)))

    def of(self, index: int) -> Iterator[Annotation]:
        """Yield the annotations of an image, decoded. Raises: RequestError for one that cannot be."""
        size = self.size(index)
        for region in self._regions.get(self._images[index]["id"], []):
            try:
                mask = _mask(region["segmentation"], size)
                category = self._index[region["category_id"]]
            except (KeyError, ValueError, TypeError) as error:
                raise RequestError(
                    f"{annotation_file(self.root, self.split)}: annotation {region.get('id', '')} of {self.items[index]} "
                    f"cannot be read ({error}). {LAYOUT}"
                ) from error
            yield Annotation(category, mask, bool(region.get("iscrowd", 0)))

    def check(self) -> None:
        """Look at every file and annotation before any work starts.

        Raises: RequestError that lists missing and unreadable images, and images of another size than the annotations'.
        """
        listed_faults(self.root, self.split, self.items, self._fault, LAYOUT)

    def _path(self, index: int) -> Path:
        return self._folder / str(self._images[index]["file_name"])

    def _fault(self, index: int) -> tuple[str, str] | None:
        path = self._path(index)
        if not path.is_file():
            return f"images that are not in {self._folder} (put them there, or take them out of the annotations)", ""
        try:
            size = image_size(str(path))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        if size != self.size(index):
            told = " x ".join(map(str, self.size(index)))
            return "images of another size than annotated (height x width)", f" ({size[0]} x {size[1]}, not {told})"
        return None


def annotation_file(root: Path, split: str) -> Path:
    """Where the annotations of a split are."""
    return root / "annotations" / f"instances_{split}.json"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, max_bytes=2 * 2**30)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}. {LAYOUT}") from error
    except ValueError as error:
        raise RequestError(f"{path}: not readable as JSON ({error}). {LAYOUT}") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise RequestError(f"{path}: images, annotations or categories are missing. {LAYOUT}")
    return content


def _mask(segmentation: Any, size: tuple[int, int]) -> Mask:
    if isinstance(segmentation, list):
        whole: Mask = np.zeros(size, dtype=np.bool_)
        for points in segmentation:
            whole |= polygon_mask(points, size)
        return whole
    counts = segmentation["counts"]
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"run lengths of {segmentation['size']} in an image of {list(size)}")
    return run_length_mask(run_lengths(counts) if isinstance(counts, str) else counts, size)
