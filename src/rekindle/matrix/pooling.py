# SPDX-License-Identifier: Apache-2.0
"""Several trainings of one kind against their start: the mean, its spread over training seeds, an interval, a verdict.

The value of a kind is the score of each (training seed, evaluation seed), averaged. A resample of the bootstrap draws items,
evaluation seeds and training seeds, each with replacement and each on its own; model and start get the same items and
evaluation seeds, and the start has no training seeds. So the interval covers the choice of items, the training of the heads
and the training of the backbones. With one training seed it covers items and heads alone, and is that of `rekindle compare`;
with two or three it still understates what other training seeds would change.

Where heads are as long to train as the backbone, each training is measured with one evaluation seed, that of its own number,
and the start with all of them (`pool_pairs`): a resample then draws items and pairs of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rekindle.core.errors import RekindleError
from rekindle.core.options import Options
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.bootstrap import Words, deviation, draw_counts, resampled, words
from rekindle.evaluation.scores.score import Rows, Score, Values


class Pooled(Options):
    """Some trainings of one kind against their start."""

    verdict: Words
    """Better or worse where the whole interval is on the good or the bad side of zero."""
    mean: float
    """Mean over training and evaluation seeds."""
    start_mean: float
    """Mean of the start over the evaluation seeds."""
    difference: float
    """`mean` minus `start_mean`."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    level: float
    """Coverage of the interval."""
    by_training_seed: list[float]
    """Means over the evaluation seeds."""
    training_std: float
    """Their standard deviation (n - 1); 0 with one training seed."""
    evaluation_std: float
    """Standard deviation over the evaluation seeds (n - 1) of the mean over the training seeds; 0 with one, and of pairs, where
    `training_std` holds both."""


def pool(
    start: Rows, trained: Sequence[Rows], score: Score, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Pooled:
    """Compare the trainings of one kind with their start.

    Args:
        start: [E, n, F] rows of E evaluation seeds on n items.
        trained: T of the same, one per training seed.
        score: what the rows come to.
        level: of the percentile interval.
        resamples: number of draws.
        seed: of the draws.

    Raises: RekindleError if the sides were not measured on the same seeds, items and classes.
    """
    if any(side.shape != start.shape for side in trained):
        raise RekindleError("the models were not evaluated on the same items and seeds; did the data change meanwhile?")
    values = np.array([[score.value(rows) for rows in side] for side in trained])  # [T, E]
    base = np.array([score.value(rows) for rows in start])  # [E]
    draws = _differences(start, trained, score, resamples, seed)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Pooled(
        verdict=words(low, high, score),
        mean=float(values.mean()),
        start_mean=float(base.mean()),
        difference=float(values.mean() - base.mean()),
        low=low,
        high=high,
        level=level,
        by_training_seed=values.mean(axis=1).tolist(),
        training_std=deviation(values.mean(axis=1)),
        evaluation_std=deviation(values.mean(axis=0)),
    )


def pool_pairs(
    start: Rows, trained: Sequence[Rows], score: Score, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Pooled:
    """Compare trainings that were measured with one evaluation seed each with their start, measured with the same ones.

    Args:
        start: [T, n, F] rows of T evaluation seeds on n items.
        trained: T of [1, n, F]; the t-th with the t-th of these seeds.
        score, level, resamples, seed: as of `pool`.

    Raises: RekindleError if the sides were not measured on the same seeds, items and classes.
    """
    pairs = np.concatenate(trained)
    pooled = pool(start, [pairs], score, level=level, resamples=resamples, seed=seed)
    values = [score.value(rows) for rows in pairs]
    spread = {"training_std": deviation(np.array(values)), "evaluation_std": 0.0}
    return pooled.model_copy(update={"by_training_seed": values} | spread)


def _differences(start: Rows, trained: Sequence[Rows], score: Score, resamples: int, seed: int) -> Values:
    """Return the differences of the resamples [R]."""
    num_seeds, num_items = start.shape[:2]
    source = np.random.default_rng(derived_seed(seed, "bootstrap"))
    items = draw_counts(num_items, resamples, source)  # the draws of `paired_bootstrap`, in its order
    seeds = draw_counts(num_seeds, resamples, source)
    trainings = draw_counts(len(trained), resamples, source)
    total = -resampled(start, score, items, seeds)
    for column, side in enumerate(trained):
        total += resampled(side, score, items, seeds) * trainings[:, column] / len(trained)
    return total
