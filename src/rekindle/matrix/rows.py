# SPDX-License-Identifier: Apache-2.0
"""Differences of two rows of matrices: each row is compared with its start by its table, and here with another row.

The interval is that of the matrix: a bootstrap over images and evaluation seeds, the same for both rows, and over the training
seeds of each; where the seeds of both matrices are paired, over images and pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.rng import derived_seed
from rekindle.core.text_files import read_json
from rekindle.evaluation.scores.bootstrap import Words, draw_counts, resampled, words
from rekindle.evaluation.scores.result import read_result, read_rows
from rekindle.evaluation.scores.score import Rows, Score

RESAMPLES, LEVEL = 2000, 0.95


class RowDifference(Options):
    """One row minus another one, in one column."""

    difference: float
    """Difference of the means over training and evaluation seeds."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    verdict: Words
    """Better or worse where the whole interval is on one side of zero."""
    is_fraction: bool
    """The numbers are fractions in [0, 1]."""
    training_seeds: tuple[int, int]
    """Runs of either row."""
    evaluation_seeds: int
    """Of every run; of paired matrices, pairs."""


class RowComparison(Options):
    """One row minus another one, in every column that both have."""

    row: str
    """MATRIX: METHOD/FRAMEWORK."""
    against: str
    """What is subtracted."""
    differences: dict[str, RowDifference]
    """Column -> difference."""


@dataclass(frozen=True)
class MeasuredRow:
    """One column of a row.

    Attributes:
        score: how values of items become a number.
        trainings: one [E, n, F] per training seed, or one of all pairs.
        num_runs: how many were trained.
    """

    score: Score
    trainings: list[Rows]
    num_runs: int


def compare_rows(matrix: str | Path, row: str, other_matrix: str | Path, other_row: str) -> RowComparison:
    """Subtract a row of a matrix from another one.

    Args: matrix, folder that `rekindle compare --grid` wrote; row, METHOD/FRAMEWORK as its table names it.
    Raises: RequestError for a folder without a table, an unknown row, or rows measured on other seeds and images.
    """
    mine, theirs = read_row(Path(matrix), row), read_row(Path(other_matrix), other_row)
    found = {name: difference(mine[name], theirs[name]) for name in mine if name in theirs}
    if not found:
        raise RequestError(
            f"{row} has the columns {', '.join(mine)}, and {other_row} has {', '.join(theirs)}; compare rows that were "
            "measured alike"
        )
    return RowComparison(
        row=f"{Path(matrix).name}: {row}", against=f"{Path(other_matrix).name}: {other_row}", differences=found
    )


def read_row(matrix: Path, row: str) -> dict[str, MeasuredRow]:
    """Columns of a row by name. Raises: RequestError where there is no such row, or no table."""
    path = matrix / "table.json"
    try:
        table: dict[str, Any] = read_json(path)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; name a folder that `rekindle compare --grid` wrote") from error
    except ValueError as error:
        raise RequestError(f"{path} is not a table of `rekindle compare --grid`: {error}") from error
    finished = [cell for cell in table["cells"] if cell["state"] == "finished"]
    cells = [cell for cell in finished if _name(cell) == row]
    if not cells:
        known = ", ".join(sorted({_name(cell) for cell in finished})) or "none"
        raise RequestError(f"{matrix}: no finished run of '{row}'; its rows (METHOD/FRAMEWORK): {known}")
    found: dict[str, tuple[Score, list[Rows]]] = {}
    for cell in cells:
        for column, scores in cell["scores"].items():
            results = [(read_result(matrix / path), (matrix / path).parent) for path in scores["results"]]
            rows = np.stack([read_rows(folder / (result.per_item or ""), result)[1] for result, folder in results])
            found.setdefault(column, (results[0][0].score, []))[1].append(rows)
    is_paired = table["grid"]["evaluation_seeds"] == "paired"
    return {
        column: MeasuredRow(score, [np.concatenate(rows)] if is_paired else rows, len(rows))
        for column, (score, rows) in found.items()
    }


def difference(mine: MeasuredRow, theirs: MeasuredRow) -> RowDifference:
    """The first row minus the second one. Raises: RequestError if they were not measured on the same seeds and images."""
    if mine.trainings[0].shape != theirs.trainings[0].shape:
        raise RequestError(
            "the rows were not measured on the same evaluation seeds and images, and have no common draws; measure both in "
            "one matrix, or with the same data and evaluation_seeds"
        )
    source = np.random.default_rng(derived_seed(0, "rows"))
    seeds, items = mine.trainings[0].shape[:2]
    drawn = draw_counts(items, RESAMPLES, source), draw_counts(seeds, RESAMPLES, source)
    sides = []
    for side in (mine, theirs):
        counts = draw_counts(len(side.trainings), RESAMPLES, source)
        each = [resampled(rows, mine.score, *drawn) * counts[:, k] for k, rows in enumerate(side.trainings)]
        sides.append(sum(each) / len(side.trainings))
    low, high = np.nanquantile(sides[0] - sides[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    means = [np.mean([mine.score.value(rows) for part in side.trainings for rows in part]) for side in (mine, theirs)]
    return RowDifference(
        difference=float(means[0] - means[1]),
        low=low,
        high=high,
        verdict=words(low, high, mine.score),
        is_fraction=mine.score.is_fraction,
        training_seeds=(mine.num_runs, theirs.num_runs),
        evaluation_seeds=seeds,
    )


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['key']['method']}/{cell['key']['framework']}"
