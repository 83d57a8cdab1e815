# SPDX-License-Identifier: Apache-2.0
"""The answer of `rekindle bench gain` as tables and lines, onto a console that the command line gives."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rekindle.bench.gain.figures import SideFigures
from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.run import GainResult
from rekindle.bench.gain.trainings import told_seconds
from rekindle.evaluation.scores.score import Score
from rekindle.evaluation.verdict.judging import Judged


def show(result: GainResult, options: GainOptions, console: Console) -> None:
    """Show how fast the sides train, and what was gained when."""
    table = Table(box=None)
    for heading in (
        "side",
        "steps",
        "s/step",
        "images/s",
        "whole run",
        "of baseline",
        "to start",
        "peak MiB",
        "joules",
    ):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    for side in result.sides:
        pace = side.pace
        table.add_row(
            side.label,
            f"{pace.steps} of {pace.batch_size}",
            f"{pace.step_seconds:.3g}",
            f"{pace.images_per_s:.2f}",
            told_seconds(pace.whole_seconds),
            f"{side.whole_of_baseline:.2f}",
            told_seconds(pace.setup_seconds),
            told_seconds(pace.first_step_seconds),
            f"{pace.peak_bytes // 2**20}",
            "not told" if pace.joules is None else f"{pace.joules:.0f}",
        )
    console.print(table)
    if any(side.pace.is_counted_up for side in result.sides):
        timed = ", ".join(str(side.pace.timed_steps) for side in result.sides)
        console.print(f"whole runs are counted up from timed steps ({timed})")
    if result.score is not None:
        _show_gain(result, result.score, options, console)
    machine, facts = result.machine, result.sides[0].pace.facts
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s); torch {facts['torch']}; "
        f"{facts['device']}, {facts['precision']}",
        markup=False,
    )


def _show_gain(result: GainResult, score: Score, options: GainOptions, console: Console) -> None:
    scored = [side for side in result.sides if side.gain is not None]
    table = Table(box=None)
    headings = (
        "side",
        f"gain in {score.name}",
        f"{options.level:.0%} interval",
        "share of gain",
        f"to {options.share:.0%}",
    )
    for heading in (*headings, "of baseline's time", "against the baseline"):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    for side in scored:
        assert side.gain is not None and side.reached is not None
        part, seconds, time = side.reached.share_of_gain, side.reached.seconds, side.reached.of_baseline
        missed = "not reached" if part is not None else "no target"
        table.add_row(
            side.label,
            _signed(side.gain.difference, score),
            _interval(side.gain, score),
            "" if part is None else f"{part:.0%}",
            missed if seconds is None else told_seconds(seconds),
            "" if time is None else f"{time:.3f}",
            "baseline" if side.against_baseline is None else _against(side.against_baseline, score),
        )
    console.print()
    console.print(table)
    for side in scored:
        told = ", ".join(f"{_value(p.score, score)} at {told_seconds(p.seconds)}" for p in side.curve)
        console.print(f"{side.label}: {score.name} {told}", markup=False)
    _show_notes(console, result.sides[0], score)


def _show_notes(console: Console, first: SideFigures, score: Score) -> None:
    if first.gain is None:
        console.print(f"note: {first.label}, the baseline, was not scored, so there is no gain to reach a share of")
        return
    sign = 1.0 if score.higher_is_better else -1.0
    low, high = sorted((sign * first.gain.low, sign * first.gain.high))
    if low <= 0:
        told = "is none" if high <= 0 else "cannot be told from none"
        console.print(
            f"note: the gain of {first.label} {told} ({_interval(first.gain, score)}), so a share of it says nothing; look at "
            "the differences to the baseline",
            markup=False,
        )
    if first.gain.training_seeds == 1:
        console.print("note: one training says nothing of a recipe, whose runs spread by 0.3 to 1 point; use --seeds 3")


def _against(found: Judged, score: Score) -> str:
    return f"{_signed(found.difference, score)} ({_interval(found, score)})"


def _interval(found: Judged, score: Score) -> str:
    return f"{_signed(found.low, score)} to {_signed(found.high, score)}"


def _value(value: float, score: Score) -> str:
    return f"{100 * value:.2f}" if score.is_fraction else f"{value:.4g}"


def _signed(value: float, score: Score) -> str:
    return f"{100 * value:+.2f}" if score.is_fraction else f"{value:+.3g}"
