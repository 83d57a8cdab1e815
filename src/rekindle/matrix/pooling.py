# SPDX-License-Identifier: Apache-2.0
"""Several trainings of one kind against their start: the mean, its spread over training seeds, an interval, a verdict.

The value of a kind is the mean IoU of each (training seed, evaluation seed), averaged. A resample of the bootstrap draws images,
evaluation seeds and training seeds, each with replacement and each on its own; model and start get the same images and
evaluation seeds, and the start has no training seeds. So the interval covers the choice of images, the training of the heads
and the training of the backbones. With one training seed it covers images and heads alone, and is that of `rekindle compare`;
with two or three it still understates what other training seeds would change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.core.errors import RekindleError
from rekindle.core.options import Options
from rekindle.core.rng import derived_seed
from rekindle.evaluation.bootstrap import BLOCK_BYTES, Words, draw_counts
from rekindle.evaluation.result import Statistics
from rekindle.evaluation.segmentation_metrics import mean_iou

Values = NDArray[np.float64]


class Pooled(Options):
    """Some trainings of one kind against their start."""

    verdict: Words
    """Better or worse where the whole interval is on one side of zero."""
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
    """Standard deviation over the evaluation seeds (n - 1) of the mean over the training seeds; 0 with one."""


def pool(
    start: Statistics, trained: Sequence[Statistics], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Pooled:
    """Compare the trainings of one kind with their start.

    Args:
        start: [E, n, 3, C] pixel counts of E evaluation seeds on n images.
        trained: T of the same, one per training seed.
        level: of the percentile interval.
        resamples: number of draws.
        seed: of the draws.

    Raises: RekindleError if the sides were not measured on the same seeds, images and classes.
    """
    if any(side.shape != start.shape for side in trained):
        raise RekindleError(
            "the models were not evaluated on the same images and seeds; did the data change meanwhile?"
        )
    values = np.stack([mean_iou(side.sum(axis=1)) for side in trained])  # [T, E]
    base = mean_iou(start.sum(axis=1))  # [E]
    draws = _differences(start, trained, resamples, seed)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Pooled(
        verdict="better" if low > 0 else "worse" if high < 0 else "no difference",
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


def deviation(values: Values) -> float:
    """Standard deviation (n - 1); 0 of a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _differences(start: Statistics, trained: Sequence[Statistics], resamples: int, seed: int) -> Values:
    """Return the differences of the resamples [R]."""
    num_seeds, num_items = start.shape[:2]
    source = np.random.default_rng(derived_seed(seed, "bootstrap"))
    items = draw_counts(num_items, resamples, source)  # the draws of `paired_bootstrap`, in its order
    seeds = draw_counts(num_seeds, resamples, source)
    trainings = draw_counts(len(trained), resamples, source)
    total = -_resampled(start, items, seeds)
    for column, side in enumerate(trained):
        total += _resampled(side, items, seeds) * trainings[:, column] / len(trained)
    return total


def _resampled(side: Statistics, items: NDArray[np.int64], seeds: NDArray[np.int64]) -> Values:
    """Return the mean IoU of each resample [R], averaged over its evaluation seeds; NaN counts are the caller's to skip."""
    num_seeds, num_items = side.shape[:2]
    rows = side.transpose(1, 0, 2, 3).reshape(num_items, -1).astype(np.float64)
    block = max(1, BLOCK_BYTES // (8 * rows.shape[1]))
    parts = []
    for first in range(0, len(items), block):
        drawn = slice(first, first + block)
        totals = (items[drawn].astype(np.float64) @ rows).reshape(-1, num_seeds, *side.shape[2:])
        parts.append((mean_iou(totals) * seeds[drawn]).sum(axis=1) / num_seeds)
    return np.concatenate(parts)
