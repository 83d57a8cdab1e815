# SPDX-License-Identifier: Apache-2.0
"""Views of one image, made in a data worker: crop, resize in bytes, flip, colours in 16-bit integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from rekindle.views.crops import Box
from rekindle.views.integer_chain import IntegerChain, Pixels
from rekindle.views.plan import ViewPlan


class CpuExecutor:
    """Executes plans on bytes. Its memory is used again for every image: one thread at a time."""

    def __init__(self) -> None:
        self._chains: dict[int, IntegerChain] = {}
        self._memory: dict[str, Pixels] = {}

    def __call__(
        self, image: UInt8[Tensor, "3 H W"], plan: ViewPlan, groups: Sequence[tuple[int, int]]
    ) -> list[UInt8[Tensor, "V 3 side side"]]:
        """Return the views of each group, in the plan's order. The image stays as it is; [H, W, 3] in memory is fastest.

        Args: groups, (number of views, their side in pixels) of the first views, the next ones, ...
        """
        pixels = self._packed(image)
        made, first = [], 0
        for count, side in groups:
            views = torch.empty(count, 3, side, side, dtype=torch.uint8)
            if side not in self._chains:
                self._chains[side] = IntegerChain(side)
            chain = self._chains[side]
            outs = list(views.numpy())
            # Those whose hue turns first: a chain that takes several views turns the hues of the first ones together.
            order = sorted(range(count), key=lambda i: not plan.chains[first + i].turns_hue)
            for start in range(0, count, chain.num_views):
                some = order[start : start + chain.num_views]
                for place, view in enumerate(some):
                    chain.load(place, self._cut(pixels, plan.boxes[first + view], plan.flips[first + view], side))
                chain([plan.chains[first + view] for view in some], [outs[view] for view in some])
            made.append(views)
            first += count
        return made

    def _packed(self, image: Tensor) -> Pixels:
        """[H, W], the three bytes of a pixel and one more in one number.

        The antialiased resize of four channels is a tenth faster than that of three, and its result is taken apart twice
        as fast. A pixel is read with the byte after it, which only the last one of the image does not have.
        """
        height, width = image.shape[1:]
        source = image.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        pixels = self._borrow("image", height * width)
        # Little-endian, like every machine that torch is built for.
        np.copyto(pixels[:-1], np.ndarray((height * width - 1,), np.int32, source, strides=(3,)))
        red, green, blue = source[-3:].tolist()
        pixels[-1] = red | green << 8 | blue << 16
        return pixels.reshape(height, width)

    def _cut(self, image: Pixels, box: Box, flip: tuple[bool, bool], side: int) -> Pixels:
        """Resize and flip a crop, [side, side]."""
        height, width = box.height, box.width
        crop = self._borrow("crop", height * width).reshape(height, width)
        np.copyto(crop, image[box.top : box.top + height, box.left : box.left + width])
        channels = torch.from_numpy(crop.view(np.uint8)).as_strided(
            (1, 4, height, width), (4 * height * width, 1, 4 * width, 4)
        )
        view = F.interpolate(channels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        resized: Pixels = view.permute(0, 2, 3, 1).numpy().view(np.int32).reshape(side, side)
        if flip[0]:
            resized = np.ascontiguousarray(resized[:, ::-1])
        return resized[::-1] if flip[1] else resized

    def _borrow(self, purpose: str, count: int) -> Pixels:
        if purpose not in self._memory or len(self._memory[purpose]) < count:
            self._memory[purpose] = np.empty(count, np.int32)
        return self._memory[purpose][:count]
