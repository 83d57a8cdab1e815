# SPDX-License-Identifier: Apache-2.0
"""Scores of resampled items: what a sum says must be what the drawn items say."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from rekindle.evaluation.scores.kinds import AnyScore, DefinedMeans, MeanAveragePrecision, MeanIou, Means
from rekindle.evaluation.scores.score import Score
from rekindle.evaluation.scores.threshold_scores import BestThreshold, FewShot, Overlap

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


EVERY_KIND: dict[str, Score] = {
    "mean-iou": MeanIou(class_names=["a", "b"]),
    "mean-iou, zero": MeanIou(class_names=["a", "b"], absent="zero"),
    "means": DEPTH,
    "defined-means": DefinedMeans(headline="mAP", names=["mAP", "mP"]),
    "mean-average-precision": MeanAveragePrecision(class_names=["a", "b"]),
    "best-threshold": BestThreshold(thresholds=[0.1, 0.5], groups=["a", "b"]),
    "overlap": Overlap(num_bins=4),
    "few-shot": FewShot(headline="F1", thresholds=[0.1, 0.5]),
}


@pytest.mark.parametrize("score", EVERY_KIND.values(), ids=EVERY_KIND)
def test_a_score_without_one_item_is_that_of_the_others(score: Score) -> None:
    rows = np.random.default_rng(0).integers(0, 9, (6, len(score.columns))) + 1
    slow = [score.value(np.delete(rows, place, axis=0)) for place in range(6)]
    assert score.without_each(rows) == pytest.approx(np.array(slow), abs=1e-12)


def test_many_items_are_left_out_only_where_sums_are_enough() -> None:
    ranked = MeanAveragePrecision(class_names=["a"])
    assert ranked.without_each(np.ones((1001, 2))) is None
    summed = DEPTH.without_each(np.ones((1001, 3)))
    assert summed is not None
    assert summed.tolist() == [1.0] * 1001
    assert {score.kind for score in EVERY_KIND.values()} == {  # type: ignore[attr-defined]
        kind.model_fields["kind"].default for kind in get_args(get_args(AnyScore)[0])
    }
