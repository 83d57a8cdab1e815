# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores import bootstrap
from rekindle.evaluation.scores.bootstrap import bootstrap_differences, draw_counts, paired_bootstrap
from rekindle.evaluation.scores.kinds import MeanIou, Means

NAMES = ["a", "b", "c"]
IOU = MeanIou(class_names=NAMES)


def side(accuracy: float, *, seeds: int = 2, images: int = 20, seed: int = 0) -> np.ndarray:
    """Pixel counts of a classifier that errs at random, towards the next class."""
    source = np.random.default_rng(seed)
    label = np.random.default_rng(99).integers(20, 200, size=(1, images, 3)).repeat(seeds, axis=0)
    right = source.binomial(label, accuracy)
    wrong = label - right
    return np.stack([right, label, right + np.roll(wrong, 1, axis=-1)], axis=2).reshape(seeds, images, -1)


def test_identical_models_differ_by_exactly_zero() -> None:
    verdict = paired_bootstrap(side(0.7), side(0.7), IOU, resamples=200)
    assert (verdict.difference, verdict.low, verdict.high) == (0.0, 0.0, 0.0)
    assert verdict.verdict == "no difference"


def test_clear_differences_are_called_by_name() -> None:
    better = paired_bootstrap(side(0.6), side(0.8, seed=1), IOU, resamples=300)
    assert better.verdict == "better"
    assert 0 < better.low < better.difference < better.high
    assert set(better.per_class) == set(NAMES)
    assert better.per_class["a"] > 0
    worse = paired_bootstrap(side(0.8), side(0.6, seed=1), IOU, resamples=300)
    assert worse.verdict == "worse"


def test_interval_covers_the_true_difference() -> None:
    """Of 60 pairs of equals, about 5 % may be told apart by chance; more than 15 % would be wrong."""
    verdicts = [
        paired_bootstrap(
            side(0.7, seeds=1, seed=2 * i),
            side(0.7, seeds=1, seed=2 * i + 1),
            IOU,
            resamples=200,
        )
        for i in range(60)
    ]
    assert sum(v.verdict != "no difference" for v in verdicts) <= 9


def test_resamples_equal_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = side(0.6, seeds=3, images=7), side(0.7, seeds=3, images=7, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 1)  # one resample at a time
    fast = bootstrap_differences(base, model, IOU, resamples=5, seed=4)
    source = np.random.default_rng(derived_seed(4, "bootstrap"))
    item_counts, seed_counts = draw_counts(7, 5, source), draw_counts(3, 5, source)
    slow = []
    for r in range(5):
        items = [i for i in range(7) for _ in range(item_counts[r, i])]
        seeds = [s for s in range(3) for _ in range(seed_counts[r, s])]
        values = [IOU.value(model[s][items]) - IOU.value(base[s][items]) for s in seeds]
        slow.append(np.mean(values))
    assert fast == pytest.approx(np.array(slow), abs=1e-12)


def test_seed_variance_widens_the_interval() -> None:
    steady, wild = side(0.7, seeds=4), np.concatenate([side(a, seeds=1) for a in (0.5, 0.6, 0.8, 0.9)])
    narrow = paired_bootstrap(side(0.7, seeds=4, seed=1), steady, IOU, resamples=300)
    wide = paired_bootstrap(side(0.7, seeds=4, seed=1), wild, IOU, resamples=300)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_different_images_are_refused() -> None:
    with pytest.raises(RequestError, match="same seeds, items and classes"):
        paired_bootstrap(side(0.7, images=5), side(0.7, images=6), IOU)


def test_less_is_better_where_the_score_says_so() -> None:
    error = Means(headline="MSE (log²)", names=["MSE (log²)"], better="lower")
    source = np.random.default_rng(0)
    base = np.stack([source.uniform(1.0, 1.2, (1, 30)), np.ones((1, 30))], axis=-1)
    model = base - [0.5, 0.0]
    verdict = paired_bootstrap(base, model, error, resamples=200)
    assert verdict.verdict == "better"
    assert verdict.high < 0
    assert verdict.per_class == {}


def test_a_description_is_different_and_never_better() -> None:
    similar = Means(headline="CKA of the last two blocks", names=["CKA of the last two blocks"], better="neither")
    rows, moved = np.stack([np.full((1, 30), 0.5), np.ones((1, 30))], axis=-1), np.array([0.1, 0.0])
    assert paired_bootstrap(rows, rows + moved, similar, resamples=200).verdict == "different"
    assert paired_bootstrap(rows, rows - moved, similar, resamples=200).verdict == "different"
    assert paired_bootstrap(rows, rows, similar, resamples=200).verdict == "no difference"
