# SPDX-License-Identifier: Apache-2.0
"""Verdict on a difference: better, no difference, equivalent, worse, or that it cannot be judged, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rekindle.core.options import Options
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.difference import Difference, Unit, deviation

Words = Literal["better", "no difference", "equivalent", "worse", "different", "cannot judge"]
FEWEST: dict[Unit, int] = {"items": 30, "groups": 8}
"""With fewer, intervals are too often wrong for a word (docs/verdict.md)."""
MOST_UNDEFINED = 0.05
"""With a larger share of undefined resamples the interval is of a selection of them, and no word is given."""


class Joint(Options):
    """The same difference where several are looked at together: their common chance of any false word is 1 - level."""

    verdict: Words
    """The word that the overall word rests on."""
    low: float
    """Lower end of the interval, widened for the number of looks."""
    high: float
    """Upper end."""
    level: float
    """Coverage of this interval alone."""
    looks: int
    """How many differences were looked at together."""


class Judged(Options):
    """A difference, its interval and its word. Older files have the first six fields alone."""

    verdict: Words
    """Better or worse where the whole interval is on the good or the bad side of zero; equivalent where it lies within the
    margin; different where no side is good; cannot judge with fewer than 30 items or 8 groups."""
    difference: float
    """Model minus base, each the mean over its seeds."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    level: float
    """Coverage of the interval."""
    rule: Literal["percentile", "student"] = "percentile"
    """How the interval was made: percentile in files of before (too short), by Student's t since."""
    unit: Unit = "items"
    """What a resample draws."""
    units: int = 0
    """How many of them; 0 in files of before."""
    items: int = 0
    """How many items; 0 in files of before."""
    evaluation_seeds: int = 0
    """Seeds of heads and memories; 0 in files of before."""
    training_seeds: int = 1
    """Trainings of the model; with one, the interval covers no other training."""
    standard_error: float = 0.0
    """Of the difference; 0 in files of before."""
    components: dict[str, float] = Field(default_factory=dict)
    """Its square, by source: items or groups, evaluation seeds, training seeds."""
    undefined: float = 0.0
    """Share of the resamples that defined no value and were left out."""
    smallest_effect: float | None = None
    """True difference that 80 of 100 such comparisons would tell from zero; None in files of before."""
    units_for_half: int | None = None
    """Items or groups that would show half of it; None where seeds limit it, and in files of before."""
    margin: float | None = None
    """Half-width of what counts as equivalent; None where none was stated."""
    flattered: tuple[float, float] = (0.0, 0.0)
    """How much further the interval reaches below and above, where a step was chosen on items that judge it."""
    joint: Joint | None = None
    """The same over all that was looked at; None for a single look, and where it is none of them."""


class Verdict(Judged):
    """One model against the base."""

    base: float
    """Mean of the base over the seeds."""
    model: float
    """Mean of the model over the seeds."""
    base_std: float
    """Standard deviation over the seeds (n - 1); 0 with one seed."""
    model_std: float
    """Standard deviation over the seeds (n - 1); 0 with one seed."""
    per_class: dict[str, float]
    """Difference of each part of the score (the class's IoU), mean over the seeds; without parts that a side does not
    define. Empty for a score without parts."""


def judged_fields(
    found: Difference, level: float, margin: float | None = None, joint: Joint | None = None
) -> dict[str, Any]:
    """Say of a difference what `Judged` holds.

    Args:
        found: the difference.
        level: coverage of the interval.
        margin: half-width of what counts as equivalent, in the score's own numbers.
        joint: of this difference among others.

    """
    low, high = found.interval(level)
    smallest = found.smallest_effect(level)
    return {
        "verdict": word_of(found, low, high, margin),
        "difference": found.value,
        "low": low,
        "high": high,
        "level": level,
        "rule": "student",
        "unit": found.unit,
        "units": found.units,
        "items": found.items,
        "evaluation_seeds": found.seeds,
        "training_seeds": found.trainings,
        "standard_error": found.standard_error,
        "components": {name: part.variance for name, part in found.components.items()},
        "undefined": found.undefined,
        "smallest_effect": smallest,
        "units_for_half": found.units_for(smallest / 2, level),
        "margin": margin,
        "flattered": found.flattered,
        "joint": joint,
    }


def verdict_of(
    found: Difference,
    base: Sequence[Rows],
    model: Sequence[Rows],
    *,
    level: float = 0.95,
    margin: float | None = None,
    joint: Joint | None = None,
) -> Verdict:
    """Judge a difference. Args: base and model, the rows that it was made of; the others as of `judged_fields`."""
    return Verdict(
        **judged_fields(found, level, margin, joint),
        base=float(found.base.mean()),
        model=float(found.model.mean()),
        base_std=deviation(found.base.mean(axis=0)),
        model_std=deviation(found.model.mean(axis=0)),
        per_class=_per_part(base, model, found.score),
    )


def can_judge(found: Difference) -> bool:
    """Whether there are enough items or groups for a word, and enough resamples that define a value."""
    return found.units >= FEWEST[found.unit] and found.undefined <= MOST_UNDEFINED


def word_of(found: Difference, low: float, high: float, margin: float | None = None) -> Words:
    """Say what an interval of a difference means."""
    if not can_judge(found):
        return "cannot judge"
    if margin is not None and found.score.is_judged and -margin <= low and high <= margin:
        return "equivalent"
    if low <= 0 <= high:
        return "no difference"
    if not found.score.is_judged:
        return "different"
    return "better" if (low > 0) == found.score.higher_is_better else "worse"


def margin_in(score: Score, points: float | None) -> float | None:
    """Margin of a score, of points on the request; None for a score that is no fraction, which has no points."""
    return None if points is None or not score.is_fraction else points / 100


def _per_part(base: Sequence[Rows], model: Sequence[Rows], score: Score) -> dict[str, float]:
    sides = [[score.parts(rows) for training in side for rows in training] for side in (base, model)]
    known = [name for name in sides[0][0] if all(name in found for side in sides for found in side)]
    means = [{name: float(np.mean([found[name] for found in side])) for name in known} for side in sides]
    return {name: means[1][name] - means[0][name] for name in known}
