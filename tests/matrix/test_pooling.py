# SPDX-License-Identifier: Apache-2.0
"""Pooling of training seeds: what a table says of several trainings; their interval is that of `difference_of`."""

from __future__ import annotations

import numpy as np
import pytest

from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.matrix.pooling import Pooled, pooled_of

IOU = MeanIou(class_names=["a", "b"])


def _side(seed: int, quality: int, num_seeds: int = 3) -> Rows:
    source = np.random.default_rng(seed)
    hit = source.integers(quality, quality + 30, (num_seeds, 32, 1, 2))
    rows = np.concatenate([hit, np.full_like(hit, 100), np.full_like(hit, 90)], axis=2)
    return rows.reshape(num_seeds, 32, -1)


def _pooled(start: Rows, trained: list[Rows], *, is_paired: bool = False) -> Pooled:
    return pooled_of(difference_of([start], trained, IOU, is_paired=is_paired, resamples=300))


def test_means_and_spreads_are_those_of_loops_over_the_seeds() -> None:
    start, trained = _side(0, 40), [_side(1, 45), _side(2, 60)]
    found = _pooled(start, trained)
    each = [float(np.mean([IOU.value(rows) for rows in side])) for side in trained]
    by_seed = [float(np.mean([IOU.value(side[e]) for side in trained])) for e in range(3)]
    assert found.by_training_seed == pytest.approx(each)
    assert (found.mean, found.training_std) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert found.evaluation_std == pytest.approx(np.std(by_seed, ddof=1))
    assert found.difference == pytest.approx(np.mean(each) - np.mean([IOU.value(rows) for rows in start]))
    assert (found.training_seeds, found.evaluation_seeds, found.items) == (2, 3, 32)


def test_training_seeds_that_disagree_widen_the_interval() -> None:
    start = _side(0, 40)
    alike, apart = _pooled(start, [_side(1, 50), _side(1, 50)]), _pooled(start, [_side(1, 35), _side(1, 65)])
    assert alike.verdict == "better"
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_of_pairs_the_spread_over_trainings_holds_that_of_the_heads() -> None:
    start, trained = _side(0, 40), [_side(seed, 40 + 5 * seed, num_seeds=1) for seed in (1, 2, 3)]
    found = _pooled(start, trained, is_paired=True)
    each = [IOU.value(side[0]) for side in trained]
    assert found.by_training_seed == pytest.approx(each)
    assert (found.training_std, found.evaluation_std) == pytest.approx((np.std(each, ddof=1), 0.0))
    assert found.difference == pytest.approx(np.mean(each) - np.mean([IOU.value(rows) for rows in start]))
    assert (found.training_seeds, found.evaluation_seeds) == (3, 1)


def test_one_training_has_no_spread() -> None:
    found = _pooled(_side(0, 40), [_side(1, 50)])
    assert (found.training_std, found.training_seeds) == (0.0, 1)
