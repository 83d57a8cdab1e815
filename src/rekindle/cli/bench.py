# SPDX-License-Identifier: Apache-2.0
"""`rekindle bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.bench.options import BenchOptions
from rekindle.bench.table import BENCHES, GAIN, bench_of, sides_of
from rekindle.cli import bench_gain
from rekindle.cli.arguments import parse, print_help, take

if TYPE_CHECKING:
    from rekindle.bench.running import BenchResult, BenchRow

EPILOGUE = """
also: --json, --debug. --peer may be repeated. A peer must be installed in the environment that rekindle runs in.
Peak is resident memory during the rounds, in brackets what the rounds added to it. time / ours compares with the first row.
"""

WIDEST = 120


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle bench --help`."""
    if GAIN in arguments[:1]:
        return bench_gain.run(gathered(gathered(arguments[1:], "--recipe"), "--build"))
    if {"--help", "-h"} & {*arguments}:
        print_help(None, BenchOptions, program="bench")
        summaries = {name: bench.summary for name, bench in BENCHES.items()} | {GAIN: bench_gain.SUMMARY}
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
    from rich.console import Console
    from rich.table import Table

    machine, case = result.machine, result.case
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDEST)  # a figure cut short is worse than a long line
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
