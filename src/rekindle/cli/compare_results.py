# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare --results`: relative improvement over a baseline, from result files alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rekindle.core.errors import RequestError

if TYPE_CHECKING:
    from rekindle.evaluation.scores.relative import RelativeTable

USAGE = "rekindle compare --results FILE.json... --relative-to MODEL [--json]"


def run_results(arguments: Sequence[str]) -> int:
    """Print the table; see `rekindle compare --help`."""
    paths: list[str] = []
    baseline, is_json, taking = "", False, ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if name in ("--results", "--relative-to"):
            taking = name
            word = value
            if not equals:
                continue
        elif word == "--json":
            is_json, taking = True, ""
            continue
        elif word.startswith("-") or not taking:
            raise RequestError(f"{word}: beside --results only --relative-to and --json; {USAGE}")
        if taking == "--results":
            paths.append(word)
        else:
            baseline, taking = word, ""
    if not baseline:
        raise RequestError(f"--relative-to is missing: the model that the others are compared with; {USAGE}")
    from rekindle.evaluation.scores.relative import relative_table

    table = relative_table(paths, baseline)
    if is_json:
        print(table.model_dump_json())
    else:
        _print_table(table)
    return 0


def _print_table(table: RelativeTable) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rekindle.evaluation.scores.score import shown

    printed = Table(title=f"value (relative improvement over {escape(table.baseline)})", title_justify="left")
    printed.add_column("model", overflow="fold")
    for column in table.columns:
        printed.add_column(
            f"{escape(column.data)}\n{column.protocol}, {column.metric}", justify="right", overflow="fold"
        )
    printed.add_column("mean", justify="right")
    base = [shown(column.metric, column.baseline) for column in table.columns]
    printed.add_row(escape(table.baseline), *base, "0 %")
    for model, delta in table.delta.items():
        cells = [
            f"{shown(c.metric, c.values[model])} ({c.gains[model]:+.1f} %)" if model in c.gains else "not measured"
            for c in table.columns
        ]
        printed.add_row(escape(model), *cells, "incomplete" if delta is None else f"{delta:+.1f} %")
    Console().print(printed)
