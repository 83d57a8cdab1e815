# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur of views whose levels are 16-bit integers."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from rekindle.views.photometric import gaussian_weights

Levels = np.ndarray[Any, np.dtype[np.int16]]

_SIGMA_STEPS = 128  # a pixel in so many sigmas, so that few sets of weights are computed again and again
_HALF = torch.tensor(128, dtype=torch.int16)


class IntegerBlur:
    """Blurs square views of one size. Its memory is used again, and a result lasts until the next call."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._padded: list[tuple[torch.Tensor, Levels]] = []

    def __call__(self, view: Levels, sigma: float) -> Levels:
        """Blur [C, side, side], levels counted from 128, by two passes of weighted sums over one flat array.

        A neighbour along an axis lies a fixed step away in memory, so a pass is one long multiply-add per weight. Sums
        that run over the end of a row fall into the padding and are never looked at.
        """
        weights = blur_weights(max(1, round(sigma * _SIGMA_STEPS)) / _SIGMA_STEPS, self._side)
        radius, side, channels = len(weights) // 2, self._side, len(view)
        if radius == 0:
            return view
        width = side + 2 * radius
        count = channels * width * width
        (padded, padded_levels), (rows, rows_levels) = self._padding(3 * width * width)
        frame = padded_levels[:count].reshape(channels, width, width)
        inner = frame[:, radius : radius + side]
        inner[:, :, radius : radius + side] = view
        inner[:, :, :radius] = view[:, :, radius:0:-1]
        inner[:, :, radius + side :] = view[:, :, _mirrored(side, radius)]
        frame[:, :radius] = frame[:, 2 * radius : radius : -1]
        frame[:, radius + side :] = inner[:, _mirrored(side, radius)]
        count -= 2 * radius * width
        _weighted_sum(padded, rows, rows_levels, weights, width, count)
        _weighted_sum(rows, padded, padded_levels, weights, 1, count - 2 * radius)
        return frame[:, :side, :side]

    def _padding(self, count: int) -> list[tuple[torch.Tensor, Levels]]:
        """Two flat arrays of at least `count` levels, each as torch and as numpy see it."""
        if not self._padded or len(self._padded[0][1]) < count:
            arrays = [aligned(count) for _ in range(2)]
            self._padded = [(torch.from_numpy(array), array) for array in arrays]
        return self._padded


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


def _weighted_sum(
    source: torch.Tensor, out: torch.Tensor, levels: Levels, weights: tuple[int, ...], step: int, count: int
) -> None:
    """Write the sum of weights[k] * source[i + k * step] / 256 into out[i], i < count, which `levels` shows too."""
    total: torch.Tensor | None = None
    for weight, shifted in zip(weights, source.as_strided((len(weights), count), (step, 1)).unbind(0), strict=True):
        if total is None:
            total = torch.add(_HALF, shifted, alpha=weight, out=out[:count])  # the shift below rounds down
        else:
            total.add_(shifted, alpha=weight)
    np.right_shift(levels[:count], 8, out=levels[:count])


def aligned(*shape: int) -> Levels:
    """Memory that begins where a cache line does, as torch's does and numpy's does not."""
    levels: Levels = torch.zeros(shape, dtype=torch.int16).numpy()
    return levels
