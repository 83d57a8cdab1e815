# SPDX-License-Identifier: Apache-2.0
"""Judge stored tables again: which words over several trainings would today's intervals no longer give?

python scripts/judge_again.py results/*/*.json --out results/verdict/judged-again.json

A table of before holds the percentile interval of each difference and the spread over its training seeds, not the rows. So this
is an estimate: the resamples' variance less the trainings' share of it, s² (T - 1) / T², is what images and evaluation seeds
give; the trainings' own s² / T takes its place in `Difference.half_width`. Where each training
has its own evaluation seed (pairs), the stored spread is not that of the difference, and the row is left out. Overall words are
not judged again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from scipy.special import ndtri

from rekindle.evaluation.scores.result import write_json
from rekindle.evaluation.verdict.difference import Component, half_width_of

MANY = 100.0
"""Degrees of freedom of images and evaluation seeds, whose number a table does not say: about those of the packs here."""


def main() -> None:
    """Read the tables, count the words before and now, write what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="files that may be tables of `rekindle compare --grid`")
    parser.add_argument("--out", type=Path, help="JSON of the counts and of every word that changed")
    options = parser.parse_args()
    before, now, changed, seen = Counter[str](), Counter[str](), [], set()
    for path in options.tables:
        for place, column, pooled in pooled_of(path):
            key = (pooled["difference"], pooled["low"], pooled["high"])
            if key in seen:  # the same row is part of several pages
                continue
            seen.add(key)
            low, high = interval_now(pooled)
            before[pooled["verdict"]] += 1
            word = (
                pooled["verdict"]
                if (low > 0) == (pooled["low"] > 0) and (high < 0) == (pooled["high"] < 0)
                else "no difference"
            )
            now[word] += 1
            if word != pooled["verdict"]:
                changed.append(
                    {"file": path.as_posix(), "row": place, "column": column, "word": pooled["verdict"]}
                    | {
                        "difference": pooled["difference"],
                        "before": [pooled["low"], pooled["high"]],
                        "now": [low, high],
                    }
                )
    print(f"{sum(before.values())} differences over three or more trainings")
    print("before: " + ", ".join(f"{count} {word}" for word, count in sorted(before.items())))
    print("now:    " + ", ".join(f"{count} {word}" for word, count in sorted(now.items())))
    for entry in changed:
        print(f"{entry['file']}: {entry['row']}, {entry['column']}: was {entry['word']}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"before": dict(before), "now": dict(now), "changed": changed})


def pooled_of(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Rows and columns of a table with three or more trainings that are no pairs; nothing of a file that is no table."""
    table = json.loads(path.read_text(encoding="utf-8"))
    if (
        not isinstance(table, dict)
        or not {"grid", "rows"} <= table.keys()
        or table["grid"]["evaluation_seeds"] == "paired"
    ):
        return []
    return [
        (f"{row['start']} -> {row['method']}, {row['framework']}", column, pooled)
        for row in table["rows"]
        for column, pooled in row["pooled"].items()
        if len(pooled["by_training_seed"]) > 2 and pooled.get("rule", "percentile") == "percentile"
    ]


def interval_now(pooled: dict[str, Any]) -> tuple[float, float]:
    """Estimate the interval that a stored one would be today."""
    level, trainings = pooled["level"], len(pooled["by_training_seed"])
    spread = (pooled["high"] - pooled["low"]) / (2 * -float(ndtri((1 - level) / 2)))
    own = pooled["training_std"] ** 2
    components = {
        "items": Component(max(spread**2 - own * (trainings - 1) / trainings**2, 0.0), MANY),
        "training seeds": Component(own / trainings, trainings - 1.0),
    }
    half = half_width_of(components, level)
    return pooled["difference"] - half, pooled["difference"] + half


if __name__ == "__main__":
    main()
