# SPDX-License-Identifier: Apache-2.0
"""The verdict as it was at bc97a06, to stand beside what it is now: percentiles of a bootstrap over items and seeds.

Both sides get the same items and evaluation seeds; training seeds are drawn for each side that has several. Groups are not
known, the level is that of every single interval, and the overall word is "better" if at least one verdict is and none is
worse. A class that only a prediction holds counts as an IoU of 0 for its side (`MeanIou.absent` "skip").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rekindle.calibration.worlds import Array
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.score import Rows, Score

Counts = NDArray[np.int64]


def score_before(score: Score) -> Score:
    """Return the score as it was counted."""
    return score.model_copy(update={"absent": "skip"}) if isinstance(score, MeanIou) else score


def interval_before(
    base: Sequence[Rows], model: Sequence[Rows], score: Score, *, resamples: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the ends of the interval of the difference.

    Args:
        base: a training, or several, each [S, n, F].
        model: the same of the other side.
        score: as it is now; counted as it was.
        resamples: number of draws.
        level: of the interval.

    """
    draws = draws_before(base, model, score, resamples=resamples)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def draws_before(base: Sequence[Rows], model: Sequence[Rows], score: Score, *, resamples: int) -> Array:
    """Return the differences [R]: of a comparison, of the trainings of a matrix with their start, or of two rows of matrices."""
    num_seeds, num_items = base[0].shape[:2]
    purpose = "rows" if len(base) > 1 else "bootstrap"
    items, seeds, *trainings = _counts(purpose, resamples, num_items, num_seeds, len(model), len(base))
    counted = score_before(score)
    sides = []
    for side, drawn in zip((model, base), trainings, strict=True):
        each = [(counted.over(rows, items) * seeds).sum(axis=1) / num_seeds for rows in side]
        weights = drawn if len(side) > 1 else np.ones_like(drawn)
        sides.append(sum(weights[:, k] * values for k, values in enumerate(each)) / len(side))
    return np.asarray(sides[0] - sides[1])


def word_before(low: float, high: float, score: Score) -> str:
    """Say what the interval means."""
    if low <= 0 <= high:
        return "no difference"
    if not score.is_judged:
        return "different"
    return "better" if (low > 0) == score.higher_is_better else "worse"


def overall_before(words: Mapping[str, str]) -> str:
    """One word over several."""
    has_better, has_worse = ("better" in words.values(), "worse" in words.values())
    if has_better and has_worse:
        return "mixed"
    return "better" if has_better else "worse" if has_worse else "no difference"


@lru_cache(maxsize=64)
def _counts(purpose: str, resamples: int, *sizes: int) -> list[Counts]:
    """How often each of n things is drawn [R, n], for every n; the same in every call, as every verdict had the same draws."""
    source = np.random.default_rng(derived_seed(0, purpose))
    return [source.multinomial(n, np.full(n, 1.0 / n), size=resamples) for n in sizes]
