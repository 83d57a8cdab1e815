# SPDX-License-Identifier: Apache-2.0
"""Videos with a mask per frame in DAVIS's layout: JPEGImages/480p/<seq>/*.jpg, Annotations/480p/<seq>/*.png, ImageSets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.labelled.label_maps import read_mask
from rekindle.data.labelled.segmentation import listed_faults

LAYOUT = (
    "Expected: JPEGImages/480p/<sequence>/00000.jpg, ..., Annotations/480p/<sequence>/00000.png, ... (0 background, "
    "objects from 1, palette or grey), ImageSets/2017/<split>.txt or ImageSets/2016/<split>.txt with a sequence a line"
)
YEARS = ("2017", "2016")


class DavisVideos:
    """The sequences of one split.

    Attributes:
        items: names of the sequences, in the order of the list.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root).expanduser(), split
        lists = [self.root / "ImageSets" / year / f"{split}.txt" for year in YEARS]
        found = next((path for path in lists if path.is_file()), None)
        if found is None:
            known = sorted({p.stem for year in YEARS for p in (self.root / "ImageSets" / year).glob("*.txt")})
            told = f"there is no list of the split '{split}'; lists here: {', '.join(known) or 'none'}"
            raise RequestError(f"{self.root}: {told}. {LAYOUT}")
        self.items: list[str] = found.read_text(encoding="utf-8").split()
        if not self.items:
            raise RequestError(f"{found}: the list names no sequence. {LAYOUT}")

    def __len__(self) -> int:
        return len(self.items)

    def frames(self, index: int) -> list[Path]:
        """Frames of a sequence in order."""
        return sorted((self.root / "JPEGImages" / "480p" / self.items[index]).glob("*.jpg"))

    def mask_path(self, index: int, frame: Path) -> Path:
        """Where the mask of a frame should be."""
        return self.root / "Annotations" / "480p" / self.items[index] / f"{frame.stem}.png"

    def image(self, path: Path) -> Tensor:
        """Return a frame, uint8 [3, H, W]."""
        return read_image(str(path))

    def mask(self, index: int, frame: Path) -> Tensor:
        """Return the objects of a frame, int64 [H, W]: 0 is background; 255 (void in some releases) counts as background."""
        ids = read_mask(self.mask_path(index, frame))
        return torch.where(ids == 255, 0, ids)

    def check(self) -> None:
        """Look at every sequence before any work starts.

        Raises: RequestError that lists missing frames and masks, masks of other sizes, and first frames without an object.
        """
        listed_faults(self.root, self.split, self.items, self._fault, LAYOUT)

    def _fault(self, index: int) -> tuple[str, str] | None:
        frames = self.frames(index)
        if len(frames) < 3:
            return "sequences with fewer than three frames", f" ({len(frames)})"
        numbers = [frame.stem for frame in frames]
        if all(number.isdigit() for number in numbers):
            there = {int(number) for number in numbers}
            gaps = sorted(set(range(min(there), max(there) + 1)) - there)
            if gaps:
                return "sequences with missing frames", f" ({len(gaps)}, the first is number {gaps[0]})"
        missing = [frame.stem for frame in frames if not self.mask_path(index, frame).is_file()]
        if missing:
            return "frames without a mask", f" ({len(missing)}, the first is {missing[0]})"
        try:
            sizes = {image_size(str(path)) for path in frames}
            sizes |= {image_size(str(self.mask_path(index, frame))) for frame in frames}
            first = self.mask(index, frames[0])
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.name}: {error.reason})"
        if len(sizes) > 1:
            return "sequences whose frames or masks differ in size", ""
        if int(first.max()) == 0:
            return "sequences without an object in the first frame", ""
        return None
