# SPDX-License-Identifier: Apache-2.0
"""Objects in images, whatever format names them: a mask for each, or a map of classes for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.labelled.coco import CocoAnnotations, annotation_file
from rekindle.data.labelled.segmentation import SegmentationFolder

Unit = Literal["category", "instance"]
VOID = -1
"""Class id of a pixel that counts for nothing."""

LAYOUTS = (
    "Expected: images/<split>/**, masks/<split>/**.png, classes.json; or COCO's annotations/instances_<split>.json with the "
    "images in <split>/ or images/<split>/"
)


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        class_ids: one per object.
        masks: bool [n, H, W]; masks of different classes may overlap.
        void: bool [H, W], pixels that are neither object nor background.

    """

    class_ids: list[int]
    masks: Tensor
    void: Tensor


@runtime_checkable
class ObjectSplit(Protocol):
    """Images of one split with their objects."""

    items: list[str]
    names: list[str]

    def check(self) -> None:
        """Raise RequestError that lists what is wrong with the files."""

    def image(self, index: int) -> Tensor:
        """Return the image, uint8 [3, H, W]."""

    def class_map(self, index: int) -> Tensor:
        """Return class ids, int64 [H, W]; `VOID` where a pixel counts for nothing."""

    def objects(self, index: int, unit: Unit) -> Objects:
        """Return the objects: everything of one class, or every single instance."""


class MaskObjects:
    """The objects of a segmentation folder; an instance is a connected component of a class (4 neighbours).

    Attributes:
        folder: the data.
        items: as of the folder.
        names: class names.

    """

    def __init__(self, folder: SegmentationFolder) -> None:
        self.folder = folder
        self.items: list[str] = folder.items
        self.names: list[str] = folder.names

    def check(self) -> None:
        """See `SegmentationFolder.check`."""
        self.folder.check()

    def image(self, index: int) -> Tensor:
        """See `ObjectSplit.image`."""
        return self.folder.image(index)

    def class_map(self, index: int) -> Tensor:
        """See `ObjectSplit.class_map`."""
        ids = self.folder.mask(index)
        return torch.where(ids == self.folder.ignore_index, VOID, ids)

    def objects(self, index: int, unit: Unit) -> Objects:
        """See `ObjectSplit.objects`."""
        ids = self.class_map(index)
        present = [c for c in torch.unique(ids).tolist() if c != VOID]
        if unit == "category":
            return _objects([(c, ids == c) for c in present], ids == VOID)
        found = []
        for c in present:
            numbered, count = ndimage.label((ids == c).numpy())
            found += [(c, torch.from_numpy(np.asarray(numbered) == k)) for k in range(1, count + 1)]
        return _objects(found, ids == VOID)


class CocoObjects:
    """The objects of a COCO annotation file. Crowds are no objects: what only they cover is void.

    Attributes:
        annotations: the data.
        items: file names of the images, without suffix, sorted.
        names: "background" (what no annotation covers), then the categories by their id.

    """

    def __init__(self, annotations: CocoAnnotations) -> None:
        self.annotations = annotations
        self.items: list[str] = annotations.items
        self.names: list[str] = ["background", *annotations.names]

    def check(self) -> None:
        """See `CocoAnnotations.check`."""
        self.annotations.check()

    def image(self, index: int) -> Tensor:
        """See `ObjectSplit.image`."""
        return self.annotations.image(index)

    def class_map(self, index: int) -> Tensor:
        """See `ObjectSplit.class_map`; where objects overlap, the smallest shows."""
        singles, crowd = self._singles(index)
        ids = torch.where(crowd, VOID, 0)
        for class_id, mask in sorted(singles, key=lambda single: -int(single[1].sum())):
            ids[mask] = class_id
        return ids

    def objects(self, index: int, unit: Unit) -> Objects:
        """See `ObjectSplit.objects`."""
        singles, crowd = self._singles(index)
        if unit == "category":
            whole: dict[int, Tensor] = {}
            for class_id, mask in singles:
                whole[class_id] = whole[class_id] | mask if class_id in whole else mask
            singles = sorted(whole.items())
        for _, mask in singles:
            crowd = crowd & ~mask
        return _objects(singles, crowd)

    def _singles(self, index: int) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """Class and mask of each object, and what crowds cover."""
        crowd = torch.zeros(self.annotations.size(index), dtype=torch.bool)
        singles = []
        for annotation in self.annotations.of(index):
            mask = torch.from_numpy(annotation.mask)
            if annotation.is_crowd:
                crowd = crowd | mask
            else:
                singles.append((annotation.category_index + 1, mask))
        return singles, crowd


def _objects(singles: list[tuple[int, Tensor]], void: Tensor) -> Objects:
    masks = torch.stack([mask for _, mask in singles]) if singles else void.new_zeros(0, *void.shape)
    return Objects([class_id for class_id, _ in singles], masks, void)


def open_objects(root: str | Path, split: str) -> ObjectSplit:
    """Open one split of a folder in whichever of the two layouts it has. Raises: RequestError if it has neither."""
    root = Path(root).expanduser()
    if (root / "classes.json").is_file():
        return MaskObjects(SegmentationFolder(root, split))
    if annotation_file(root, split).is_file():
        return CocoObjects(CocoAnnotations(root, split))
    raise RequestError(
        f"{root}: there is neither classes.json nor {annotation_file(root, split).relative_to(root)}. {LAYOUTS}"
    )
