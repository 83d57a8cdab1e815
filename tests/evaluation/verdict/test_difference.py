# SPDX-License-Identifier: Apache-2.0
"""Differences against slow loops, and against scipy's bootstrap and t tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.kinds import MeanAveragePrecision, MeanIou, Means
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.verdict import resampling
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.judging import word_of
from rekindle.evaluation.verdict.resampling import draw_counts

IOU = MeanIou(class_names=["a", "b", "c"])
TOP1 = Means(headline="top-1", names=["top-1"])


def side(accuracy: float, *, seeds: int = 2, images: int = 20, seed: int = 0) -> Rows:
    """Pixel counts of a classifier that errs at random, towards the next class."""
    source = np.random.default_rng(seed)
    label = np.random.default_rng(99).integers(20, 200, size=(1, images, 3)).repeat(seeds, axis=0)
    right = source.binomial(label, accuracy)
    wrong = label - right
    return np.stack([right, label, right + np.roll(wrong, 1, axis=-1)], axis=2).reshape(seeds, images, -1)


def means(values: Sequence[float] | np.ndarray) -> Rows:
    """Rows of a mean [1, n, 2]."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=-1)[None]


def by_loops(base: list[Rows], model: list[Rows], groups: list[int], resamples: int) -> list[float]:
    """Resamples one by one: groups, evaluation seeds, and training seeds of each side."""
    num_seeds, num_groups = len(base[0]), max(groups) + 1
    source = np.random.default_rng(derived_seed(0, "bootstrap"))
    units, seeds, mine, theirs = (
        draw_counts(n, resamples, source) for n in (num_groups, num_seeds, len(model), len(base))
    )
    draws = []
    for r in range(resamples):
        items = [i for i, group in enumerate(groups) for _ in range(units[r, group])]
        total = 0.0
        for sides, drawn, sign in ((model, mine[r], 1), (base, theirs[r], -1)):
            for t, rows in enumerate(sides):
                for s in range(num_seeds):
                    share = drawn[t] / len(sides) * seeds[r, s] / num_seeds
                    total += sign * share * IOU.value(rows[s][items])
        draws.append(total)
    return draws


@pytest.mark.parametrize(
    ("groups", "trainings"),
    [
        pytest.param(list(range(7)), (1, 1), id="items, one model against one"),
        pytest.param([0, 0, 1, 2, 2, 2, 1], (1, 3), id="groups, three trainings against a fixed base"),
        pytest.param([0, 1, 2, 3, 3, 4, 4], (2, 3), id="groups, recipe against recipe"),
    ],
)
def test_draws_equal_slow_loops(groups: list[int], trainings: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "BLOCK_BYTES", 1)  # one resample at a time
    base = [side(0.6, seeds=3, images=7, seed=t) for t in range(trainings[0])]
    model = [side(0.7, seeds=3, images=7, seed=10 + t) for t in range(trainings[1])]
    index = None if groups == list(range(7)) else np.array(groups)
    found = difference_of(base, model, IOU, groups=index, resamples=6)
    assert found.draws == pytest.approx(by_loops(base, model, groups, 6), abs=1e-12)
    assert (found.unit, found.units) == (("items", 7) if index is None else ("groups", max(groups) + 1))
    assert (found.items, found.seeds, found.trainings) == (7, 3, trainings[1])


def test_pairs_draw_trainings_with_their_own_evaluation_seed() -> None:
    start, trained = side(0.6, seeds=3), [side(0.7, seeds=1, seed=t) for t in (1, 2, 3)]
    found = difference_of([start], trained, IOU, is_paired=True, resamples=50)
    same = difference_of([start], [np.concatenate(trained)], IOU, resamples=50)
    assert np.array_equal(found.draws, same.draws)
    assert (found.seeds, found.trainings, same.seeds, same.trainings) == (1, 3, 3, 1)
    assert found.components["training seeds"] == same.components["evaluation seeds"]


def test_grouped_draws_of_rankings_equal_loops() -> None:
    """Groups of different size: draws differ in the number of items, which a ranking has to bear."""
    source = np.random.default_rng(0)
    score, groups = MeanAveragePrecision(class_names=["a", "b"]), np.array([0, 0, 0, 1, 2, 2, 3])
    rows = np.concatenate([source.random((1, 7, 2)), source.integers(0, 2, (1, 7, 2))], axis=-1)
    counts = draw_counts(4, 20, source)
    found = resampling.score_draws(rows, score, counts, groups)[:, 0]
    slow = [score.value(rows[0][np.repeat(np.arange(7), drawn[groups])]) for drawn in counts]
    assert found == pytest.approx(np.array(slow), abs=1e-12, nan_ok=True)


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    """scipy's t interval of paired differences, where resamples are as good as normal; their ends are Monte Carlo."""
    source = np.random.default_rng(3)
    for n in (15, 40):
        base, model = source.normal(size=n), source.normal(0.3, size=n)
        found = difference_of([means(base)], [means(model)], TOP1, resamples=200_000)
        expected = stats.ttest_rel(model, base).confidence_interval(0.95)
        width = expected.high - expected.low
        assert found.half_width(0.95) == pytest.approx(width / 2, rel=0.01)
        assert found.interval(0.95) == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_the_draws_are_those_of_scipys_bootstrap() -> None:
    source = np.random.default_rng(4)
    base, model = source.exponential(size=25), source.exponential(1.5, size=25)
    found = difference_of([means(base)], [means(model)], TOP1, resamples=100_000)
    scipys = stats.bootstrap((model - base,), np.mean, n_resamples=100_000, method="percentile", rng=1)
    width = scipys.confidence_interval.high - scipys.confidence_interval.low
    assert found.spread == pytest.approx(scipys.standard_error, rel=0.01)
    assert np.quantile(found.draws, [0.025, 0.975]) == pytest.approx([*scipys.confidence_interval], abs=0.02 * width)


def test_seeds_alone_give_students_t_over_seeds() -> None:
    """Items that are all alike: what is left is the spread of the evaluation seeds, or of the training seeds."""
    by_seed = np.array([0.1, 0.35, 0.2])
    base = np.concatenate([means([0.0] * 40)] * 3)
    model = np.concatenate([means([value] * 40) for value in by_seed])
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    over_seeds = difference_of([base], [model], TOP1)
    over_runs = difference_of([base[:1]], [model[t : t + 1] for t in range(3)], TOP1)
    for found, name in ((over_seeds, "evaluation seeds"), (over_runs, "training seeds")):
        assert found.components[name].variance == pytest.approx(by_seed.var(ddof=1) / 3)
        assert found.components[name].freedom == pytest.approx(2)
        assert found.half_width(0.95) == pytest.approx((expected.high - expected.low) / 2)
        assert found.freedom == pytest.approx(2)


def test_both_sides_of_recipes_have_their_own_spread() -> None:
    base = [means([value] * 40) for value in (0.1, 0.2, 0.3)]
    model = [means([value] * 40) for value in (0.5, 0.7)]
    found = difference_of(base, model, TOP1)
    expected = stats.ttest_ind([0.5, 0.7], [0.1, 0.2, 0.3], equal_var=False)
    assert found.value == pytest.approx(0.4)
    assert found.value / found.standard_error == pytest.approx(expected.statistic)
    assert found.freedom == pytest.approx(expected.df)  # of Welch and Satterthwaite


def test_with_many_items_it_is_the_percentile_interval() -> None:
    source = np.random.default_rng(0)
    base, model = source.normal(size=4000), source.normal(size=4000)
    found = difference_of([means(base)], [means(model)], TOP1)
    low, high = np.quantile(found.draws, [0.025, 0.975])
    assert found.interval(0.95) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_jackknife_is_scipys_standard_error_of_a_mean_and_a_loop_of_an_iou() -> None:
    source = np.random.default_rng(7)
    base, model = source.normal(size=30), source.normal(size=30)
    found = difference_of([means(base)], [means(model)], TOP1, resamples=100_000)
    assert found.standard_error == pytest.approx(stats.sem(model - base), rel=0.005)
    mine, theirs, groups = side(0.7, seed=1), side(0.6), np.arange(20) // 4
    left_out = []
    for group in range(5):
        kept = [i for i in range(20) if groups[i] != group]
        left_out.append(np.mean([IOU.value(mine[s][kept]) - IOU.value(theirs[s][kept]) for s in range(2)]))
    jackknife = 4 / 5 * np.square(left_out - np.mean(left_out)).sum()
    items = resampling.draw_counts(5, 2000, np.random.default_rng(derived_seed(0, "bootstrap")))
    both = [resampling.score_draws(rows, IOU, items, groups).mean(axis=1) for rows in (mine, theirs)]
    expected = (jackknife + np.var(both[0] - both[1]) * 5 / 4) / 2
    grouped = difference_of([theirs], [mine], IOU, groups=groups)
    assert grouped.components["groups"].variance == pytest.approx(expected, rel=1e-12)


def test_half_widths_lie_between_satterthwaites_and_banerjees() -> None:
    model = np.concatenate([means(value + np.random.default_rng(8).normal(0, 0.4, 40)) for value in (0.1, 0.3, 0.2)])
    found = difference_of([np.concatenate([means([0.0] * 40)] * 3)], [model], TOP1)
    parts = [found.components[name] for name in ("items", "evaluation seeds")]
    total = sum(part.variance for part in parts)
    freedom = total**2 / sum(part.variance**2 / part.freedom for part in parts)
    satterthwaite = stats.t.ppf(0.975, freedom) ** 2 * total
    banerjee = sum(stats.t.ppf(0.975, part.freedom) ** 2 * part.variance for part in parts)
    assert found.half_width(0.95) == pytest.approx(np.sqrt((satterthwaite + banerjee) / 2), rel=1e-9)


def test_seed_variance_widens_the_interval() -> None:
    steady, wild = side(0.7, seeds=4), np.concatenate([side(a, seeds=1) for a in (0.5, 0.6, 0.8, 0.9)])
    base = side(0.7, seeds=4, seed=1)
    narrow, wide = (difference_of([base], [model], IOU, resamples=300).interval(0.95) for model in (steady, wild))
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_groups_widen_the_interval_where_their_items_are_alike() -> None:
    source = np.random.default_rng(5)
    shared = np.repeat(source.normal(size=12), 10)
    base, model = means(np.zeros(120)), means(shared + 0.3 * source.normal(size=120))
    groups = np.repeat(np.arange(12), 10)
    alone, together = (difference_of([base], [model], TOP1, groups=own).half_width(0.95) for own in (None, groups))
    assert together > 2.5 * alone


def test_identical_models_differ_by_exactly_zero() -> None:
    found = difference_of([side(0.7)], [side(0.7)], IOU, resamples=200)
    assert (found.value, *found.interval(0.95), found.standard_error) == (0.0, 0.0, 0.0, 0.0)
    assert found.units_for(0.01, 0.95) is None


def test_a_few_large_groups_are_no_more_than_a_few_groups() -> None:
    """One of twenty-one groups holds half of the items: with 20 degrees of freedom 9 % of the words were false."""
    source, groups = np.random.default_rng(4), np.repeat(np.arange(21), [100] + [5] * 20)
    base, false = means(np.zeros(200)), 0
    for _ in range(200):
        values = source.normal(size=21)[groups] + source.normal(size=200)
        low, high = difference_of([base], [means(values)], TOP1, groups=groups, resamples=100).interval(0.95)
        false += not low <= 0 <= high
    assert false / 200 <= 0.05
    equal = difference_of([base], [means(values)], TOP1, groups=np.arange(200) // 20, resamples=100)
    assert equal.freedom == pytest.approx(9)


def test_a_recipe_of_copies_of_the_base_differs_by_zero_and_not_by_rounding() -> None:
    for seed in range(12):
        base = side(0.6, seeds=3, images=60, seed=seed)
        found = difference_of([base], [base] * 3, IOU, resamples=200)
        assert (found.value, found.spread, found.interval(0.95)) == (0.0, 0.0, (0.0, 0.0))
        assert word_of(found, *found.interval(0.95)) == "no difference"
        assert found.units_for(found.smallest_effect(0.95) / 2, 0.95) is None


def test_smallest_effect_is_what_a_t_test_tells_in_eighty_of_a_hundred() -> None:
    """Power of the noncentral t (scipy), within what the usual sum of two quantiles leaves."""
    source = np.random.default_rng(6)
    base, model = source.normal(size=50), source.normal(size=50)
    found = difference_of([means(base)], [means(model)], TOP1, resamples=20_000)
    effect, critical = found.smallest_effect(0.95), stats.t.ppf(0.975, 49)
    power = stats.nct.sf(critical, 49, effect / found.standard_error)
    assert power == pytest.approx(0.8, abs=0.01)
    needed = found.units_for(effect / 2, 0.95)
    assert needed is not None
    assert 190 < needed < 205  # four times as many, less what Student's t costs with fifty
    assert found.units_for(effect, 0.95) == pytest.approx(50, abs=1)


def test_more_items_do_not_help_where_seeds_differ() -> None:
    model = np.concatenate([means([value] * 40) for value in (0.1, 0.4, 0.2)])
    found = difference_of([np.concatenate([means([0.0] * 40)] * 3)], [model], TOP1)
    assert found.units_for(found.smallest_effect(0.95) / 2, 0.95) is None


@pytest.mark.parametrize(
    ("base", "model", "groups", "message"),
    [
        pytest.param(side(0.7, images=5), side(0.7, images=6), None, "not evaluated on the same items", id="items"),
        pytest.param(side(0.7, seeds=1), side(0.7, seeds=2), None, "not evaluated on the same items", id="seeds"),
        pytest.param(side(0.7, images=1), side(0.8, images=1), None, "one of the items alone", id="one image"),
        pytest.param(
            side(0.7, images=4), side(0.8, images=4), np.zeros(4, int), "one of the groups alone", id="one group"
        ),
        pytest.param(np.zeros((1, 5, 9)), np.zeros((1, 5, 9)), None, "mIoU is undefined on these 5", id="no labels"),
    ],
)
def test_what_has_no_interval_is_refused(base: Rows, model: Rows, groups: np.ndarray | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        difference_of([base], [model], IOU, groups=groups, resamples=100)


def test_resamples_without_a_value_are_left_out_and_counted() -> None:
    """One image of four is labelled: a draw without it has no class."""
    rows = np.zeros((1, 4, 9))
    rows[0, 0] = [5, 5, 5, 9, 9, 9, 8, 8, 8]
    other = rows.copy()
    other[0, 0, 0] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = difference_of([rows], [other], IOU, resamples=4000)
    assert found.undefined == pytest.approx(0.75**4, abs=0.03)
    assert np.isfinite(found.interval(0.95)).all()


def test_a_difference_holds_its_values_by_training_and_seed() -> None:
    found: Difference = difference_of([side(0.6)], [side(0.7, seed=1), side(0.8, seed=2)], IOU, resamples=100)
    assert found.base.shape == (1, 2)
    assert found.model.shape == (2, 2)
    assert found.value == pytest.approx(found.model.mean() - found.base.mean())
    assert list(found.components) == ["items", "evaluation seeds", "training seeds"]
