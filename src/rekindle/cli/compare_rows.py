# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare --rows`: one row of a matrix against another one, from what both were measured at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekindle.cli.arguments import take
from rekindle.core.errors import RequestError

USAGE = "rekindle compare --rows MATRIX METHOD/FRAMEWORK MATRIX METHOD/FRAMEWORK [--out FILE.json] [--json]"


def run_rows(arguments: Sequence[str]) -> int:
    """Print the differences; see `rekindle compare --help`."""
    taken = take(arguments, flags=["--json", "--rows"], values=["--out"])
    if len(taken.rest) != 4 or any(word.startswith("-") for word in taken.rest):
        raise RequestError(f"--rows takes two matrices and a row of each; {USAGE}")
    out = Path(taken.values["--out"]) if "--out" in taken.values else None
    if out is not None and not out.absolute().parent.is_dir():
        raise RequestError(f"--out {out}: its folder does not exist; make it, or name another file")
    from rekindle.evaluation.scores.result import write_json
    from rekindle.evaluation.verdict.telling import items_of, told
    from rekindle.matrix.rows import compare_rows

    found = compare_rows(*taken.rest)
    if out is not None:
        write_json(out, found.model_dump(mode="json"))
    if "--json" in taken.flags:
        print(found.model_dump_json())
        return 0
    print(f"{found.row} minus {found.against}")
    for column, row in found.differences.items():
        print(f"{column:18} {told(row, row.metric, items_of(column))}")
    return 0
