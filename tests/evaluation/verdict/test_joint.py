# SPDX-License-Identifier: Apache-2.0
"""Several differences at once: the chance of any false word, against Holm by hand and where all are one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.verdict.difference import Component, Difference, difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts, single_level
from rekindle.evaluation.verdict.resampling import draw_counts
from tests.evaluation.verdict.test_difference import TOP1, means


def of_values(values: np.ndarray, score: Means = TOP1, resamples: int = 400) -> Difference:
    return difference_of([means(np.zeros(len(values)))], [means(values)], score, resamples=resamples)


def test_what_is_one_and_the_same_is_not_paid_for_twice() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 60)
    alone = of_values(values, resamples=4000)
    assert single_level([alone], 0.95) == 0.95
    assert single_level([alone] * 8, 0.95) == pytest.approx(0.95, abs=0.006)


def test_independent_looks_need_what_sidak_says() -> None:
    source = np.random.default_rng(1)
    looks = [of_values(source.normal(size=200), resamples=8000) for _ in range(8)]
    shifted = [  # draws of different items are independent
        Difference(**{**vars(look), "draws": np.roll(look.draws, 97 * i)}) for i, look in enumerate(looks)
    ]
    assert single_level(shifted, 0.95) == pytest.approx(0.95 ** (1 / 8), abs=0.002)


@pytest.mark.parametrize(("looks", "correlation"), [(2, 0.0), (4, 0.5), (8, 0.3), (8, 0.9)])
def test_the_level_of_correlated_looks_is_that_of_scipys_multivariate_normal(looks: int, correlation: float) -> None:
    """P(max |Z| <= c) = 0.95 for the c that a single interval of the returned coverage has."""
    covariance = np.full((looks, looks), correlation) + (1 - correlation) * np.eye(looks)
    draws = np.random.default_rng(looks).multivariate_normal(np.zeros(looks), covariance, size=40_000)
    like = of_values(np.random.default_rng(0).normal(size=40))
    level = single_level([replace(like, model=np.zeros((1, 1)), draws=draws[:, i]) for i in range(looks)], 0.95)
    critical = np.full(looks, stats.norm.ppf((1 + level) / 2))
    inside = stats.multivariate_normal(cov=covariance, seed=1).cdf(critical, lower_limit=-critical)
    assert inside == pytest.approx(0.95, abs=0.004)


def test_several_models_against_one_base_are_judged_as_by_dunnett() -> None:
    """scipy's test of Dunnett (max-t of means that share a control), groups of 60: the same models are told apart."""
    source = np.random.default_rng(5)
    base = source.normal(size=60)
    models = [source.normal(shift, size=60) for shift in (0.0, 0.05, 0.7)]
    p = stats.dunnett(*models, control=base, rng=np.random.default_rng(0)).pvalue
    counts = [draw_counts(60, 4000, source) / 60 for _ in range(4)]
    control = counts[0] @ base
    looks = {}
    for i, own in enumerate(models):
        parts = {
            "items": Component(float((own.var(ddof=1) + base.var(ddof=1)) / 60), 236.0)
        }  # Dunnett pools over four groups
        like = of_values(own)
        looks[i] = replace(
            like,
            base=np.full((1, 1), base.mean()),
            model=np.full((1, 1), own.mean()),
            draws=counts[1 + i] @ own - control,
            components=parts,
        )
    found = joint_verdicts(looks, 0.95)
    assert [found[i].verdict == "better" for i in range(3)] == (p < 0.05).tolist() == [False, False, True]
    edge = stats.dunnett(*models, control=base, rng=np.random.default_rng(0)).confidence_interval(0.95)
    level = single_level([*looks.values()], 0.95)
    half = looks[2].half_width(level)
    assert half == pytest.approx((edge.high[2] - edge.low[2]) / 2, rel=0.1)


def test_words_of_independent_looks_are_those_of_holm() -> None:
    """Step-down by p-values of scipy's t test; correlations are small, so max-t and Holm agree where it is not close."""
    source = np.random.default_rng(2)
    shifts = [0.9, 0.62, 0.25, 0.0]
    values = [source.normal(size=80) for _ in shifts]
    looks = {
        i: of_values(v - v.mean() + s, resamples=4000) for i, (v, s) in enumerate(zip(values, shifts, strict=True))
    }
    p = np.array([stats.ttest_1samp(v - v.mean() + s, 0).pvalue for v, s in zip(values, shifts, strict=True)])
    order, rejected = np.argsort(p), []
    for rank, i in enumerate(order):
        if p[i] > 0.05 / (4 - rank):
            break
        rejected.append(i)
    found = joint_verdicts(looks, 0.95)
    assert sorted(rejected) == [i for i, own in found.items() if own.verdict == "better"] == [0, 1]
    assert found[0].looks == 4
    assert found[2].level < found[0].level  # the first two are out of the way


def test_any_false_word_of_eight_is_as_rare_as_one_of_a_single_look() -> None:
    """Nothing differs, means of 60 items, correlated by half: any word is false in 5 % of 400 trials, and Monte Carlo."""
    source, wrong, alone = np.random.default_rng(3), 0, 0
    shares = draw_counts(60, 2000, source) / 60
    like = of_values(source.normal(size=60))
    for _ in range(400):
        values = source.normal(size=(60, 1)) + source.normal(size=(60, 8))
        draws, variances = shares @ values, values.var(axis=0, ddof=1) / 60
        looks = {
            i: replace(
                like,
                model=values[:, i].mean().reshape(1, 1),
                draws=draws[:, i],
                components={"items": Component(float(variances[i]), 59.0)},
            )
            for i in range(8)
        }
        wrong += any(own.verdict != "no difference" for own in joint_verdicts(looks, 0.95).values())
        alone += any(not low <= 0 <= high for low, high in (own.interval(0.95) for own in looks.values()))
    assert wrong <= 400 * 0.05 + 2.33 * np.sqrt(400 * 0.05 * 0.95)
    assert alone > 3 * wrong


def test_descriptions_and_what_cannot_be_judged_are_no_looks() -> None:
    source = np.random.default_rng(4)
    described = Means(headline="top-1", names=["top-1"], better="neither")
    looks = {
        "a": of_values(source.normal(size=40)),
        "b": of_values(source.normal(size=40)),
        "described": of_values(source.normal(5, 1, size=40), described),
        "few": of_values(source.normal(5, 1, size=12)),
    }
    found = joint_verdicts(looks, 0.95)
    assert set(found) == {"a", "b"}
    assert {own.looks for own in found.values()} == {2}
    assert joint_verdicts({"a": looks["a"], "few": looks["few"]}, 0.95) == {}


def test_margins_hold_for_joint_words_too() -> None:
    source = np.random.default_rng(5)
    looks = {i: of_values(0.01 * source.normal(size=40)) for i in range(3)}
    found = joint_verdicts(looks, 0.95, {0: 0.5, 1: None, 2: 0.5})
    assert [found[i].verdict for i in range(3)] == ["equivalent", "no difference", "equivalent"]


def test_what_is_equivalent_does_not_turn_worse_where_it_is_looked_at_with_others() -> None:
    """A wider interval leaves the margin and still excludes zero: then it is undecided, not worse."""
    source = np.random.default_rng(7)
    values = source.normal(size=60)
    values = (values - values.mean()) / values.std(ddof=1) * np.sqrt(60)  # standard error 1
    looks = {i: of_values(-0.55 + 0.2 * values if i == 0 else source.normal(size=60), resamples=4000) for i in range(3)}
    low, high = looks[0].interval(0.95)
    margin = -low + 0.001
    assert high < 0
    found = joint_verdicts(looks, 0.95, {0: margin, 1: None, 2: None})
    assert found[0].low < -margin < found[0].high < 0
    assert found[0].verdict == "no difference"


def test_joint_intervals_are_wider_and_around_the_same_difference() -> None:
    source = np.random.default_rng(6)
    looks = {i: of_values(source.normal(size=50)) for i in range(4)}
    for i, own in joint_verdicts(looks, 0.95).items():
        low, high = looks[i].interval(0.95)
        assert own.low < low < looks[i].value < high < own.high
        assert 0.95 < own.level <= 1 - 0.05 / 4 + 1e-12
