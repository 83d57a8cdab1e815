# SPDX-License-Identifier: Apache-2.0
"""A batch of views, as a method receives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crops:
    """Where views were cut from their images. Every field has the same leading shape, for example [V, B].

    Coordinates are fractions of the original image (edges at 0 and 1), (y, x) order, float32.

    Attributes:
        top, left: the upper left corner, in [0, 1].
        height, width: the extent, in (0, 1].
        flipped: True where the view was mirrored left-right after cropping.
        flipped_vertically: True where it was mirrored top-bottom after cropping.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    flipped_vertically: Tensor

    def __getitem__(self, index: int | slice | Tensor) -> Crops:
        """Index the leading axes of every field."""
        return Crops(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def flatten(self) -> Crops:
        """[V, B] -> [V * B], views first."""
        return Crops(*(getattr(self, name).flatten() for name in self.__dataclass_fields__))

    def to(self, device: torch.device | str) -> Crops:
        """Move every field."""
        return Crops(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    @staticmethod
    def stack(crops: list[Crops], dim: int = 0) -> Crops:
        """Stack equal-shaped crops along a new axis."""
        return Crops(*(torch.stack([getattr(c, n) for c in crops], dim) for n in Crops.__dataclass_fields__))


@dataclass(frozen=True)
class Views:
    """Views of one resolution, view-major.

    Attributes:
        pixels: [V, B, 3, S, S], float32 normalised by the backbone's mean and std.
        crops: fields [V, B].
    """

    pixels: Tensor
    crops: Crops

    def to(self, device: torch.device | str) -> Views:
        """Move pixels and crops."""
        return Views(self.pixels.to(device, non_blocking=True), self.crops.to(device))


@dataclass(frozen=True)
class ViewBatch:
    """All views of B images.

    Attributes:
        global_views: V = 2 large views, in the order global 1, global 2.
        local_views: the small views, or None if there are none.
        image_index: [B] int64, position of the image in the data source.
        skipped: source positions that could not be read and were replaced by the next readable image.
    """

    global_views: Views
    local_views: Views | None
    image_index: Tensor
    skipped: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.image_index.shape[0])

    @property
    def num_local(self) -> int:
        """Local views per image."""
        return 0 if self.local_views is None else int(self.local_views.pixels.shape[0])

    def to(self, device: torch.device | str) -> ViewBatch:
        """Move every tensor."""
        local = None if self.local_views is None else self.local_views.to(device)
        return ViewBatch(self.global_views.to(device), local, self.image_index.to(device), self.skipped)
