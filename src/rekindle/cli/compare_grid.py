# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare --grid`: a matrix of trainings and measurements."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rekindle.cli.arguments import take
from rekindle.core.errors import RequestError
from rekindle.matrix.grid import Grid, read_grid

if TYPE_CHECKING:
    from rekindle.matrix.table import Table

COLOURS = {
    "better": "green",
    "no difference": "yellow",
    "equivalent": "blue",
    "worse": "red",
    "different": "cyan",
    "mixed": "magenta",
    "cannot judge": "bright_black",
}
GIVEN = ("out", "images", "data")
"""What the command line may say for the grid: one grid serves several data sets."""


def run_grid(arguments: Sequence[str]) -> int:
    """Run the matrix; see `rekindle compare --help`."""
    taken = take(arguments, flags=["--json", "--dry-run"], values=["--grid", *(f"--{name}" for name in GIVEN)])
    if taken.rest:
        raise RequestError(
            f"{taken.rest[0]}: beside --grid only --out, --images, --data, --json and --dry-run; the rest stands in the grid"
        )
    where, is_json = taken.values["--grid"], "--json" in taken.flags
    grid = read_grid(where, **{name: taken.values.get(f"--{name}", "") for name in GIVEN})
    print(f"rekindle compare: {where}, {grid.out}", file=sys.stderr, flush=True)
    if "--dry-run" in taken.flags:
        return show_plan(grid, where, is_json=is_json)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.matrix.run import run_matrix

    table = run_matrix(grid, where, watcher=TerminalWatcher())
    if is_json:
        print(table.model_dump_json())
    else:
        print_table(table)
        print(f"written to {Path(grid.out) / 'table.md'}, table.csv and table.json")
    if table.is_stopped:
        print(f"stopped; continue with: rekindle compare {shlex.join(arguments)}", file=sys.stderr)
    return 0 if table.is_complete else 1


def show_plan(grid: Grid, where: str, *, is_json: bool) -> int:
    """Print what would run and what is done; return the exit code."""
    from rekindle.matrix.run import survey

    plans = survey(grid, where)
    if is_json:
        cells = [{**asdict(plan), "key": plan.key.model_dump()} for plan in plans]
        print(json.dumps({"cells": cells, "steps": sum(p.steps for p in plans)}))
        return 0
    for number, plan in enumerate(plans, start=1):
        done = {"finished": "trained", "started": f"started, step {plan.steps_done}", "new": "to do"}[plan.state]
        print(
            f"[{number}/{len(plans)}] {plan.key}: {plan.steps} steps, {done}; "
            f"{plan.results} of {plan.results_wanted} measurements"
        )
    left = sum(plan.steps - plan.steps_done for plan in plans)
    print(f"{len(plans)} cells, {left} of {sum(plan.steps for plan in plans)} steps to do; nothing was run")
    return 0


def print_table(table: Table) -> None:
    """Print the table, what to know when reading it, and what failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    from rekindle.matrix.table import heading, lines, notes, titles

    shown = RichTable(title=heading(table), title_justify="left", show_lines=True)
    for title in titles(table):
        shown.add_column(escape(title), overflow="fold")
    for label, framework, fields in lines(table):
        shown.add_row(escape(label), escape(framework), *map(_coloured, fields))
    console = Console()
    console.print(shown)
    for note in notes(table)[1:]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for cell in table.failures:
        console.print(f"failed: {cell.key}: {cell.error}", markup=False, highlight=False, soft_wrap=True)


def _coloured(parts: Sequence[str]) -> str:
    from rich.markup import escape

    return "\n".join(f"[{COLOURS[part]}]{part}[/]" if part in COLOURS else escape(part) for part in parts)
