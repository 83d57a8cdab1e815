# SPDX-License-Identifier: Apache-2.0
"""Better, no difference, or worse: a paired bootstrap of two models on the same images and seeds.

A resample draws images with replacement, and seeds with replacement as well, so that the interval covers both
the choice of images and the training of the heads (a hierarchical bootstrap). Both sides always get the same
draw. The metric is computed anew from the summed pixel counts of every resample and averaged over its seeds.
With one seed the interval covers the images alone; with few seeds it somewhat understates what others would
change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.rng import derived_seed
from rekindle.evaluation.result import Statistics
from rekindle.evaluation.segmentation_metrics import class_iou, mean_iou

Metric = Callable[[NDArray[np.number]], NDArray[np.float64]]
Words = Literal["better", "no difference", "worse"]
BLOCK_BYTES = 64 << 20


class Verdict(Options):
    """One model against the base."""

    verdict: Words
    """Better or worse where the whole interval is on one side of zero."""
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
    """Difference of the class's IoU, mean over the seeds; without classes that a side does not define."""


def paired_bootstrap(
    base: Statistics,
    model: Statistics,
    *,
    class_names: Sequence[str],
    metric: Metric = mean_iou,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare two models.

    Args:
        base: [S, n, 3, C] pixel counts of S seeds on n images.
        model: the same seeds and images of the other model.
        class_names: C names.
        metric: of summed counts [..., 3, C].
        level: of the percentile interval.
        resamples: number of draws.
        seed: of the draws.

    Raises: RequestError if the shapes differ.

    """
    if base.shape != model.shape:
        raise RequestError(
            f"the two sides were not evaluated on the same seeds, images and classes: {base.shape} and {model.shape}"
        )
    base_values, model_values = metric(base.sum(axis=1)), metric(model.sum(axis=1))
    draws = bootstrap_differences(base, model, metric=metric, resamples=resamples, seed=seed)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Verdict(
        verdict="better" if low > 0 else "worse" if high < 0 else "no difference",
        difference=float(model_values.mean() - base_values.mean()),
        low=low,
        high=high,
        level=level,
        base=float(base_values.mean()),
        model=float(model_values.mean()),
        base_std=_deviation(base_values),
        model_std=_deviation(model_values),
        per_class=_per_class(base, model, class_names),
    )


def draw_counts(num_items: int, resamples: int, source: np.random.Generator) -> NDArray[np.int64]:
    """Count how often each item is drawn in each resample: [R, n], rows sum to n."""
    return source.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=resamples)


def bootstrap_differences(
    base: Statistics, model: Statistics, *, metric: Metric, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the differences of the resamples [R]; both sides see the same images and seeds."""
    num_seeds, num_items = base.shape[:2]
    source = np.random.default_rng(derived_seed(seed, "bootstrap"))
    items = draw_counts(num_items, resamples, source)
    seeds = draw_counts(num_seeds, resamples, source)
    block = max(1, BLOCK_BYTES // (8 * int(np.prod(base.shape)) // num_items))
    parts = []
    for start in range(0, resamples, block):
        rows = slice(start, start + block)
        sides = [_resampled(side, items[rows], seeds[rows], metric) for side in (model, base)]
        parts.append(sides[0] - sides[1])
    return np.concatenate(parts)


def _resampled(
    side: Statistics, items: NDArray[np.int64], seeds: NDArray[np.int64], metric: Metric
) -> NDArray[np.float64]:
    """Return the metric of each resample [R], the mean over its seeds."""
    num_seeds, num_items = side.shape[:2]
    rows = side.transpose(1, 0, 2, 3).reshape(num_items, -1).astype(np.float64)
    totals = (items.astype(np.float64) @ rows).reshape(len(items), num_seeds, *side.shape[2:])
    values = metric(totals)
    return np.asarray((values * seeds).sum(axis=1) / num_seeds)


def _per_class(base: Statistics, model: Statistics, names: Sequence[str]) -> dict[str, float]:
    difference = class_iou(model.sum(axis=1)).mean(axis=0) - class_iou(base.sum(axis=1)).mean(axis=0)
    pairs = zip(names, difference.tolist(), strict=True)
    return {name: value for name, value in pairs if not np.isnan(value)}


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
