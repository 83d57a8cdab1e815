# SPDX-License-Identifier: Apache-2.0
"""View batch, as a method receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
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
        image_height, image_width: of the original image, in pixels, float32; for what depends on whole pixels.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    flipped_vertically: Tensor
    image_height: Tensor
    image_width: Tensor

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
        pixels: [V, B, 3, S, S], uint8 as they are made, or float32 normalised by the backbone's mean and std.
        crops: fields [V, B].
    """

    pixels: Tensor
    crops: Crops

    def images(self, chosen: slice | Tensor) -> Views:
        """The views of some of the images."""
        crops = Crops(*(getattr(self.crops, name)[:, chosen] for name in Crops.__dataclass_fields__))
        return Views(self.pixels[:, chosen], crops)

    def to(self, device: torch.device | str) -> Views:
        """Move pixels and crops."""
        return Views(self.pixels.to(device, non_blocking=True), self.crops.to(device))

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Views:
        """Levels 0 .. 255 as (level / 255 - mean) / std in float32, where the pixels are.

        Args: mean and std per channel, for levels in [0, 1]. Raises: ValueError for pixels that are not uint8 any more, or
        for numbers that cannot be a normalisation.
        """
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got mean={mean}, std={std}")
        if self.pixels.dtype != torch.uint8:
            raise ValueError(
                f"the pixels are {self.pixels.dtype} and not uint8: these views are normalised already; do it only once"
            )
        gain = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=self.pixels.device)
        offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=gain.device)
        return Views(self.pixels.float().mul_(gain[:, None, None]).add_(offset[:, None, None]), self.crops)


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

    def images(self, chosen: slice | Tensor) -> ViewBatch:
        """The views of some of the images."""
        local = None if self.local_views is None else self.local_views.images(chosen)
        return ViewBatch(self.global_views.images(chosen), local, self.image_index[chosen], self.skipped)

    def to(self, device: torch.device | str) -> ViewBatch:
        """Move every tensor."""
        local = None if self.local_views is None else self.local_views.to(device)
        return ViewBatch(self.global_views.to(device), local, self.image_index.to(device), self.skipped)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ViewBatch:
        """All views as `Views.normalised` makes them."""
        local = None if self.local_views is None else self.local_views.normalised(mean, std)
        return ViewBatch(self.global_views.normalised(mean, std), local, self.image_index, self.skipped)


def by_view(rows: Shaped[Tensor, "N ..."], views: int) -> Shaped[Tensor, "V B ..."]:
    """Rows of several views, views first, apart."""
    return rows.view(views, -1, *rows.shape[1:])
