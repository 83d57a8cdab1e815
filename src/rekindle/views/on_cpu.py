# SPDX-License-Identifier: Apache-2.0
"""Views of one image, made in a data worker: crop, resize in bytes, flip, colours in 16-bit integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rekindle.views.crops import Box
from rekindle.views.integer_chain import Bytes, IntegerChain, Pixels
from rekindle.views.plan import ViewPlan

_RESIZE = torch.ops.aten._upsample_bicubic2d_aa.out
"""What `F.interpolate` calls, with the place for its result: of a small view, allocating and copying is a tenth of the time."""


class CpuExecutor:
    """Executes plans on bytes. Its memory is used again for every image: one thread at a time."""

    def __init__(self) -> None:
        self._chains: dict[int, IntegerChain] = {}
        self._image = self._crop = np.empty(0, np.int32)
        self._crop_bytes = torch.empty(0, dtype=torch.uint8)

    def __call__(
        self, image: UInt8[Tensor, "3 H W"], plan: ViewPlan, groups: Sequence[tuple[int, int]]
    ) -> list[UInt8[Tensor, "V 3 side side"]]:
        """Return the views of each group, in the plan's order. The image stays as it is; [H, W, 3] in memory is fastest.

        Args: groups, (number of views, their side in pixels) of the first views, the next ones, ...
        """
        made = [torch.empty(count, 3, side, side, dtype=torch.uint8) for count, side in groups]
        with torch.inference_mode():  # which saves a tenth of the time that it takes to find an operation
            pixels = self._packed(image)
            first = 0
            for (count, side), views in zip(groups, made, strict=True):
                self._make(pixels, plan, range(first, first + count), side, list(views.numpy()))
                first += count
        return made

    def _make(self, image: Pixels, plan: ViewPlan, views: range, side: int, outs: Sequence[Bytes]) -> None:
        if side not in self._chains:
            self._chains[side] = IntegerChain(side)
        chain = self._chains[side]
        # Those whose hue turns first: a chain that takes several views turns the hues of the first ones together.
        order = sorted(views, key=lambda view: plan.chains[view].hue_place is None)
        for start in range(0, len(order), chain.num_views):
            some = order[start : start + chain.num_views]
            for place, view in enumerate(some):
                self._cut(image, plan.boxes[view], plan.flips[view], chain, place)
            chain([plan.chains[view] for view in some], [outs[view - views.start] for view in some])

    def _packed(self, image: Tensor) -> Pixels:
        """[H, W], the three bytes of a pixel and one more in one number.

        The antialiased resize of four channels is a tenth faster than that of three, and its result is taken apart twice
        as fast. A pixel is read with the byte after it, which only the last one of the image does not have.
        """
        height, width = image.shape[1:]
        count = height * width
        if len(self._image) < count:
            self._image, self._crop = np.empty(count, np.int32), np.empty(count, np.int32)
            self._crop_bytes = torch.from_numpy(self._crop.view(np.uint8))
        source = image.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        pixels = self._image[:count]
        # Little-endian, like every machine that torch is built for.
        np.copyto(pixels[:-1], np.ndarray((count - 1,), np.int32, source, strides=(3,)))
        red, green, blue = source[-3:].tolist()
        pixels[-1] = red | green << 8 | blue << 16
        return pixels.reshape(height, width)

    def _cut(self, image: Pixels, box: Box, flip: tuple[bool, bool], chain: IntegerChain, place: int) -> None:
        """Resize and flip a crop into the chain's pixels."""
        height, width, side = box.height, box.width, chain.side
        crop = self._crop[: height * width].reshape(height, width)
        np.copyto(crop, image[box.top : box.top + height, box.left : box.left + width])
        channels = self._crop_bytes.as_strided((1, 4, height, width), (4 * height * width, 1, 4 * width, 4))
        into = chain.spare if any(flip) else place
        _RESIZE(channels, (side, side), False, None, None, out=chain.channels[into])
        if into != place:
            resized = chain.pixels[into]
            np.copyto(chain.pixels[place], resized[:: -1 if flip[1] else 1, :: -1 if flip[0] else 1])
