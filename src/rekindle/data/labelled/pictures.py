# SPDX-License-Identifier: Apache-2.0
"""Images without labels that are measured: <split>/** or images/<split>/**."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.decoding import UnreadableImage, image_size, read_image
from rekindle.data.labelled.segmentation import images_by_stem, listed_faults

LAYOUT = "Expected: images in the folder <split>/ or images/<split>/; --split is the folder's name"


class PictureFolder:
    """Images of one split.

    Attributes:
        items: file names below the split's folder, without suffix, sorted.

    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root).expanduser(), split
        places = [self.root / "images" / split, self.root / split]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise RequestError(f"{self.root}: there is no folder '{split}' of images. {LAYOUT}")
        self._images = images_by_stem(folder)
        self.items: list[str] = sorted(self._images)
        if not self.items:
            raise RequestError(f"{folder}: there is no image in it. {LAYOUT}")

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""
        return read_image(str(self._images[self.items[index]]))

    def check(self) -> None:
        """Look at every file's header. Raises: RequestError that lists the unreadable ones."""
        listed_faults(self.root, self.split, self.items, self._fault, LAYOUT)

    def _fault(self, index: int) -> tuple[str, str] | None:
        try:
            image_size(str(self._images[self.items[index]]))
        except UnreadableImage as error:
            return "unreadable files (replace or remove them)", f" ({error.reason})"
        return None
