# SPDX-License-Identifier: Apache-2.0
"""From the answer of `rekindle bench gain` to its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekindle.bench.gain.figures import SideFigures
from rekindle.drawing.gain_curves import GainLine, write_gain_curves
from rekindle.evaluation.scores.score import Score


def write_gain_picture(path: Path, sides: Sequence[SideFigures], score: Score, share: float) -> None:
    """Draw the curves of all sides that were scored, and the share of the baseline's gain where it has one."""
    unit = 100.0 if score.is_fraction else 1.0
    lines = [
        GainLine(
            name=side.label,
            seconds=[point.seconds for point in side.curve],
            scores=[unit * point.score for point in side.curve],
            low=[unit * min(point.by_training) for point in side.curve],
            high=[unit * max(point.by_training) for point in side.curve],
            reached=None if side.reached is None else side.reached.seconds,
        )
        for side in sides
        if side.curve
    ]
    first, target = sides[0], None
    if first.reached is not None and first.reached.share_of_gain is not None and first.gain is not None:
        target = unit * (first.curve[0].score + share * first.gain.difference)
    metric = f"{score.name} (%)" if score.is_fraction else score.name
    write_gain_curves(path, lines, metric, target, f"{share:.0%} of the gain of {first.label}")
