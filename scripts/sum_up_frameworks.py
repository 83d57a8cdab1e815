# SPDX-License-Identifier: Apache-2.0
"""Sum up matrices by framework: over all methods, what does adapting this way do, and how often does it help or harm?

python scripts/sum_up_frameworks.py \
    CamVid=results/methods-and-frameworks/tables-camvid.json CamVid=results/methods-and-frameworks/tables-camvid-rest.json

One line per data set and framework, one cell per measure: the median difference to the start over the methods, the least and the
greatest, and how many methods are better, no different and worse. A data set named twice has the rows of both files.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

VERDICTS = ("better", "no difference", "worse")


def main() -> None:
    """Read the tables, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="+", help="NAME=table.json of `rekindle compare --grid`, or what keep_table.py kept"
    )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, path in (entry.split("=", 1) for entry in parser.parse_args().tables):
        for row in json.loads(Path(path).read_text())["rows"]:
            if row["overall"] is not None:  # a row that was not run says nothing
                found.setdefault((name, row["framework"]), []).append(row)
    for (name, framework), rows in found.items():
        overall = Counter(row["overall"]["verdict"] for row in rows)
        cells = [_cell([row["pooled"][measure] for row in rows]) for measure in rows[0]["pooled"]]
        told = ", ".join(f"{count} {verdict}" for verdict, count in overall.most_common())
        print(f"| {name} | {framework} | " + " | ".join([*cells, told]) + " |")


def _cell(pooled: list[dict[str, Any]]) -> str:
    values = [100 * value["difference"] for value in pooled]
    counts = Counter(value["verdict"] for value in pooled)
    told = " / ".join(str(counts[verdict]) for verdict in VERDICTS)
    return f"{median(values):+.2f} ({min(values):+.2f} to {max(values):+.2f}); {told}"


if __name__ == "__main__":
    main()
