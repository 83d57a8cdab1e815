# SPDX-License-Identifier: Apache-2.0
"""All views of one image, made in a data worker, and their collation into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.crops import Box, UniformStream, sample_boxes
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import apply_photometric, draw_photometric


@dataclass(frozen=True)
class SingleViews:
    """The views of one image: pixels [V, 3, S, S] normalised, crop fields [V]; no local views is None."""

    global_pixels: Tensor
    global_crops: Crops
    local_pixels: Tensor | None
    local_crops: Crops | None


class MultiCrop:
    """Image to views: crop and resize, flip, jitter, grey, blur, solarise, normalise (in DINO's order).

    Every random number comes from the generator that the call receives.

    Args: mean and std of the backbone's normalisation, per channel, for levels in [0, 1].
    """

    def __init__(self, options: ViewsOptions, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got mean={mean}, std={std}")
        self.options = options
        scale = torch.tensor(std, dtype=torch.float64)[:, None, None]
        self._gain = (1 / (255 * scale)).float()
        self._offset = (-torch.tensor(mean, dtype=torch.float64)[:, None, None] / scale).float()

    def __call__(self, image: UInt8[Tensor, "3 H W"], generator: torch.Generator) -> SingleViews:
        """Return two global and `num_local` local views of an image, which stays as it is."""
        options = self.options
        size = (image.shape[1], image.shape[2])
        uniform = UniformStream(generator)
        boxes = sample_boxes(size, options, uniform)
        # The antialiased resize of bytes is twice as fast when the three channels of a pixel are neighbours.
        image = image[None].contiguous(memory_format=torch.channels_last)
        large = torch.empty(2, 3, options.global_size_px, options.global_size_px)
        small = torch.empty(options.num_local, 3, options.local_size_px, options.local_size_px)
        flips = []
        for index, (box, out) in enumerate(zip(boxes, [*large, *small], strict=True)):
            flip = (uniform.chance(options.hflip_p), uniform.chance(options.vflip_p))
            view = _cut(image, box, out.shape[-1], flip)
            view = apply_photometric(view, draw_photometric(options, index, uniform))
            torch.addcmul(self._offset, view, self._gain, out=out)
            flips.append(flip)
        crops = _as_crops(boxes, flips, size)
        if options.num_local == 0:
            return SingleViews(large, crops, None, None)
        return SingleViews(large, crops[:2], small, crops[2:])


def collate_views(samples: Sequence[tuple[int, tuple[int, ...], SingleViews]]) -> ViewBatch:
    """Make one batch of B samples (image index, indices skipped on the way to it, views)."""
    indices, skipped, views = zip(*samples, strict=True)
    local = None
    if views[0].local_pixels is not None:
        local = _stack([v.local_pixels for v in views], [v.local_crops for v in views])
    return ViewBatch(
        global_views=_stack([v.global_pixels for v in views], [v.global_crops for v in views]),
        local_views=local,
        image_index=torch.tensor(indices, dtype=torch.int64),
        skipped=tuple(index for some in skipped for index in some),
    )


def _stack(pixels: list[Tensor], crops: list[Crops]) -> Views:
    return Views(torch.stack(pixels, dim=1), Crops.stack(crops, dim=1))


def _cut(image: UInt8[Tensor, "1 3 H W"], box: Box, side: int, flip: tuple[bool, bool]) -> Float[Tensor, "3 side side"]:
    patch = image[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    patch = patch.contiguous(memory_format=torch.channels_last)
    patch = F.interpolate(patch, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    axes = [axis for axis, is_flipped in zip((2, 1), flip, strict=True) if is_flipped]
    view = patch[0].flip(axes) if axes else patch[0]
    return view.to(torch.float32, memory_format=torch.contiguous_format)


def _as_crops(boxes: list[Box], flips: list[tuple[bool, bool]], size: tuple[int, int]) -> Crops:
    height, width = size
    # Divided in double precision: a crop's far edge then rounds to the image's.
    edges = torch.tensor(
        [(b.top / height, b.left / width, b.height / height, b.width / width) for b in boxes],
        dtype=torch.float64,
    )
    top, left, extent_y, extent_x = edges.float().unbind(1)
    mirrored = torch.tensor(flips, dtype=torch.bool)
    return Crops(top, left, extent_y, extent_x, mirrored[:, 0].clone(), mirrored[:, 1].clone())
