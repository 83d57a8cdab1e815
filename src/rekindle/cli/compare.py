# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.cli.arguments import parse, print_help, take
from rekindle.cli.compare_grid import COLOURS, run_grid
from rekindle.cli.compare_results import run_results
from rekindle.cli.compare_rows import run_rows
from rekindle.measuring.options import SMALL, CompareOptions, with_protocols

if TYPE_CHECKING:
    from rekindle.evaluation.scores.score import Score
    from rekindle.measuring.comparison import Comparison

EPILOGUE = """
also: --json, --debug. With --protocol NAME... --help, the options of those protocols are listed as well.
The verdict is "better" or "worse" where the whole interval of the difference is on one side of zero; "equivalent" where it lies
within --margin; "cannot judge" with fewer than 30 items or 8 groups. Overall, a model is better if some protocol says better and
none worse, worse the other way round, mixed if there are both, and else there is no difference; that word, and --fail-if-worse,
rest on intervals that are widened for their number. docs/verdict.md says how often words are wrong.

a recipe, not a run: rekindle compare BASE RUN RUN RUN --pool takes runs that differ in their seed alone as one, and
rekindle compare BASE --recipe FILE.yaml --training-seeds 3 --data DATA --out DIR trains them first. What is done is kept; the
same command goes on. With other seeds runs spread by 0.3 to 1 point, which no interval of a single run covers.

a matrix: rekindle compare --grid GRID.yaml [--out DIR] [--images IMAGES] [--data DATA] [--json] [--dry-run]
trains every start x method x framework x seed of the grid, measures all of them against their starts, and writes one table
(table.json, table.csv, table.md). What is done is kept and what was interrupted goes on: run the same command again.
--dry-run lists the cells and what is done. What --out, --images and --data say wins over the grid: one grid serves several data
sets. examples/grids/first.yaml is a grid with every part explained. Exit code 1 if a cell failed or the matrix was stopped.

many data sets: rekindle compare --results FILE.json... --relative-to MODEL [--json]
reads result files of `evaluate` (any data sets, models and seeds) and prints every value, its relative improvement over the
baseline (a random initialisation, for example), and the mean of the improvements over the data sets.

two rows of matrices: rekindle compare --rows MATRIX METHOD/FRAMEWORK MATRIX METHOD/FRAMEWORK [--out FILE.json] [--json]
subtracts the second row from the first one, column by column, with an interval over images, evaluation and training seeds, where
a table compares each row with its start.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle compare --help`."""
    named = named_protocols(arguments)
    preset = take(arguments, values=["--preset"]).values.get("--preset", SMALL)
    if {"--help", "-h"} & {*arguments}:
        print_help(None, with_protocols(CompareOptions, named or (), preset if named else SMALL), program="compare")
        print(EPILOGUE)
        return 0
    if any(argument.partition("=")[0] == "--grid" for argument in arguments):
        return run_grid(arguments)
    if any(argument.partition("=")[0] == "--results" for argument in arguments):
        return run_results(arguments)
    if "--rows" in arguments:
        return run_rows(arguments)
    taken = take(arguments, flags=["--json"])
    protocols = named or CompareOptions.model_fields["protocol"].default
    options = parse(with_protocols(CompareOptions, protocols, preset), taken.rest, program="compare")
    shown = options.recipe or ", ".join(options.models) or "?"
    print(f"rekindle compare: {shown} against {options.base or '?'}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.matrix.recipe import compare
    from rekindle.measuring.compare import comparison_folder

    comparison = compare(options, watcher=TerminalWatcher())
    if taken.flags:
        print(comparison.model_dump_json())
    else:
        _print_table(comparison, options)
        print(f"written to {comparison_folder(options)}")
    return 1 if options.fail_if_worse and comparison.is_worse else 0


def named_protocols(arguments: Sequence[str]) -> list[str] | None:
    """Return what stands after --protocol, up to the next option; None without it."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--protocol":
            rest = [value] if equals else list(arguments[i + 1 :])
            end = next((k for k, word in enumerate(rest) if word.startswith("-")), len(rest))
            return rest[:end]
    return None


def _print_table(comparison: Comparison, options: CompareOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    for protocol in options.protocol:
        rows = [row for row in comparison.rows if row.protocol == protocol]
        score = rows[0].score
        good = "" if score.higher_is_better else ", lower is better"
        good = good if score.is_judged else ", neither direction is better"
        seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
        table = Table(title=f"{protocol}: {score.shown_name} on {comparison.data} ({comparison.split}), {seeds}{good}")
        for heading in ("model", score.name, "difference", f"{options.level:.0%} interval", "verdict"):
            is_text = heading in ("model", "verdict")
            table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
        first = rows[0].verdict
        table.add_row(comparison.base, _value(first.base, first.base_std, score), "", "", "base")
        for row in rows:
            v = row.verdict
            table.add_row(
                row.model,
                _value(v.model, v.model_std, score),
                _signed(v.difference, score),
                f"{_signed(v.low, score)} to {_signed(v.high, score)}",
                f"[{COLOURS[v.verdict]}]{v.verdict}[/]",
            )
        Console().print(table)
        told = {row.model: "; ".join(row.remarks) for row in rows}
        for model, text in told.items():
            if text:
                console.print(f"  {model}: {text}" if len(rows) > 1 else f"  {text}", markup=False)
    for entry in comparison.overall:
        console.print(f"overall, {entry.model}: {entry.overall.told}", markup=False)
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False)


def _value(mean: float, std: float, score: Score) -> str:
    return f"{100 * mean:.2f} ± {100 * std:.2f}" if score.is_fraction else f"{mean:.4g} ± {std:.2g}"


def _signed(difference: float, score: Score) -> str:
    return f"{100 * difference:+.2f}" if score.is_fraction else f"{difference:+.3g}"
