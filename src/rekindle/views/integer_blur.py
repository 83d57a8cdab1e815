# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur of views whose levels are 16-bit integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from rekindle.views.photometric import gaussian_weights

Levels = np.ndarray[Any, np.dtype[np.int16]]

_SIGMA_STEPS = 128  # a pixel in so many sigmas, so that few sets of weights are computed again and again
_HALF = torch.tensor(128, dtype=torch.int16)
_BITS = np.array(8, np.int16)  # of the weights


class IntegerBlur:
    """Blurs square views of one size. Its memory is used again, and a result lasts until the next call."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._memory: list[_Row] = []
        self._frames: dict[tuple[int, int], _Frame] = {}

    def __call__(self, view: Levels, sigma: float) -> Levels:
        """Blur [C, side, side], levels counted from 128, with C at most 3."""
        weights = blur_weights(max(1, round(sigma * _SIGMA_STEPS)) / _SIGMA_STEPS, self._side)
        radius = len(weights) // 2
        if radius == 0:
            return view
        frame = self._frames.get((len(view), radius))
        if frame is None:
            frame = self._frames[len(view), radius] = self._frame(len(view), radius)
        return frame.blur(view, weights[radius:])

    def _frame(self, channels: int, radius: int) -> _Frame:
        count = 3 * (self._side + 2 * radius) ** 2
        if not self._memory or len(self._memory[0].levels) < count:
            self._memory = [_Row(aligned(count)) for _ in range(3)]
            self._frames.clear()  # they lie in the memory of before
        return _Frame(channels, self._side, radius, *self._memory)


class _Row:
    """Levels one after another, as numpy and as torch see them."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.torch = torch.from_numpy(levels)


class _Frame:
    """Views with reflected borders of one width as one flat array, and every slice of it that a blur reads or writes.

    A neighbour along an axis lies a fixed step away, so a pass is a weighted sum of shifted copies of the whole array. Sums
    that run over the end of a row fall into the border and are never looked at. Slices are made once: one costs as much
    as adding 4000 levels.
    """

    def __init__(self, channels: int, side: int, radius: int, source: _Row, rows: _Row, pairs: _Row) -> None:
        width = side + 2 * radius
        count = channels * width * width
        frame = source.levels[:count].reshape(channels, width, width)
        across = frame[:, radius : radius + side]
        self._inner = across[:, :, radius : radius + side]
        mirrored = _mirrored(side, radius)
        self._borders = [
            (across[:, :, :radius], self._inner[:, :, radius:0:-1]),
            (across[:, :, radius + side :], self._inner[:, :, mirrored]),
            (frame[:, :radius], frame[:, 2 * radius : radius : -1]),
            (frame[:, radius + side :], across[:, mirrored]),
        ]
        count -= 2 * radius * width
        self._passes = [
            _Pass(source, rows, pairs, radius, width, count),
            _Pass(rows, source, pairs, radius, 1, count - 2 * radius),
        ]
        self._blurred = frame[:, :side, :side]

    def blur(self, view: Levels, weights: Sequence[int]) -> Levels:
        """Blur along both axes with weights in 256ths, from the middle one outwards."""
        np.copyto(self._inner, view)
        for border, reflected in self._borders:
            np.copyto(border, reflected)
        for along in self._passes:
            along(weights)
        return self._blurred


class _Pass:
    """Writes the sum of weights[k] * (source[i - k * step] + source[i + k * step]) / 256 into out[i - radius * step].

    Two neighbours of one weight are added first: numpy adds in half the time of torch's multiply-add.
    """

    def __init__(self, source: _Row, out: _Row, pairs: _Row, radius: int, step: int, count: int) -> None:
        self._pair = _Row(pairs.levels[:count])
        self._out = _Row(out.levels[:count])
        centre = radius * step
        self._centre = source.torch[centre : centre + count]
        self._neighbours = [
            (source.levels[centre - away : centre - away + count], source.levels[centre + away : centre + away + count])
            for away in range(step, centre + 1, step)
        ]

    def __call__(self, weights: Sequence[int]) -> None:
        total, pair = self._out.torch, self._pair
        torch.add(_HALF, self._centre, alpha=weights[0], out=total)  # one half: the shift rounds down
        for (before, after), weight in zip(self._neighbours, weights[1:], strict=True):
            np.add(before, after, out=pair.levels)
            total.add_(pair.torch, alpha=weight)
        np.right_shift(self._out.levels, _BITS, out=self._out.levels)


@lru_cache(maxsize=4096)
def blur_weights(sigma: float, side: int) -> tuple[int, ...]:
    """Weights of a Gaussian in 256ths, with sum 256 and no zeros at the ends; a single 256 for a sigma without effect.

    They are rounded as running sums from outside inwards, which keeps the spread, and not only each weight, right.
    """
    radius = min(math.ceil(3 * sigma), side - 1)  # a reflection reaches at most to the far border
    tail, rounded = 0.0, [0]
    for weight in gaussian_weights(sigma, radius)[:radius]:
        tail += 256 * weight
        rounded.append(round(tail))
    half = [after - before for before, after in pairwise(rounded)]
    while half and half[0] == 0:
        half.pop(0)
    return (*half, 256 - 2 * rounded[-1], *reversed(half))


def _mirrored(side: int, radius: int) -> slice:
    """The `radius` places before the last one, from right to left."""
    last = side - 2 - radius
    return slice(side - 2, last if last >= 0 else None, -1)


def aligned(*shape: int) -> Levels:
    """Memory that begins where a cache line does, as torch's does and numpy's does not."""
    levels: Levels = torch.zeros(shape, dtype=torch.int16).numpy()
    return levels
