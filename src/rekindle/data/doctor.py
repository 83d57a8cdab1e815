# SPDX-License-Identifier: Apache-2.0
"""Data check: what is wrong with a folder of images, found before a model sees it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rekindle.core.errors import RekindleError
from rekindle.data.decoding import UnreadableImage
from rekindle.data.images import ImageSource
from rekindle.data.options import DataOptions

CONSTANT_STD = 1.0
"""An image whose levels deviate less than this from their mean (of 255) shows nothing."""
CLIPPED_SHARE = 0.5
"""An image with more than this share of its levels at 0 or 255 has lost its detail."""
WIDE_RATIO = 1.9
"""From this ratio of sides on, independent crops often do not overlap (7 % of pairs at 2:1; GLARE, section 4.3)."""


@dataclass(frozen=True)
class Finding:
    """One image and what is wrong with it."""

    name: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        num_images: images in the source.
        sizes: the commonest sizes (width, height) with their counts.
        findings: by image; kinds are unreadable, duplicate, tiny, constant, clipped.
        num_wide: images so wide or tall that two crops may not overlap.
        prints: fingerprint of the pixels of each readable image, by name.
        likeness: bits [240] of each image that shows something, by name; see `likeness`.
        times: when images were taken, in seconds, by name; where the file says it.
    """

    num_images: int
    sizes: list[tuple[tuple[int, int], int]]
    findings: list[Finding]
    num_wide: int
    prints: dict[str, str]
    likeness: dict[str, NDArray[np.bool_]]
    times: dict[str, float]

    def count(self, kind: str) -> int:
        """Number of findings of one kind."""
        return sum(finding.kind == kind for finding in self.findings)


@dataclass(frozen=True)
class _Look:
    name: str
    size: tuple[int, int]
    print: str
    findings: tuple[Finding, ...]
    likeness: NDArray[np.bool_] | None = None
    time: float | None = None


def examine(
    images: ImageSource, *, smallest_px: int, options: DataOptions, on_image: Callable[[int], None] | None = None
) -> Diagnosis:
    """Read every image once and say what is wrong.

    Args: smallest_px, images with a shorter side are tiny (they would be enlarged); on_image(done), told after each.
    """
    looks: list[_Look] = []
    findings: list[Finding] = []
    for done, look in enumerate(_looks(images, smallest_px, options), start=1):
        findings.extend(look.findings)
        if look.print:
            looks.append(look)
        if on_image is not None:
            on_image(done)
    by_print: defaultdict[str, list[str]] = defaultdict(list)
    for look in looks:
        by_print[look.print].append(look.name)
    for names in by_print.values():
        findings.extend(Finding(name, "duplicate", f"same pixels as {names[0]}") for name in names[1:])
    sizes = Counter(look.size for look in looks).most_common(5)
    wide = sum(max(look.size) > WIDE_RATIO * min(look.size) for look in looks)
    return Diagnosis(
        len(images),
        sizes,
        findings,
        wide,
        {look.name: look.print for look in looks},
        {look.name: look.likeness for look in looks if look.likeness is not None},
        {look.name: look.time for look in looks if look.time is not None},
    )


def shared_prints(first: Diagnosis, second: Diagnosis) -> list[tuple[str, str]]:
    """Pairs of images with the same fingerprint in two sources: leakage between splits."""
    where = {print_: name for name, print_ in first.prints.items()}
    return [(where[p], name) for name, p in second.prints.items() if p in where]


def _looks(images: ImageSource, smallest_px: int, options: DataOptions) -> Iterator[_Look]:
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), 64):
            chunk: Sequence[int] = range(start, min(start + 64, len(images)))
            yield from pool.map(lambda index: _look(images, index, smallest_px, options), chunk)


def _look(images: ImageSource, index: int, smallest_px: int, options: DataOptions) -> _Look:
    name = images.name(index)
    try:
        pixels = images.read(index, max_pixels=options.max_pixels)
    except UnreadableImage as error:
        return _Look(name, (0, 0), "", (Finding(name, "unreadable", error.reason),))
    except (RekindleError, OSError) as error:
        return _Look(name, (0, 0), "", (Finding(name, "unreadable", str(error)),))
    height, width = pixels.shape[-2:]
    found = []
    if min(height, width) < smallest_px:
        found.append(Finding(name, "tiny", f"{width} x {height} px, shorter than {smallest_px} px"))
    spread = float(pixels.float().std(unbiased=False))
    clipped = float(((pixels == 0) | (pixels == 255)).float().mean())
    if spread < CONSTANT_STD:
        found.append(Finding(name, "constant", f"levels deviate by {spread:.2f} of 255"))
    elif clipped > CLIPPED_SHARE:
        found.append(Finding(name, "clipped", f"{clipped:.0%} of the levels are 0 or 255"))
    small = F.interpolate(pixels[None].float(), size=(32, 32), mode="area")[0]
    alike = likeness(small) if spread >= CONSTANT_STD else None
    return _Look(
        name, (width, height), fingerprint(small, (height, width)), tuple(found), alike, images.taken_at(index)
    )


def fingerprint(small: Tensor, size: tuple[int, int]) -> str:
    """Hash of an image's size and of its picture [3, 32, 32] in 64 levels: equal for copies, also re-saved without loss."""
    levels = (small / 4).to(torch.uint8).contiguous()
    text = str((len(small), *size)).encode() + levels.numpy().tobytes()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def likeness(small: Tensor) -> NDArray[np.bool_]:
    """Bits [240] of a picture [3, 32, 32]: whether its grey grows to the right, at 16 x 16 (a difference hash).

    Near-copies differ in few of them, also where size, light or quality changed; unrelated pictures in about half.
    """
    grey = F.avg_pool2d(small.mean(dim=0)[None], 2)[0]
    return np.asarray((grey[:, 1:] > grey[:, :-1]).flatten().numpy())
