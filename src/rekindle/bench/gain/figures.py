# SPDX-License-Identifier: Apache-2.0
"""From times and scores to the answer: the curve, the gain with its interval, and when a share of the baseline's gain is had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.bench.gain.pace import Pace, Training
from rekindle.core.errors import RekindleError
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.evaluation.verdict.judging import Judged, judged_fields


@dataclass(frozen=True)
class Scored:
    """What was measured of a side.

    Attributes:
        trainings: one per seed, with the same marks.
        rows: by training and mark, [S, n, F] of S evaluation seeds.
    """

    trainings: list[Training]
    rows: list[list[Rows]]


@dataclass(frozen=True)
class Point:
    """The score after a step.

    Attributes:
        step: 0 for the start.
        seconds: mean over the trainings.
        score: mean over trainings and evaluation seeds; by_training: over evaluation seeds.
        seconds_by_training: of each.
    """

    step: int
    seconds: float
    score: float
    by_training: tuple[float, ...]
    seconds_by_training: tuple[float, ...]


@dataclass(frozen=True)
class Reached:
    """Whether and when a side has the share of the baseline's gain.

    Attributes:
        share_of_gain: of its own end; None where the baseline gains nothing.
        seconds: to the target, interpolated between marks, after which it is kept; None where it is not reached, or none is set.
        of_baseline: these seconds over the baseline's whole time.
    """

    share_of_gain: float | None
    seconds: float | None
    of_baseline: float | None


@dataclass(frozen=True)
class SideFigures:
    """One side's answer. What needs labelled data is None or empty without.

    Attributes:
        label: its name.
        pace: how fast it trains.
        whole_of_baseline: its whole time over the baseline's.
        curve: from the start to the end.
        gain: its end against the start.
        against_baseline: its end against the baseline's; None for the baseline.
        reached: the share of the baseline's gain.
    """

    label: str
    pace: Pace
    whole_of_baseline: float
    curve: tuple[Point, ...] = ()
    gain: Judged | None = None
    against_baseline: Judged | None = None
    reached: Reached | None = None


def curve_of(scored: Scored, start: Rows, score: Score) -> tuple[Point, ...]:
    """Return the points of a side, the start first. Raises: RekindleError for trainings with other marks."""
    steps = [[mark.step for mark in training.marks] for training in scored.trainings]
    common = [step for step in steps[0] if all(step in own for own in steps)]
    if len({own[-1] for own in steps}) > 1:
        raise RekindleError(f"trainings of one side ended after different steps, {[own[-1] for own in steps]}")
    begun = _mean(start, score)
    none = (0.0,) * len(steps)
    points = [Point(0, 0.0, begun, (begun,) * len(steps), none)]
    for step in common:
        places = [own.index(step) for own in steps]
        values = tuple(_mean(rows[place], score) for rows, place in zip(scored.rows, places, strict=True))
        seconds = tuple(training.marks[place].seconds for training, place in zip(scored.trainings, places, strict=True))
        points.append(Point(step, float(np.mean(seconds)), float(np.mean(values)), values, seconds))
    return tuple(points)


def when_reached(curve: Sequence[Point], target: float, *, higher_is_better: bool) -> float | None:
    """Return the seconds from which a curve is at the target or better to its end; None where its end is not.

    Between two marks it is taken for straight. A curve of start and end alone says nothing of what lies between: its whole time.
    """
    sign = 1.0 if higher_is_better else -1.0
    above = [sign * (point.score - target) for point in curve]
    if above[-1] < 0:
        return None
    first = len(curve) - 1
    while first > 0 and above[first - 1] >= 0:
        first -= 1
    if first == 0:
        return 0.0
    if len(curve) == 2:
        return curve[-1].seconds
    before, after = curve[first - 1], curve[first]
    share = -above[first - 1] / (above[first] - above[first - 1])
    return before.seconds + share * (after.seconds - before.seconds)


def judged(
    base: list[Rows], model: list[Rows], score: Score, groups: NDArray[np.int64] | None, resamples: int, level: float
) -> Judged:
    """Return the difference of two sides' ends, with its interval over items, evaluation seeds and trainings."""
    return Judged(**judged_fields(difference_of(base, model, score, groups=groups, resamples=resamples), level))


def figures_of(
    paces: dict[str, Pace],
    scored: dict[str, Scored],
    start: Rows | None,
    score: Score | None,
    groups: NDArray[np.int64] | None,
    *,
    share: float,
    resamples: int,
    level: float,
) -> list[SideFigures]:
    """Put together what was found of every side; the first is the baseline."""
    baseline = next(iter(paces))
    whole = paces[baseline].whole_seconds
    if start is None or score is None:
        return [SideFigures(label, pace, pace.whole_seconds / whole) for label, pace in paces.items()]
    sign = 1.0 if score.higher_is_better else -1.0
    ends = {label: [rows[-1] for rows in own.rows] for label, own in scored.items()}
    curves = {label: curve_of(own, start, score) for label, own in scored.items()}
    gains = {label: judged([start], end, score, groups, resamples, level) for label, end in ends.items()}
    first = gains.get(baseline)
    has_gain = first is not None and sign * first.difference > 0
    found = []
    for label, pace in paces.items():
        if label not in scored:
            found.append(SideFigures(label, pace, pace.whole_seconds / whole))
            continue
        reached = Reached(None, None, None)
        if first is not None and has_gain:
            target = curves[baseline][0].score + share * first.difference
            seconds = when_reached(curves[label], target, higher_is_better=score.higher_is_better)
            part = gains[label].difference / first.difference
            reached = Reached(part, seconds, None if seconds is None else seconds / whole)
        other = None
        if label != baseline and baseline in ends:
            other = judged(ends[baseline], ends[label], score, groups, resamples, level)
        found.append(SideFigures(label, pace, pace.whole_seconds / whole, curves[label], gains[label], other, reached))
    return found


def _mean(rows: Rows, score: Score) -> float:
    return float(np.mean([score.value(own) for own in rows]))


def plain(value: Any) -> Any:
    """A difference's parts without those that only a comparison needs, for JSON."""
    return (
        None
        if value is None
        else value.model_dump(mode="json", exclude={"joint", "flattered", "margin", "units_for_half"})
    )
