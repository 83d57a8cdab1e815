# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap of two models on the same images and seeds: better, no difference, or worse.

A resample draws images with replacement, and seeds with replacement as well, so that the interval covers both
the choice of images and the training of the heads (a hierarchical bootstrap). Both sides always get the same
draw. The score is computed anew from the rows of every resample and averaged over its seeds.
With one seed the interval covers the images alone; with few seeds it somewhat understates what others would
change.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.score import Rows, Score

Words = Literal["better", "no difference", "worse", "different"]
BLOCK_BYTES = 64 << 20


class Verdict(Options):
    """One model against the base."""

    verdict: Words
    """Better or worse where the whole interval is on the good or the bad side of zero; different where no side is good."""
    difference: float
    """Model minus base, each the mean over the seeds."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    level: float
    """Coverage of the interval."""
    base: float
    """Mean of the base over the seeds."""
    model: float
    """Mean of the model over the seeds."""
    base_std: float
    """Standard deviation over the seeds (n - 1); 0 with one seed."""
    model_std: float
    """Standard deviation over the seeds (n - 1); 0 with one seed."""
    per_class: dict[str, float]
    """Difference of each part of the score (the class's IoU), mean over the seeds; without parts that a side does not
    define. Empty for a score without parts."""


def paired_bootstrap(
    base: Rows,
    model: Rows,
    score: Score,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare two models.

    Args:
        base: [S, n, F] rows of S seeds on n items.
        model: the same seeds and items of the other model.
        score: what the rows come to.
        level: of the percentile interval.
        resamples: number of draws.
        seed: of the draws.

    Raises: RequestError if the shapes differ.

    """
    if base.shape != model.shape:
        raise RequestError(
            f"the two sides were not evaluated on the same seeds, items and classes: {base.shape} and {model.shape}"
        )
    base_values, model_values = (np.array([score.value(rows) for rows in side]) for side in (base, model))
    draws = bootstrap_differences(base, model, score, resamples=resamples, seed=seed)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Verdict(
        verdict=words(low, high, score),
        difference=float(model_values.mean() - base_values.mean()),
        low=low,
        high=high,
        level=level,
        base=float(base_values.mean()),
        model=float(model_values.mean()),
        base_std=deviation(base_values),
        model_std=deviation(model_values),
        per_class=_per_part(base, model, score),
    )


def words(low: float, high: float, score: Score) -> Words:
    """Say what an interval of a difference means for a score."""
    if low <= 0 <= high:
        return "no difference"
    if not score.is_judged:
        return "different"
    return "better" if (low > 0) == score.higher_is_better else "worse"


def draw_counts(num_items: int, resamples: int, source: np.random.Generator) -> NDArray[np.int64]:
    """Count how often each item is drawn in each resample: [R, n], rows sum to n."""
    return source.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=resamples)


def bootstrap_differences(base: Rows, model: Rows, score: Score, *, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the differences of the resamples [R]; both sides see the same items and seeds."""
    num_seeds, num_items = base.shape[:2]
    source = np.random.default_rng(derived_seed(seed, "bootstrap"))
    items = draw_counts(num_items, resamples, source)
    seeds = draw_counts(num_seeds, resamples, source)
    return resampled(model, score, items, seeds) - resampled(base, score, items, seeds)


def resampled(side: Rows, score: Score, items: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the score of each resample [R], averaged over its seeds.

    Args:
        side: [S, n, F].
        score: what rows come to.
        items: [R, n], how often each item is drawn.
        seeds: [R, S], how often each seed is.

    """
    num_seeds, _, width = side.shape
    block = max(1, BLOCK_BYTES // (8 * num_seeds * width))
    parts = []
    for first in range(0, len(items), block):
        drawn = slice(first, first + block)
        parts.append((score.over(side, items[drawn]) * seeds[drawn]).sum(axis=1) / num_seeds)
    return np.concatenate(parts)


def deviation(values: NDArray[np.float64]) -> float:
    """Standard deviation (n - 1); 0 of a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _per_part(base: Rows, model: Rows, score: Score) -> dict[str, float]:
    sides = [[score.parts(rows) for rows in side] for side in (base, model)]
    known = [name for name in sides[0][0] if all(name in found for side in sides for found in side)]
    means = [{name: float(np.mean([found[name] for found in side])) for name in known} for side in sides]
    return {name: means[1][name] - means[0][name] for name in known}
