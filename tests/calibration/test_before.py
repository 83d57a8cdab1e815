# SPDX-License-Identifier: Apache-2.0
"""The rule of before gives the numbers that the code of bc97a06 gave on these rows."""

from __future__ import annotations

import numpy as np
import pytest

from rekindle.calibration.before import interval_before, overall_before, word_before
from rekindle.evaluation.scores.kinds import MeanIou, Means
from rekindle.evaluation.scores.score import Rows

IOU = MeanIou(class_names=["a", "b", "c"])


def rows(seed: int, gain: float, seeds: int = 3, items: int = 40, classes: int = 3) -> Rows:
    """Pixel counts of a classifier that errs at random, towards the next class."""
    source = np.random.default_rng([seed, 7])
    label = np.broadcast_to(np.random.default_rng(7).integers(20, 200, (items, classes)), (seeds, items, classes))
    right = source.binomial(label, 0.6 + gain)
    return np.concatenate([right, label, right + np.roll(label - right, 1, axis=-1)], axis=-1).astype(float)


def test_a_comparison() -> None:
    found = interval_before([rows(1, 0)], [rows(2, 0.01)], IOU, resamples=400)
    assert found == pytest.approx((-0.0018057313984146052, 0.025263929657678232), abs=1e-14)
    assert word_before(*found, IOU) == "no difference"


def test_trainings_against_their_start() -> None:
    found = interval_before([rows(1, 0)], [rows(2, 0.01), rows(3, 0.02), rows(4, 0.0)], IOU, resamples=400)
    assert found == pytest.approx((-0.004950761385956032, 0.023429680640145487), abs=1e-14)


def test_trainings_with_a_seed_each() -> None:
    pairs = np.concatenate([rows(2, 0.01)[:1], rows(3, 0.02)[:1], rows(4, 0.0)[:1]])
    found = interval_before([rows(1, 0)], [pairs], IOU, resamples=400)
    assert found == pytest.approx((-0.008976048136192696, 0.027014453292281238), abs=1e-14)


def test_two_rows_of_matrices() -> None:
    found = interval_before([rows(1, 0), rows(5, 0.0)], [rows(2, 0.01), rows(3, 0.02)], IOU, resamples=400)
    assert found == pytest.approx((0.002829610397524884, 0.02922476225551026), abs=1e-14)


def test_a_class_that_one_side_alone_predicts_counted_as_nothing_for_that_side() -> None:
    base, model = rows(1, 0), rows(2, 0)
    base[..., [2, 5, 8]] = model[..., [2, 5, 8]] = 0
    base[:, :4, 8] = 5
    found = interval_before([base], [model], IOU, resamples=400)
    assert found == pytest.approx((0.12117814517541364, 0.15254651907564712), abs=1e-14)
    assert word_before(*found, IOU) == "better"


def test_words_and_the_overall_word() -> None:
    errors = Means(headline="error", names=["error"], better="lower")
    described = Means(headline="CKA", names=["CKA"], better="neither")
    assert [word_before(0.1, 0.2, score) for score in (IOU, errors, described)] == ["better", "worse", "different"]
    assert overall_before({"a": "better", "b": "no difference"}) == "better"
    assert overall_before({"a": "better", "b": "worse"}) == "mixed"
    assert overall_before({"a": "worse"}) == "worse"
    assert overall_before({"a": "no difference"}) == "no difference"
