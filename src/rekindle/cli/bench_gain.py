# SPDX-License-Identifier: Apache-2.0
"""`rekindle bench gain`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.sides import sides_of
from rekindle.cli.arguments import parse, print_help, take
from rekindle.cli.compare import named_protocols
from rekindle.core.errors import RequestError
from rekindle.measuring.options import with_protocols

if TYPE_CHECKING:
    from rich.console import Console

    from rekindle.bench.gain.figures import SideFigures
    from rekindle.bench.gain.run import GainResult
    from rekindle.evaluation.scores.score import Score
    from rekindle.evaluation.verdict.judging import Judged

SUMMARY = "seconds to a share of the baseline's gain, recipes and builds in turn (its own options: rekindle bench gain --help)"
EPILOGUE = """
also: --json, --debug. With --protocol NAME --help, the options of that protocol are listed.

  rekindle bench gain --recipe usual.yaml fast.yaml --backbone MODEL --images IMAGES --labels DATA --work DIR --out gain.json
      trains both, three seeds each, in turn from mark to mark, scores every mark, and says when each side has 95 % of the gain
      of usual.yaml; the same command goes on after an interrupt
  rekindle bench gain --recipe usual.yaml fast.yaml --backbone MODEL --images IMAGES --time-only 10
      times ten steps of each, one at a time in turn, and counts up to their whole runs; scores nothing
  ... --time-only 10 --runs runs.yaml --labels DATA
      and scores runs that were trained elsewhere: `usual: [runs/usual-0, runs/usual-1]`, a line for each side

Seconds are of training alone: start-up is told apart, and scoring stands outside. The target must be kept to the end; between two
marks the curve is taken for straight.
"""
WIDEST = 120


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle bench gain --help`."""
    named = named_protocols(arguments)
    if {"--help", "-h"} & {*arguments}:
        print_help(None, with_protocols(GainOptions, named or ()), program="bench gain")
        print(EPILOGUE)
        return 0
    if named is not None and len(named) != 1:
        raise RequestError(f"--protocol {' '.join(named)}: the curve is of one score; name one protocol")
    taken = take(arguments, flags=["--json"])
    protocol = named or [GainOptions.model_fields["protocol"].default]
    options = parse(with_protocols(GainOptions, protocol), taken.rest, program="bench gain")
    sides = sides_of(options)
    print(f"rekindle bench gain: {', '.join(side.label for side in sides)}", file=sys.stderr, flush=True)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.bench.gain.run import run_gain

    result = run_gain(options, lambda line: print(line, file=sys.stderr, flush=True))
    if taken.flags:
        print(json.dumps(result.to_dict()))
    else:
        _print(result, options)
    return 0


def _print(result: GainResult, options: GainOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    from rekindle.bench.gain.trainings import told_seconds

    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDEST)  # a figure cut short is worse than a long line
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
            f"{pace.peak_bytes // 2**20}",
            "not told" if pace.joules is None else f"{pace.joules:.0f}",
        )
    console.print(table)
    if any(side.pace.is_counted_up for side in result.sides):
        timed = ", ".join(str(side.pace.timed_steps) for side in result.sides)
        console.print(f"whole runs are counted up from timed steps ({timed})")
    if result.score is not None:
        _print_gain(result, result.score, options)
    machine, facts = result.machine, result.sides[0].pace.facts
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s); torch {facts['torch']}; "
        f"{facts['device']}, {facts['precision']}",
        markup=False,
    )


def _print_gain(result: GainResult, score: Score, options: GainOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    from rekindle.bench.gain.trainings import told_seconds

    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDEST)
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
    _print_notes(console, result.sides[0], score)


def _print_notes(console: Console, first: SideFigures, score: Score) -> None:
    if first.gain is None:
        console.print(f"note: {first.label}, the baseline, was not scored, so there is no gain to reach a share of")
        return
    sign = 1.0 if score.higher_is_better else -1.0
    low, high = sorted((sign * first.gain.low, sign * first.gain.high))
    if high <= 0 or low <= 0:
        console.print(
            f"note: the gain of {first.label} cannot be told from none ({_interval(first.gain, score)}), so a share of it says "
            "little; look at the differences to the baseline",
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
