# SPDX-License-Identifier: Apache-2.0
"""Compare two rows of matrices, where `rekindle compare --grid` compares each row with its start: is one better than the other?

python scripts/compare_rows.py runs/tables "glare/adapters r=64" runs/tables "glare/all weights" --out difference.json

A row is METHOD/FRAMEWORK of table.json. The interval is that of the matrix: a bootstrap over images and evaluation seeds, the
same for both rows, and over the training seeds of each; where the seeds of both matrices are paired, over images and pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.core.rng import derived_seed
from rekindle.evaluation.scores.bootstrap import draw_counts, resampled, words
from rekindle.evaluation.scores.result import read_result, read_rows
from rekindle.evaluation.scores.score import Rows, Score

RESAMPLES, LEVEL = 2000, 0.95


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("", "other_"):
        parser.add_argument(f"{side}matrix", type=Path, help="folder with table.json and results/")
        parser.add_argument(f"{side}row", help="METHOD/FRAMEWORK")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    mine, theirs = read_row(options.matrix, options.row), read_row(options.other_matrix, options.other_row)
    found = {name: difference(*mine[name], *theirs[name]) for name in mine if name in theirs}
    for name, value in found.items():
        print(
            f"{name:18} {100 * value['difference']:+.2f} ({100 * value['low']:+.2f} to {100 * value['high']:+.2f}), "
            f"{value['verdict']}"
        )
    sides = {
        "row": f"{options.matrix.name}: {options.row}",
        "against": f"{options.other_matrix.name}: {options.other_row}",
    }
    options.out.write_text(json.dumps(sides | {"differences": found}) + "\n")


def read_row(matrix: Path, row: str) -> dict[str, tuple[Score, list[Rows], int]]:
    """By column: the score, one [E, n, F] per training seed or of all pairs, number of trainings. Exits if there is none."""
    table = json.loads((matrix / "table.json").read_text())
    cells = [
        cell
        for cell in table["cells"]
        if f"{cell['key']['method']}/{cell['key']['framework']}" == row and cell["state"] == "finished"
    ]
    if not cells:
        raise SystemExit(f"{matrix}: no finished run of '{row}'; a row is METHOD/FRAMEWORK as table.md names them")
    found: dict[str, tuple[Score, list[Rows]]] = {}
    for cell in cells:
        for column, scores in cell["scores"].items():
            results = [(read_result(matrix / path), (matrix / path).parent) for path in scores["results"]]
            rows = np.stack([read_rows(folder / (result.per_item or ""), result)[1] for result, folder in results])
            found.setdefault(column, (results[0][0].score, []))[1].append(rows)
    is_paired = table["grid"]["evaluation_seeds"] == "paired"
    return {
        column: (score, [np.concatenate(rows)] if is_paired else rows, len(rows))
        for column, (score, rows) in found.items()
    }


def difference(
    score: Score, mine: list[Rows], mine_trained: int, _: Score, theirs: list[Rows], theirs_trained: int
) -> dict[str, Any]:
    """The first row minus the second one. Exits if they were not measured on the same seeds and images."""
    if mine[0].shape != theirs[0].shape:
        raise SystemExit("the rows were not measured on the same evaluation seeds and images, and have no common draws")
    source = np.random.default_rng(derived_seed(0, "rows"))
    seeds, items = mine[0].shape[:2]
    drawn = draw_counts(items, RESAMPLES, source), draw_counts(seeds, RESAMPLES, source)
    sides = []
    for trainings in (mine, theirs):
        counts = draw_counts(len(trainings), RESAMPLES, source)
        each = [resampled(rows, score, *drawn) * counts[:, place] for place, rows in enumerate(trainings)]
        sides.append(sum(each) / len(trainings))
    low, high = np.nanquantile(sides[0] - sides[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    means = [np.mean([score.value(rows) for side in trainings for rows in side]) for trainings in (mine, theirs)]
    return {
        "difference": float(means[0] - means[1]),
        "low": low,
        "high": high,
        "verdict": words(low, high, score),
        "training_seeds": [mine_trained, theirs_trained],
        "evaluation_seeds": seeds,
    }


if __name__ == "__main__":
    main()
