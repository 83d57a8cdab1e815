# SPDX-License-Identifier: Apache-2.0
"""From times and scores to the answer, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rekindle.bench.gain.figures import Point, Scored, figures_of, when_reached
from rekindle.bench.gain.pace import Mark, Pace, Recorded, Training, counted_up, pace_of
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.scores.score import Rows

SCORE = Means(headline="accuracy", names=["accuracy"])
PLAN = {"steps": 4, "batch_size": 8, "head_steps": 1, "facts": {"threads": 1}}


def curve(*points: tuple[float, float]) -> list[Point]:
    return [Point(step, seconds, score, (score,), (seconds,)) for step, (seconds, score) in enumerate(points)]


@pytest.mark.parametrize(
    ("points", "target", "seconds"),
    [
        (((0, 0.0), (10, 0.5), (20, 1.0)), 0.75, 15.0),
        (((0, 0.0), (10, 0.8), (20, 0.6), (30, 1.0)), 0.7, 22.5),  # had, lost, had again: what counts is what is kept
        (((0, 0.0), (10, 0.8), (20, 0.6)), 0.7, None),
        (((0, 0.0), (20, 1.0)), 0.5, 20.0),  # nothing was measured between start and end
        (((0, 0.9), (10, 1.0), (20, 1.0)), 0.9, 0.0),
    ],
)
def test_a_target_is_reached_where_the_curve_stays_above(
    points: tuple[tuple[float, float], ...], target: float, seconds: float | None
) -> None:
    assert when_reached(curve(*points), target, higher_is_better=True) == pytest.approx(seconds)
    mirrored = curve(*((at, -score) for at, score in points))
    assert when_reached(mirrored, -target, higher_is_better=False) == pytest.approx(seconds)


def pace(seconds: float) -> Pace:
    return counted_up(PLAN, [seconds], [seconds], None, setup_seconds=1.0, first_step_seconds=1.0, peak_bytes=5)


def weighed(values: NDArray[np.float64]) -> Rows:
    """Rows of the score: an item's value and its weight."""
    return np.concatenate([values, np.ones_like(values)], axis=-1)


def scored(*means: float, seconds: float) -> Scored:
    """Two trainings of 40 items, the second one 0.02 better, with a mark for each mean at equal times."""
    noise = np.random.default_rng(0).normal(0, 0.01, (1, 40, 1))
    marks = tuple(Mark(n, seconds * n / len(means), None, Path("m")) for n in range(1, len(means) + 1))
    rows = [[weighed(noise - noise.mean() + mean + more) for mean in means] for more in (-0.01, 0.01)]
    return Scored([Training(seed, marks) for seed in (0, 1)], rows)


def test_a_faster_side_has_its_share_of_the_baselines_gain_and_time() -> None:
    """By hand: the start 0.5, the baseline's gain 0.2 in 40 s; 95 % is 0.69, which the other has at 0.68 + half of 0.02."""
    start = weighed(np.full((1, 40, 1), 0.5))
    sides = {"usual": scored(0.6, 0.7, seconds=40.0), "fast": scored(0.68, 0.70, seconds=20.0)}
    usual, fast = figures_of(
        {"usual": pace(10.0), "fast": pace(5.0)}, sides, start, SCORE, None, share=0.95, resamples=200, level=0.95
    )
    assert usual.gain is not None and usual.gain.difference == pytest.approx(0.2) and usual.gain.verdict == "better"
    assert usual.gain.low < 0.2 < usual.gain.high and usual.gain.training_seeds == 2
    assert usual.reached is not None and usual.reached.seconds == pytest.approx(20 + 20 * 0.9)
    assert fast.reached is not None and fast.reached.share_of_gain == pytest.approx(1.0)
    assert fast.reached.seconds == pytest.approx(15.0) and fast.reached.of_baseline == pytest.approx(15 / 40)
    assert fast.whole_of_baseline == 0.5
    assert fast.against_baseline is not None and fast.against_baseline.verdict == "no difference"
    assert fast.curve[1].by_training == pytest.approx((0.67, 0.69)) and fast.curve[0].step == 0


def test_where_the_baseline_gains_nothing_there_is_no_target() -> None:
    start = weighed(np.full((1, 40, 1), 0.5))
    sides = {"usual": scored(0.5, 0.45, seconds=40.0), "fast": scored(0.5, 0.6, seconds=20.0)}
    found = figures_of(
        {name: pace(1.0) for name in sides}, sides, start, SCORE, None, share=0.95, resamples=200, level=0.95
    )
    assert all(side.reached is not None and side.reached.seconds is None for side in found)
    assert found[1].against_baseline is not None and found[1].against_baseline.difference == pytest.approx(0.15)


def test_a_step_that_nobody_heard_counts_like_the_usual_one() -> None:
    own = Recorded(PLAN, {1: 1.0, 2: 3.0, 4: 5.0}, {1: 2.0}, (6.0,), 9, 4)
    assert own.usual == 4.0 and own.seconds_at(4) == 1 + 3 + 4 + 5
    assert own.joules_at(1) == 2.0 and own.joules_at(2) is None
    found = pace_of([own, own])
    assert found.whole_seconds == 13.0 and found.images_per_s == 32 / 13 and found.joules is None
    assert found.head_step_seconds == 1.0 and not found.is_counted_up
