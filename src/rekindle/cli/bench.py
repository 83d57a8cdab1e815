# SPDX-License-Identifier: Apache-2.0
"""`rekindle bench`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.sides import sides_of as sides_of_gain
from rekindle.bench.options import BenchOptions
from rekindle.bench.table import BENCHES, GAIN, bench_of, sides_of
from rekindle.cli.arguments import parse, print_help, take
from rekindle.cli.compare import named_protocols
from rekindle.core.errors import RequestError
from rekindle.measuring.options import with_protocols

if TYPE_CHECKING:
    from rich.console import Console

    from rekindle.bench.running import BenchResult, BenchRow

EPILOGUE = """
also: --json, --debug. --peer may be repeated. A peer must be installed in the environment that rekindle runs in.
Peak is resident memory during the rounds, in brackets what the rounds added to it. time / ours compares with the first row.
"""

WIDEST = 120
GAIN_SUMMARY = (
    "seconds to a share of the baseline's gain, recipes in turn (options of its own: rekindle bench gain --help)"
)
GAIN_EPILOGUE = """
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


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle bench --help`."""
    if GAIN in arguments[:1]:
        return _run_gain(gathered(gathered(arguments[1:], "--recipe"), "--build"))
    if {"--help", "-h"} & {*arguments}:
        print_help(None, BenchOptions, program="bench")
        summaries = {name: bench.summary for name, bench in BENCHES.items()} | {GAIN: GAIN_SUMMARY}
        print("benches:\n" + "\n".join(f"  {name:<8} {summary}" for name, summary in summaries.items()))
        print(EPILOGUE)
        return 0
    taken = take(gathered(arguments, "--peer"), flags=["--json"])
    options = parse(BenchOptions, taken.rest, program="bench")
    sides_of(options)
    print(f"rekindle bench {options.name}: {bench_of(options).summary}", file=sys.stderr, flush=True)
    from rekindle.bench.running import run_bench

    result = run_bench(options, lambda line: print(line, file=sys.stderr, flush=True))
    if taken.flags:
        print(json.dumps(result.to_dict()))
    else:
        _print(result)
    return 0


def _run_gain(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle bench gain --help`."""
    named = named_protocols(arguments)
    if {"--help", "-h"} & {*arguments}:
        print_help(None, with_protocols(GainOptions, named or ()), program="bench gain")
        print(GAIN_EPILOGUE)
        return 0
    if named is not None and len(named) != 1:
        raise RequestError(f"--protocol {' '.join(named)}: the curve is of one score; name one protocol")
    taken = take(arguments, flags=["--json"])
    protocol = named or [GainOptions.model_fields["protocol"].default]
    options = parse(with_protocols(GainOptions, protocol), taken.rest, program="bench gain")
    labels = [side.label for side in sides_of_gain(options)]
    print(f"rekindle bench gain: {', '.join(labels)}", file=sys.stderr, flush=True)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.bench.gain import run as gain
    from rekindle.bench.gain.telling import show

    result = gain.run_gain(options, lambda line: print(line, file=sys.stderr, flush=True))
    if taken.flags:
        print(json.dumps(result.to_dict()))
    else:
        show(result, options, _console())
    return 0


def gathered(arguments: Sequence[str], option: str) -> list[str]:
    """Bring the values of a repeated option together at the end: --peer a --peer b c -> --peer a b c.

    Example:
        >>> gathered(["step", "--peer", "a", "--json", "--peer=b"], "--peer")
        ['step', '--json', '--peer', 'a', 'b']
    """
    rest: list[str] = []
    values: list[str] = []
    is_inside = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == option:
            values += [value] if equals else []
            is_inside = not equals
        elif is_inside and not argument.startswith("-"):
            values.append(argument)
        else:
            is_inside = False
            rest.append(argument)
    return [*rest, option, *values] if values else rest


def _print(result: BenchResult) -> None:
    from rich.table import Table

    machine, case = result.machine, result.case
    console = _console()
    table = Table(box=None)
    for heading in ("side", "median s", "images/s", "spread", "peak MiB", "time / ours", "of the limit"):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in result.rows:
        facts = row.measured.facts
        told = [f"{name.replace('_', ' ')} {facts[name]}" for name in BENCHES[result.name].shown if name in facts]
        if told:
            console.print(f"{row.measured.label}: {', '.join(told)}", markup=False)
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s); torch {machine['torch']}; "
        f"{case['device']}, {case['precision']}",
        markup=False,
    )


def _console() -> Console:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDEST)  # a figure cut short is worse than a long line
    return console


def _cells(row: BenchRow) -> list[str]:
    side, mib = row.measured, 2**20
    added = (side.peak_bytes - side.baseline_bytes) // mib
    return [
        side.label,
        f"{side.median:.3f}",
        f"{side.images_per_s:.2f}" if side.images else "",
        f"{side.spread:.0%}",
        f"{side.peak_bytes // mib} (+{added})" if side.peak_bytes else "",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.limit_share is None else f"{row.limit_share:.0%}",
    ]
