# SPDX-License-Identifier: Apache-2.0
"""Scores of resampled items: what a sum says must be what the drawn items say."""

from __future__ import annotations

import numpy as np
import pytest

from rekindle.evaluation.scores.kinds import MeanIou, Means
from rekindle.evaluation.scores.score import Score

DEPTH = Means(headline="AbsRel", names=["MSE (log²)", "AbsRel"], better="lower")


@pytest.mark.parametrize("score", [MeanIou(class_names=["a", "b"]), DEPTH])
def test_a_draw_is_scored_as_its_items_are(score: Score) -> None:
    source = np.random.default_rng(0)
    rows = source.integers(1, 9, (2, 5, len(score.columns)))
    counts = source.multinomial(5, [0.2] * 5, size=4)
    slow = [[score.value(np.repeat(side, count, axis=0)) for side in rows] for count in counts]
    assert score.over(rows, counts) == pytest.approx(np.array(slow), abs=1e-12)


def test_means_divide_sums_by_the_weight() -> None:
    rows = np.array([[1.0, 3.0, 2.0], [2.0, 1.0, 2.0]])
    assert DEPTH.metrics(rows) == {"AbsRel": 1.0, "MSE (log²)": 0.75}
    assert list(DEPTH.metrics(rows)) == ["AbsRel", "MSE (log²)"]
    assert DEPTH.columns == ["MSE (log²)", "AbsRel", "weight"]
    assert DEPTH.metrics(np.zeros((2, 3))) == {}


def test_parts_of_an_iou_are_its_classes() -> None:
    score = MeanIou(class_names=["road", "sky", "never"])
    rows = np.array([[4, 0, 0, 4, 4, 0, 8, 0, 0]])
    assert score.parts(rows) == {"road": 0.5, "sky": 0.0}
    assert score.value(rows) == 0.25
