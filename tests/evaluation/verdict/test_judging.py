# SPDX-License-Identifier: Apache-2.0
"""Words for intervals: directions, margins, what cannot be judged, and classes that no label holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rekindle.evaluation.scores.kinds import MeanIou, Means, of_today
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.evaluation.verdict.judging import Verdict, margin_in, verdict_of
from tests.evaluation.verdict.test_difference import IOU, TOP1, means, side


def judged(base: Rows, model: Rows, score: Score = IOU, *, resamples: int = 300, **options: Any) -> Verdict:
    groups = options.pop("groups", None)
    found = difference_of([base], [model], score, groups=groups, resamples=resamples)
    return verdict_of(found, [base], [model], **options)


def test_clear_differences_are_called_by_name() -> None:
    better = judged(side(0.6, images=40), side(0.8, images=40, seed=1))
    assert better.verdict == "better"
    assert 0 < better.low < better.difference < better.high
    assert set(better.per_class) == {"a", "b", "c"}
    assert better.per_class["a"] > 0
    assert judged(side(0.8, images=40), side(0.6, images=40, seed=1)).verdict == "worse"
    assert judged(side(0.8, images=40), side(0.8, images=40)).verdict == "no difference"


def test_less_is_better_where_the_score_says_so() -> None:
    error = Means(headline="MSE (log²)", names=["MSE (log²)"], better="lower")
    base = means(np.random.default_rng(0).uniform(1.0, 1.2, 30))
    found = judged(base, base - [0.5, 0.0], error)
    assert (found.verdict, found.per_class) == ("better", {})
    assert found.high < 0


def test_a_description_is_different_and_never_better() -> None:
    similar = Means(headline="CKA of the last two blocks", names=["CKA of the last two blocks"], better="neither")
    rows, moved = means([0.5] * 30), np.array([0.1, 0.0])
    assert judged(rows, rows + moved, similar).verdict == "different"
    assert judged(rows, rows - moved, similar).verdict == "different"
    assert judged(rows, rows, similar, margin=0.5).verdict == "no difference"


@pytest.mark.parametrize(
    ("images", "groups", "word"),
    [
        pytest.param(29, None, "cannot judge", id="29 items"),
        pytest.param(30, None, "better", id="30 items"),
        pytest.param(70, 7, "cannot judge", id="7 groups of 10"),
        pytest.param(80, 8, "better", id="8 groups of 10"),
    ],
)
def test_few_items_or_groups_are_not_judged_but_have_an_interval(images: int, groups: int | None, word: str) -> None:
    index = None if groups is None else np.arange(images) % groups
    found = judged(side(0.5, images=images), side(0.9, images=images, seed=1), groups=index)
    assert found.verdict == word
    assert 0 < found.low < found.difference < found.high
    assert (found.unit, found.units, found.items) == (
        ("items", images, images) if groups is None else ("groups", groups, images)
    )


def test_within_the_margin_two_models_are_equivalent() -> None:
    source = np.random.default_rng(0)
    base = means(source.uniform(0.4, 0.6, 60))
    model = base + np.stack([np.full(60, 0.002) + source.normal(0, 1e-4, 60), np.zeros(60)], axis=-1)
    assert judged(base, model, TOP1).verdict == "better"
    assert judged(base, model, TOP1, margin=0.005).verdict == "equivalent"
    assert judged(model, base, TOP1, margin=0.005).verdict == "equivalent"
    assert judged(base, model, TOP1, margin=0.0019).verdict == "better"


def test_a_margin_in_points_is_one_of_fractions_alone() -> None:
    assert margin_in(TOP1, 0.5) == 0.005
    assert margin_in(TOP1, None) is None
    assert margin_in(Means(headline="MSE (log²)", names=["MSE (log²)"], better="lower"), 0.5) is None


def stray(*, num_strays: int, absent: str) -> Verdict:
    """Thirty images of ten classes, both sides alike but for five pixels of an eleventh class that no label holds."""
    source = np.random.default_rng(0)
    label = np.concatenate([source.integers(200, 400, (30, 10)), np.zeros((30, 1), int)], axis=1)
    hit = (label * source.uniform(0.4, 0.9, label.shape)).astype(int)
    rows = np.stack([hit, label, hit + np.roll(label - hit, 1, axis=0)], axis=1)
    base = rows.copy()
    base[:num_strays, 2, 10] += 5
    score = MeanIou(class_names=[str(i) for i in range(11)], absent=absent)
    return judged(base.reshape(1, 30, -1), rows.reshape(1, 30, -1), score, resamples=500)


def test_stray_pixels_of_a_class_without_labels_do_not_make_a_model_worse() -> None:
    """Five pixels were worth several points, and the word "better", for the side without them."""
    before = stray(num_strays=9, absent="skip")
    assert (before.verdict, before.difference > 0.04) == ("better", True)
    now = stray(num_strays=9, absent="unlabelled")
    assert (now.verdict, now.difference) == ("no difference", 0.0)


def test_a_result_of_before_keeps_its_rule_by_name() -> None:
    stored = MeanIou.model_validate(
        {"kind": "mean-iou", "class_names": ["a", "b"], "headline": "mIoU", "absent": "skip"}
    )
    rows = np.array([[4, 0, 5, 0, 4, 3]])
    assert stored.value(rows) == pytest.approx(0.4)
    assert MeanIou(class_names=["a", "b"]).value(rows) == pytest.approx(0.8)
    assert "IoU/b" not in MeanIou(class_names=["a", "b"]).metrics(rows)


def test_a_score_of_before_is_read_by_todays_rule_where_both_meet() -> None:
    stored, now = (MeanIou(class_names=["a", "b"], absent=absent) for absent in ("skip", "unlabelled"))
    assert of_today(stored) == of_today(now) == now
    zero = MeanIou(class_names=["a"], absent="zero")
    assert (of_today(zero), of_today(TOP1)) == (zero, TOP1)


def test_too_many_undefined_resamples_are_not_judged() -> None:
    """Of 40 images one has labels: a third of the draws have none."""
    rows = np.zeros((1, 40, 9))
    rows[0, 0] = [5, 5, 5, 9, 9, 9, 8, 8, 8]
    other = rows.copy()
    other[0, 0, :3] = 7
    found = judged(rows, other)
    assert found.verdict == "cannot judge"
    assert found.undefined == pytest.approx(0.36, abs=0.1)


def test_a_verdict_of_before_is_read_and_says_which_rule_made_it() -> None:
    stored = {"verdict": "better", "difference": 0.1, "low": 0.05, "high": 0.2, "level": 0.95}
    stored |= {"base": 0.5, "model": 0.6, "base_std": 0.0, "model_std": 0.0, "per_class": {}}
    found = Verdict.model_validate(stored)
    assert (found.rule, found.units, found.smallest_effect) == ("percentile", 0, None)
    assert judged(side(0.5), side(0.6)).rule == "student"


def test_it_says_what_it_could_have_shown_and_how_many_items_would_show_half() -> None:
    found = judged(side(0.6, images=52, seeds=1), side(0.6, images=52, seeds=1, seed=1), resamples=1000)
    assert found.smallest_effect is not None
    assert found.units_for_half is not None
    assert found.smallest_effect == pytest.approx(2.83 * found.standard_error, rel=0.03)
    assert 190 < found.units_for_half < 215
    assert found.components == {"items": pytest.approx(found.standard_error**2)}
