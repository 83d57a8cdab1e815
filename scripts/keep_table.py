# SPDX-License-Identifier: Apache-2.0
"""Make the table of a matrix small enough to keep, and print its rows as docs/results shows them.

python scripts/keep_table.py runs/tables/table.json results/methods-and-frameworks/tables-camvid.json --strip /data/

Kept are the grid, every score and every interval, to six digits. Left out are the options of each run, which follow from the
grid, and where data and runs lay (every `--strip`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="table.json of a matrix")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--strip", nargs="*", default=[], help="beginnings of paths to leave out")
    options = parser.parse_args()
    table = json.loads(options.table.read_text())
    for line in rows(table):
        print(line)
    for cell in table["cells"]:
        del cell["options"]
    table["grid"]["out"] = options.table.parent.name
    kept = json.dumps(rounded(table))
    for beginning in options.strip:
        kept = kept.replace(json.dumps(beginning)[1:-1], "")
    options.out.write_text(kept + "\n")


def rows(table: dict[str, Any]) -> list[str]:
    """One line for every row: each difference to the start in percent, its interval and verdict, and the overall verdict."""
    found = []
    for row in table["rows"]:
        name = row["method"] if row["images"] == 1 else f"{row['method']}, {row['images']:.0%} of the images"
        wanted = len(table["grid"]["seeds"])
        seeds = "" if len(row["seeds"]) == wanted else f" ({len(row['seeds'])} of {wanted} seeds)"
        cells = [_difference(row["pooled"][column]) for column in table["protocols"] if column in row["pooled"]]
        overall = row["overall"]["verdict"] if row["overall"] else "not run"
        found.append(" | ".join([f"| {name}{seeds}", row["framework"], *cells, f"{overall} |"]))
    return found


def _difference(pooled: dict[str, Any]) -> str:
    value, low, high = (100 * pooled[name] for name in ("difference", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f}), {pooled['verdict']}"


def rounded(value: Any) -> Any:
    """The same tree with numbers of six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
