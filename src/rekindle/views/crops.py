# SPDX-License-Identifier: Apache-2.0
"""Random resized crops, and how those of one image relate.

Plain Python numbers: a box is a few multiplications; with tensors it would cost a hundred times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch

from rekindle.views.options import ViewsOptions

_FIT_TRIES = 10  # as in torchvision's RandomResizedCrop
_OVERLAP_TRIES = 20


class UniformStream:
    """Uniform numbers of a generator as Python floats, in blocks: a draw of one number costs as much.

    Attributes:
        unit: returns the next number in [0, 1).
    """

    def __init__(self, generator: torch.Generator, block: int = 256) -> None:
        self.unit: Callable[[], float] = chain.from_iterable(_blocks(generator, block)).__next__

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, count: int) -> int:
        """Return an integer in 0 .. count - 1."""
        return min(int(self.unit() * count), count - 1)

    def chance(self, probability: float) -> bool:
        """Return True with this probability; it always draws, so later draws do not depend on it."""
        return self.unit() < probability


def _blocks(generator: torch.Generator, block: int) -> Iterator[Iterator[float]]:
    while True:
        yield reversed(torch.rand(block, generator=generator, dtype=torch.float64).tolist())


class Box(NamedTuple):
    """A crop in whole pixels of its image."""

    top: int
    left: int
    height: int
    width: int


def shared_area(a: Box, b: Box) -> int:
    """Count the pixels that two boxes have in common."""
    height = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    return max(0, height) * max(0, width)


def sample_box(
    image_size: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    uniform: UniformStream,
) -> Box:
    """Draw a random resized crop: area uniform, aspect log-uniform, place uniform.

    After ten sizes that do not fit, it is the largest central crop with an aspect (width / height) in range.

    Args: image_size (height, width) in pixels; scale, range of the area as a share of the image.
    """
    image_height, image_width = image_size
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_FIT_TRIES):
        area = image_height * image_width * uniform.between(*scale)
        ratio = math.exp(uniform.between(low, high))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= image_height and 0 < width <= image_width:
            top, left = uniform.integer(image_height - height + 1), uniform.integer(image_width - width + 1)
            return Box(top, left, height, width)
    ratio = min(max(image_width / image_height, aspect[0]), aspect[1])
    height = max(1, min(image_height, round(image_width / ratio)))
    width = max(1, min(image_width, round(image_height * ratio)))
    return Box((image_height - height) // 2, (image_width - width) // 2, height, width)


def sample_boxes(image_size: tuple[int, int], options: ViewsOptions, uniform: UniformStream) -> list[Box]:
    """Draw the boxes of all views of one image, in the order global 1, global 2, local 1, ..."""
    if options.nested:
        outer = sample_box(image_size, options.global_scale, options.aspect_ratio, uniform)
        scales = [options.second_scale or options.global_scale] + [options.local_scale] * options.num_local
        return [outer, *(_inside(outer, scale, options, uniform) for scale in scales)]
    large = _global_pair(image_size, options, uniform)
    return [*large, *(_local(image_size, options, uniform, large) for _ in range(options.num_local))]


def _inside(outer: Box, scale: tuple[float, float], options: ViewsOptions, uniform: UniformStream) -> Box:
    box = sample_box((outer.height, outer.width), scale, options.aspect_ratio, uniform)
    return box._replace(top=outer.top + box.top, left=outer.left + box.left)


def shift_towards(box: Box, target: Box) -> Box:
    """Translate `box`, as little as possible, until each axis overlaps `target` by half of the smaller side.

    UDI's rule. The box stays inside the image that holds both: it only moves towards the target.
    """
    top = _shifted(box.top, box.height, target.top, target.height)
    left = _shifted(box.left, box.width, target.left, target.width)
    return box._replace(top=top, left=left)


def _shifted(start: int, extent: int, target_start: int, target_extent: int) -> int:
    needed = (min(extent, target_extent) + 1) // 2
    return min(max(start, target_start + needed - extent), target_start + target_extent - needed)


def _global_pair(image_size: tuple[int, int], options: ViewsOptions, uniform: UniformStream) -> tuple[Box, Box]:
    def draw() -> tuple[Box, Box]:
        first = sample_box(image_size, options.global_scale, options.aspect_ratio, uniform)
        second = options.second_scale or options.global_scale
        return first, sample_box(image_size, second, options.aspect_ratio, uniform)

    best = draw()
    if options.overlap == "shift":
        return best[0], shift_towards(best[1], best[0])
    if options.overlap == "reject":
        needed = options.min_overlap * image_size[0] * image_size[1]
        for _ in range(_OVERLAP_TRIES):
            if shared_area(*best) >= needed:
                break
            best = max(best, draw(), key=lambda pair: shared_area(*pair))
    return best


def _local(image_size: tuple[int, int], options: ViewsOptions, uniform: UniformStream, large: tuple[Box, Box]) -> Box:
    def draw() -> Box:
        return sample_box(image_size, options.local_scale, options.aspect_ratio, uniform)

    best = draw()
    if options.overlap == "reject":
        needed = 0.5 * options.min_overlap * image_size[0] * image_size[1]
        for _ in range(_OVERLAP_TRIES):
            if max(shared_area(best, box) for box in large) >= needed:
                break
            best = max(best, draw(), key=lambda small: max(shared_area(small, box) for box in large))
    return best
