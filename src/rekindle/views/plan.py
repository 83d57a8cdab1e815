# SPDX-License-Identifier: Apache-2.0
"""View plan of one image, fully drawn: boxes, flips and photometric chains of all its views.

A plan is drawn on the CPU from one generator; whoever executes it, a data worker or a GPU, makes the same views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rekindle.views.batch import Crops
from rekindle.views.crops import Box, UniformStream, sample_boxes
from rekindle.views.options import ViewsOptions
from rekindle.views.photometric import Photometric, draw_photometric


@dataclass(frozen=True)
class ViewPlan:
    """All views of one image, in the order global 1, global 2, local 1, ...

    Attributes:
        image_size: (height, width) in pixels.
        boxes: where each view is cut.
        flips: (left-right, top-bottom) of each view, after cropping.
        chains: what happens to the colours of each view.
    """

    image_size: tuple[int, int]
    boxes: tuple[Box, ...]
    flips: tuple[tuple[bool, bool], ...]
    chains: tuple[Photometric, ...]

    def crops(self) -> Crops:
        """Boxes and flips as fractions of the image, fields [V]."""
        height, width = self.image_size
        # Divided in double precision: a crop's far edge then rounds to the image's.
        numbers = np.array(
            [(b.top / height, b.left / width, b.height / height, b.width / width, height, width) for b in self.boxes],
            np.float64,
        )
        top, left, extent_y, extent_x, *sizes = torch.from_numpy(numbers.T.astype(np.float32)).unbind(0)
        flipped, flipped_vertically = torch.from_numpy(np.array(self.flips, np.bool_).T.copy()).unbind(0)
        return Crops(top, left, extent_y, extent_x, flipped, flipped_vertically, *sizes)


@dataclass(frozen=True)
class PlannedBatch:
    """Decoded images of a batch and what is to be made of them.

    Attributes:
        pixels: uint8 [B, 3, H, W]; smaller images are padded below and at the right.
        plans: of each image.
        image_index: [B] int64, position of the image in the data source.
        skipped: source positions that could not be read and were replaced by the next readable image.
    """

    pixels: Tensor
    plans: tuple[ViewPlan, ...]
    image_index: Tensor
    skipped: tuple[int, ...] = ()

    def to(self, device: torch.device | str) -> PlannedBatch:
        """Move every tensor."""
        pixels, index = (value.to(device, non_blocking=True) for value in (self.pixels, self.image_index))
        return PlannedBatch(pixels, self.plans, index, self.skipped)


def collate_plans(samples: Sequence[tuple[int, tuple[int, ...], tuple[Tensor, ViewPlan]]]) -> PlannedBatch:
    """Make one batch of B samples (image index, indices skipped on the way to it, (image [3, H, W], plan))."""
    indices, skipped, planned = zip(*samples, strict=True)
    height, width = (max(plan.image_size[axis] for _, plan in planned) for axis in (0, 1))
    pixels = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)  # in memory as decoders write them
    pixels = pixels.permute(0, 3, 1, 2)
    for place, (image, plan) in zip(pixels, planned, strict=True):
        place[:, : plan.image_size[0], : plan.image_size[1]] = image
    return PlannedBatch(
        pixels=pixels,
        plans=tuple(plan for _, plan in planned),
        image_index=torch.tensor(indices, dtype=torch.int64),
        skipped=tuple(index for some in skipped for index in some),
    )


def draw_plan(image_size: tuple[int, int], options: ViewsOptions, generator: torch.Generator) -> ViewPlan:
    """Draw the plan of an image of (height, width); every random number comes from `generator`."""
    uniform = UniformStream(generator)
    boxes = sample_boxes(image_size, options, uniform)
    flips, chains = [], []
    for index in range(len(boxes)):
        flip = uniform.chance(options.hflip_p), uniform.chance(options.vflip_p)
        flips.append(flip if index or options.flip_first else (False, False))
        chains.append(draw_photometric(options, index, uniform))
    return ViewPlan(image_size, tuple(boxes), tuple(flips), tuple(chains))
