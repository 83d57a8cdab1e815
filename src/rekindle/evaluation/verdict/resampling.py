# SPDX-License-Identifier: Apache-2.0
"""Resamples of a bootstrap: how often each item, group or seed is drawn, and the score of every draw. Torch-free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rekindle.evaluation.scores.score import Rows, Score, Values

Counts = NDArray[np.int64]
BLOCK_BYTES = 64 << 20


def draw_counts(num_units: int, resamples: int, source: np.random.Generator) -> Counts:
    """Count how often each unit is drawn in each resample: [R, n], rows sum to n."""
    return source.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=resamples)


def score_draws(side: Rows, score: Score, units: Counts, groups: NDArray[np.int64] | None) -> Values:
    """Score every seed in every resample: [R, S].

    Args:
        side: [S, n, F], S measurements of n items.
        score: what rows come to.
        units: [R, U], how often each unit is drawn: an item, or a group with all its items.
        groups: [n], the group of each item; None where each item is a unit.

    """
    num_seeds, num_items, width = side.shape
    block = max(1, BLOCK_BYTES // (8 * max(num_seeds * width, num_items)))
    parts = []
    for first in range(0, len(units), block):
        drawn = units[first : first + block]
        parts.append(score.over(side, drawn if groups is None else drawn[:, groups]))
    return np.concatenate(parts)
