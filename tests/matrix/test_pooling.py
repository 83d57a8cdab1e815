# SPDX-License-Identifier: Apache-2.0
"""Pooling of training seeds: equal to `rekindle compare` with one, and to slow loops with several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rekindle.core.errors import RekindleError
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.bootstrap import draw_counts, paired_bootstrap
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.scores.segmentation_metrics import mean_iou
from rekindle.matrix.pooling import Pooled, pool, pool_pairs

IOU = MeanIou(class_names=["a", "b"])


def _side(seed: int, quality: int, num_seeds: int = 3) -> Rows:
    source = np.random.default_rng(seed)
    hit = source.integers(quality, quality + 30, (num_seeds, 12, 1, 2))
    rows = np.concatenate([hit, np.full_like(hit, 100), np.full_like(hit, 90)], axis=2)
    return rows.reshape(num_seeds, 12, -1)


def test_one_training_seed_gives_the_verdict_of_compare() -> None:
    start, model = _side(0, 40), _side(1, 50)
    pooled = pool(start, [model], IOU, resamples=300)
    verdict = paired_bootstrap(start, model, IOU, resamples=300)
    assert (pooled.verdict, pooled.difference, pooled.mean) == (verdict.verdict, verdict.difference, verdict.model)
    assert (pooled.low, pooled.high) == pytest.approx((verdict.low, verdict.high), abs=1e-12)
    assert (pooled.training_std, pooled.evaluation_std) == (0.0, verdict.model_std)


def test_several_agree_with_loops_over_resamples_and_seeds() -> None:
    start, trained, resamples = _side(0, 40), [_side(1, 45), _side(2, 60)], 100
    pooled = pool(start, trained, IOU, resamples=resamples)
    source = np.random.default_rng(derived_seed(0, "bootstrap"))
    items, seeds, trainings = (draw_counts(n, resamples, source) for n in (12, 3, 2))
    draws = []
    for r in range(resamples):
        value = 0.0
        for e in range(3):
            drawn = [np.repeat(side[e], items[r], axis=0).sum(axis=0) for side in (start, *trained)]
            ours = sum(trainings[r, t] * mean_iou(drawn[1 + t].reshape(3, 2)) for t in range(2)) / 2
            value += seeds[r, e] / 3 * (ours - mean_iou(drawn[0].reshape(3, 2)))
        draws.append(value)
    assert (pooled.low, pooled.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)
    each = [float(np.mean([IOU.value(side[e]) for e in range(3)])) for side in trained]
    assert pooled.by_training_seed == pytest.approx(each)
    assert pooled.training_std == pytest.approx(np.std(each, ddof=1))


def test_training_seeds_that_disagree_widen_the_interval() -> None:
    start = _side(0, 40)
    alike = pool(start, [_side(1, 50), _side(1, 50)], IOU)
    apart = pool(start, [_side(1, 35), _side(1, 65)], IOU)
    assert alike.verdict == "better"
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_pairs_agree_with_loops_over_resamples_and_pairs() -> None:
    start, trained, resamples = _side(0, 40), [_side(seed, 40 + 5 * seed, num_seeds=1) for seed in (1, 2, 3)], 100
    pooled = pool_pairs(start, trained, IOU, resamples=resamples)
    source = np.random.default_rng(derived_seed(0, "bootstrap"))
    items, pairs = (draw_counts(n, resamples, source) for n in (12, 3))
    draws = []
    for r in range(resamples):
        both = [[np.repeat(side, items[r], axis=0).sum(axis=0) for side in (start[t], trained[t][0])] for t in range(3)]
        values = [mean_iou(ours.reshape(3, 2)) - mean_iou(theirs.reshape(3, 2)) for theirs, ours in both]
        draws.append(sum(pairs[r, t] / 3 * values[t] for t in range(3)))
    assert (pooled.low, pooled.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)
    each = [IOU.value(side[0]) for side in trained]
    assert pooled.by_training_seed == pytest.approx(each)
    assert (pooled.training_std, pooled.evaluation_std) == pytest.approx((np.std(each, ddof=1), 0.0))
    assert pooled.difference == pytest.approx(np.mean(each) - np.mean([IOU.value(rows) for rows in start]))


@pytest.mark.parametrize(
    "pairing", [pytest.param(pool, id="every seed with every training"), pytest.param(pool_pairs, id="pairs")]
)
def test_sides_of_other_images_are_refused(pairing: Callable[..., Pooled]) -> None:
    with pytest.raises(RekindleError, match="not evaluated on the same items and seeds"):
        pairing(_side(0, 40), [_side(1, 40, num_seeds=2)], IOU)
