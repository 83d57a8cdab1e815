# SPDX-License-Identifier: Apache-2.0
"""`rekindle study`."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.cli import study_calibration
from rekindle.cli.arguments import parse, print_help, take
from rekindle.cli.compare import named_protocols
from rekindle.cli.compare_grid import COLOURS, show_plan
from rekindle.core.errors import unknown_name
from rekindle.matrix.study_options import KINDS, StudyOptions, study_grid
from rekindle.measuring.options import SMALL, with_protocols

if TYPE_CHECKING:
    from rekindle.matrix.study import Study

EPILOGUE = """
also: --json, --debug, --dry-run (what would be trained and measured, and what is done). With --protocol NAME... --help, the
options of those protocols are listed as well.

  rekindle study forgetting START --images A --tests b=DATA_B c=DATA_C --out DIR    is anything lost that START knew?
  rekindle study data-scale START --images A --data DATA --out DIR                  how many images does adapting take?
  rekindle study label-efficiency START --runs RUN... --data DATA --out DIR         how many labels does adapting save?
  rekindle study calibration --out DIR                      how often is the verdict itself wrong? Its own options: add --help

Each but the last trains and measures what is missing in DIR, so the same command goes on after an interrupt, and writes study.md,
study.json, curves.png and the table of all runs. DIR/grid.yaml is the matrix that was run (`rekindle compare --grid`).
Exit code 1 if anything is missing.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle study --help`."""
    if arguments[:1] == ["calibration"]:
        return study_calibration.run(arguments[1:])
    named = named_protocols(arguments)
    preset = take(arguments, values=["--preset"]).values.get("--preset", SMALL)
    if {"--help", "-h"} & {*arguments}:
        print_help(None, with_protocols(StudyOptions, named or (), preset if named else SMALL), program="study")
        print(EPILOGUE)
        return 0
    taken = take(arguments, flags=["--json", "--dry-run"])
    if taken.rest and not taken.rest[0].startswith("-") and taken.rest[0] not in KINDS:
        raise unknown_name("study", taken.rest[0], dict.fromkeys((*KINDS, "calibration"), ""))
    protocols = named or StudyOptions.model_fields["protocol"].default
    options = parse(with_protocols(StudyOptions, protocols, preset), taken.rest, program="study")
    grid, _ = study_grid(options)
    print(f"rekindle study: {options.kind} of {options.start}, {options.out}", file=sys.stderr, flush=True)
    is_json = "--json" in taken.flags
    if "--dry-run" in taken.flags:
        return show_plan(grid, f"study {options.kind}", is_json=is_json)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.matrix.study import run_study
    from rekindle.matrix.table import notes

    study, table = run_study(options, watcher=TerminalWatcher())
    if is_json:
        print(json.dumps(study.model_dump(mode="json")))
    else:
        _print_points(study)
        told = dict.fromkeys([*table.on_groups, *notes(table)[1:][-1:]])
        for note in (*told, *(f"failed: {cell.key}: {cell.error}" for cell in table.failures)):
            print(note)
        for check in study.adapters_off:
            print(check.sentence)
        for answer in study.answers:
            print(f"{answer.method}: {answer.sentence}")
        print(f"written to {options.out}: study.md, study.json, curves.png, table.md")
    if table.is_stopped:
        print(f"stopped; continue with: rekindle study {shlex.join(arguments)}", file=sys.stderr)
    return 0 if study.is_complete else 1


def _print_points(study: Study) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rekindle.matrix.study import point_table

    heading, *rows = point_table(study)
    shown = Table(box=None)
    for title in heading:
        shown.add_column(
            title, overflow="fold", justify="left" if title in ("method", "measured by", "verdict") else "right"
        )
    for *cells, verdict in rows:
        shown.add_row(*map(escape, cells), f"[{COLOURS[verdict]}]{verdict}[/]")
    Console().print(shown)
