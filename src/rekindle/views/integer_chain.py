# SPDX-License-Identifier: Apache-2.0
"""The photometric chain of one view in 16-bit integers, for a data worker.

A level of 0 .. 255 is kept as int16, less 128. Sixteen bits then hold the product of a level with a factor of eight
fractional bits, so brightness, contrast, saturation, hue and blur are multiply, add, shift: twice as many numbers per
instruction and per byte of cache as float32, and right to about a third of a level. Numpy adds two arrays in half the time
that torch takes to find its kernel, which counts for views of 96 pixels; torch is used where it fuses (multiply-add, clamp).

An intermediate may wrap around: arithmetic modulo 2^16 is exact as long as the result fits, and that is seen to here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rekindle.views.integer_blur import IntegerBlur, Levels, aligned
from rekindle.views.photometric import LUMA, JitterStep, Photometric

Pixels = np.ndarray[Any, np.dtype[np.int32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_CENTRE = np.array(128, np.uint8)
_CENTRES = np.array(0x80808080, np.uint32).view(np.int32)  # of the four bytes of a pixel
_BLACK, _WHITE = -128, 127
_LUMA_256 = (77, 150, 29)  # LUMA in 256ths, with sum 256: grey stays what it is
_HALF = np.array(64, np.int16)
_MOST_BITS = 7  # fractional bits of a factor; fewer where the result would not fit
_SHIFTS = [np.array(bits, np.int16) for bits in range(16)]  # numpy takes twice as long to be told a Python number
_BYTE = np.array(8, np.int32)
_COLUMN_LENGTH = 32  # levels that are added in 16 bits, most of them
_PIXELS_AT_ONCE = 102_400  # more is not faster: the arrays are long enough, and leave the second cache
_VIEWS_AT_ONCE = 64


class IntegerChain:
    """Applies chains to square views of one size, a few at once, because calling an operation costs as much as 9000 pixels.

    Its memory is used again for the next views: one thread at a time.

    Attributes:
        num_views: views that it takes at most in one call.
        pixels: [num_views + 1, side, side], where the caller puts the views of the next call; each number is red + 256 green
            + 65536 blue, and what is in the topmost byte does not matter.
        channels: the same memory as torch sees it, each uint8 [1, 4, side, side].
        spare: number of the place that is nobody's.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        count = side * side
        self.num_views = min(_VIEWS_AT_ONCE, max(1, _PIXELS_AT_ONCE // count))
        self.spare = self.num_views
        self.pixels: Pixels = np.empty((self.num_views + 1, side, side), np.int32)
        channels = torch.from_numpy(self.pixels.view(np.uint8)).view(-1, side, side, 4).permute(0, 3, 1, 2)
        self.channels = torch.split(channels, 1)
        self._bytes = np.empty((self.num_views, 3, count), np.uint8)
        self._levels = aligned(self.num_views, 3, count)
        self._levels_torch = torch.from_numpy(self._levels)
        self._turned = aligned(self.num_views, 3, count)
        self._planes = [aligned(self.num_views, 1, count) for _ in range(4)]
        self._views = [_View(levels, side) for levels in self._levels]
        self._number = np.zeros((), np.int16)
        self._number_torch = torch.from_numpy(self._number)
        self._scratch = aligned(count)
        self._scratch_torch = torch.from_numpy(self._scratch)
        self._blur = IntegerBlur(side)

    def __call__(self, chains: Sequence[Photometric], outs: Sequence[Bytes]) -> None:
        """Write each of the views in `pixels` into one of `outs` [3, side, side]. Views whose hue turns come first."""
        self._load(len(chains))
        self._jitter(chains)
        for view, chain, out in zip(self._views, chains, outs, strict=False):
            square = view.square
            if chain.is_grey:
                self._grey(view)
                square = square[:1]  # the blur of one plane does for three
            if chain.blur_sigma > 0:
                square = self._blur(square, chain.blur_sigma)
            np.copyto(out, square, casting="unsafe")  # keeps the low byte
            np.bitwise_xor(out, _CENTRE, out=out)
            if chain.is_solarized:
                np.minimum(out, np.invert(out), out=out)  # the complement 255 - x is the lesser from 128 on

    def _load(self, count: int) -> None:
        """Take the channels of `count` views apart."""
        # Shifts of whole pixels are twice as fast as copying every fourth byte.
        pixels, planes = self.pixels[:count].reshape(count, -1), self._bytes[:count]
        np.bitwise_xor(pixels, _CENTRES, out=pixels)  # as int8, what is less 128
        for channel in range(3):
            if channel:
                np.right_shift(pixels, _BYTE, out=pixels)
            np.copyto(planes[:, channel], pixels, casting="unsafe")
        np.copyto(self._levels[:count], planes.view(np.int8))

    def _jitter(self, chains: Sequence[Photometric]) -> None:
        """Run each view's steps up to its hue, then all hues together, then the other steps."""
        turns: list[float] = []
        rest: list[tuple[_View, _Affine, tuple[JitterStep, ...]]] = []
        for view, chain in zip(self._views, chains, strict=False):
            place = chain.hue_place
            if place is None:
                self._carry_out(view, self._run(view, _Affine(), chain.jitter))
                continue
            due = self._run(view, _Affine(), chain.jitter[:place])
            if due.grey:  # hue and the other two can change places, hue and saturation cannot
                due = self._carry_out(view, due)
            turns.append(chain.jitter[place][1])
            rest.append((view, due, chain.jitter[place + 1 :]))
        if turns:
            self._hue(turns)
        for view, due, steps in rest:
            self._carry_out(view, self._run(view, due, steps))

    def _run(self, view: _View, due: _Affine, steps: tuple[JitterStep, ...]) -> _Affine:
        for name, value in steps:
            if name == "brightness":
                due.scale(value, 128 * value - 128)
            elif name == "contrast":
                mean = (due.own + due.grey) * view.mean_grey() + due.offset
                due.scale(value, (1 - value) * mean)
            else:
                due.saturate(value)
            if due.low < _BLACK or due.high > _WHITE:
                due = self._carry_out(view, due)
        return due

    def _carry_out(self, view: _View, due: _Affine) -> _Affine:
        """Apply what is due to the levels, cut them to black and white, and return that nothing is due."""
        if due.is_nothing:
            return due
        bits, own, grey, offset = due.in_fixed_point()
        levels, added = view.levels_torch, self._number_torch
        self._number.fill((offset + 32768) % 65536 - 32768)
        low, high = own * _BLACK + offset, own * _WHITE + offset
        if grey:
            low, high = low - 128 * abs(grey), high + 128 * abs(grey)
            red, blue = round(LUMA[0] * grey), round(LUMA[2] * grey)
            added = self._sum(view, (red, grey - red - blue, blue))
        torch.add(added, levels, alpha=own, out=levels)
        np.right_shift(view.levels, _SHIFTS[bits], out=view.levels)
        if low < _BLACK << bits or high >= (_WHITE + 1) << bits:
            levels.clamp_(_BLACK, _WHITE)
        return _Affine()

    def _sum(self, view: _View, weights: tuple[int, int, int]) -> torch.Tensor:
        """Weighted sum of the channels, plus `_number`, in memory that the next sum overwrites."""
        total = self._scratch_torch
        torch.add(self._number_torch, view.red, alpha=weights[0], out=total)
        return total.add_(view.green, alpha=weights[1]).add_(view.blue, alpha=weights[2])

    def _grey(self, view: _View) -> None:
        """Put the grey levels in the place of the red ones."""
        self._number.fill(128)  # one half: the shift rounds down
        self._sum(view, _LUMA_256)
        np.right_shift(self._scratch, _SHIFTS[8], out=view.levels[0])

    def _hue(self, turns: Sequence[float]) -> None:
        """Turn the hue of each view by moving along the hexagon of HSV, without computing a hue or dividing.

        Let d be the range of a pixel's channels and m the middle one. Turned by s sextants, |s| <= 1, a channel c becomes
        2c - m - o s d, cut to the pixel's least and greatest channel; o is 1 for red where green >= blue and else -1, and
        so on cyclically. For at s = 0 the two outer channels overshoot and are cut back to what they are, and along the
        hexagon one channel at a time moves, d per sextant. Two sextants exchange the channels.
        """
        count = len(turns)
        levels, turned = self._levels[:count], self._turned[:count]
        factors = np.empty((count, 1, 1), np.int16)
        for index, turn in enumerate(turns):
            thirds = round(3 * turn)
            factors[index] = round(128 * (6 * turn - 2 * thirds))
            if thirds % 3:
                levels[index] = levels[index, [-thirds % 3, (1 - thirds) % 3, (2 - thirds) % 3]]
        red, green, blue = levels[:, 0:1], levels[:, 1:2], levels[:, 2:3]
        most, least, middle, shift = (plane[:count] for plane in self._planes)
        np.minimum(red, green, out=least)
        np.maximum(red, green, out=most)
        np.minimum(most, blue, out=middle)
        np.maximum(middle, least, out=middle)
        np.maximum(most, blue, out=most)
        np.minimum(least, blue, out=least)
        np.subtract(most, least, out=shift)
        np.multiply(shift, factors, out=shift)
        np.add(shift, _HALF, out=shift)
        np.right_shift(shift, _SHIFTS[7], out=shift)
        for channel, (one, other) in enumerate(((green, blue), (blue, red), (red, green))):
            np.subtract(one, other, out=turned[:, channel : channel + 1])
        np.right_shift(turned, _SHIFTS[15], out=turned)  # all bits set where the difference is negative: where o = -1
        np.add(middle, shift, out=middle)
        np.add(shift, shift, out=shift)
        np.bitwise_and(turned, shift, out=turned)
        np.subtract(turned, middle, out=turned)
        levels_torch = self._levels_torch[:count]
        torch.add(torch.from_numpy(turned), levels_torch, alpha=2, out=levels_torch)
        torch.clamp(levels_torch, torch.from_numpy(least), torch.from_numpy(most), out=levels_torch)


class _View:
    """The levels of one view, [3, side * side], as numpy and as torch see them."""

    def __init__(self, levels: Levels, side: int) -> None:
        self.levels = levels
        self.square = levels.reshape(3, side, side)
        self.levels_torch = torch.from_numpy(levels)
        self.red, self.green, self.blue = self.levels_torch.unbind(0)
        count = side * side
        column = next(length for length in range(_COLUMN_LENGTH, 0, -1) if count % length == 0)
        self._columns = levels.reshape(3, column, -1)
        self._count = count

    def mean_grey(self) -> float:
        """Mean of the grey levels."""
        # A few levels need no wider type, to which numpy would convert each first.
        sums = np.add.reduce(self._columns, axis=1, dtype=np.int16)
        red, green, blue = np.add.reduce(sums, axis=1, dtype=np.int64).tolist()
        return float(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / self._count


class _Affine:
    """Levels x and their grey g are due to become own * x + grey * g + offset, all counted from 128.

    Brightness, contrast and saturation are such maps, so those between which nothing is cut to black or white become one.
    `low` and `high` bound the result.
    """

    __slots__ = ("grey", "high", "is_nothing", "low", "offset", "own")

    def __init__(self) -> None:
        self.own, self.grey, self.offset = 1.0, 0.0, 0.0
        self.low, self.high = float(_BLACK), float(_WHITE)
        self.is_nothing = True

    def scale(self, factor: float, offset: float) -> None:
        """Then every level times `factor`, plus `offset`."""
        self.own, self.grey, self.offset = factor * self.own, factor * self.grey, factor * self.offset + offset
        self.low, self.high = factor * self.low + offset, factor * self.high + offset
        self.is_nothing = False

    def saturate(self, factor: float) -> None:
        """Then every level drawn away from its grey by `factor`."""
        own = factor * self.own
        self.own, self.grey = own, self.own + self.grey - own
        if factor > 1:
            spread = (factor - 1) * (self.high - self.low)
            self.low, self.high = self.low - spread, self.high + spread
        self.is_nothing = False

    def in_fixed_point(self) -> tuple[int, int, int, int]:
        """Return bits, and own, grey and offset times 2^bits, with one half in the offset because a shift rounds down.

        As many bits as let 16 hold the result.
        """
        farthest = max(-self.low, self.high) + 3  # and what rounding the factors may add
        bits = _MOST_BITS
        while farthest * (1 << bits) > 32767 and bits:
            bits -= 1
        one = 1 << bits
        own = round(self.own * one)
        grey = round((self.own + self.grey) * one) - own if self.grey else 0  # their sum is what grey pixels see
        return bits, own, grey, round(self.offset * one) + (one >> 1)
