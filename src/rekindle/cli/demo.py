# SPDX-License-Identifier: Apache-2.0
"""`rekindle demo`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.cli.arguments import begin
from rekindle.demo.options import DemoOptions

if TYPE_CHECKING:
    from rekindle.demo.story import DemoResult

EPILOGUE = """
also: --json, --debug. The exit code is 0 whatever the verdict says.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; see `rekindle demo --help`."""
    if (begun := begin(arguments, DemoOptions, "demo", EPILOGUE)) is None:
        return 0
    options, is_json = begun
    print(f"rekindle demo: nothing is downloaded; all goes to {options.out}", file=sys.stderr, flush=True)
    from rekindle.cli.terminal import TerminalWatcher
    from rekindle.demo.story import run_demo

    watcher = TerminalWatcher()
    try:
        result = run_demo(options, watcher=watcher)
    finally:
        watcher.close()
    if is_json:
        print(json.dumps(result.to_dict()))
    else:
        _print_summary(result)
    return 0


def _print_summary(result: DemoResult) -> None:
    from rich.console import Console
    from rich.table import Table

    from rekindle.cli.compare_grid import COLOURS

    table = Table(title="mIoU in % on new scenes, mean and deviation over the seeds", box=None)
    for heading in ("protocol", "base", "adapted", "change", "interval", "verdict"):
        table.add_column(heading, justify="left" if heading in ("protocol", "verdict") else "right", no_wrap=True)
    for row in result.rows:
        found = row.found
        table.add_row(
            row.protocol,
            f"{100 * found.base:.1f} ± {100 * found.base_std:.1f}",
            f"{100 * found.model:.1f} ± {100 * found.model_std:.1f}",
            f"{100 * found.difference:+.1f}",
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            f"[{COLOURS[row.word]}]{row.word}[/]",
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(result.verdict, markup=False)
    for row in result.rows:
        if row.remarks:
            console.print(f"{row.protocol}: {' '.join(row.remarks)}", markup=False)
    total = sum(result.seconds.values())
    console.print(f"{total:.0f} s in all. Open {result.page}; pictures are in {result.out / 'pictures'}.", markup=False)
