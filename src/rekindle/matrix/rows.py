# SPDX-License-Identifier: Apache-2.0
"""Differences of two rows of matrices: each row is compared with its start by its table, and here with another row.

The interval is that of the matrix: over images and evaluation seeds, the same for both rows, and over the training seeds of each;
where the seeds of both matrices are paired, over images and pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.text_files import read_json
from rekindle.evaluation.scores.kinds import of_today
from rekindle.evaluation.scores.result import read_groups, read_result, read_rows
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import Judged, judged_fields
from rekindle.measuring.choosing import LeftOut, flattered, kept_groups

RESAMPLES, LEVEL = 2000, 0.95


class RowDifference(Judged):
    """One row minus another one, in one column."""

    is_fraction: bool
    """The numbers are fractions in [0, 1]."""
    metric: str = ""
    """What is compared; empty in files of before."""
    trainings: tuple[int, int]
    """Runs of either row."""


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
        trainings: [E, n, F] per training seed; of paired matrices E is 1, the training's own seed.
        is_paired: the t-th training of a row has the evaluation seed of the t-th of another one.
        items: names of the n items.
        chosen: what the row's table says of items that had chosen a step.
        groups: of each item, by name; None where items stand alone.
    """

    score: Score
    trainings: list[Rows]
    is_paired: bool
    items: list[str]
    chosen: LeftOut | None
    groups: list[str] | None


def compare_rows(matrix: str | Path, row: str, other_matrix: str | Path, other_row: str) -> RowComparison:
    """Subtract a row of a matrix from another one.

    Args: matrix, folder that `rekindle compare --grid` wrote; row, METHOD/FRAMEWORK as its table names it.
    Raises: RequestError for a folder without a table, an unknown row, or rows measured on other seeds and images.
    """
    mine, theirs = read_row(Path(matrix), row), read_row(Path(other_matrix), other_row)
    common = [name for name in mine if name in theirs]
    if not common:
        raise RequestError(
            f"{row} has the columns {', '.join(mine)}, and {other_row} has {', '.join(theirs)}; compare rows that were "
            "measured alike"
        )
    found = {name: _difference(mine[name], theirs[name]) for name in common}
    joint = joint_verdicts(found, LEVEL)
    differences = {
        name: RowDifference(
            **judged_fields(own, LEVEL, None, joint.get(name)),
            is_fraction=own.score.is_fraction,
            metric=own.score.name,
            trainings=(len(mine[name].trainings), len(theirs[name].trainings)),
        )
        for name, own in found.items()
    }
    return RowComparison(
        row=f"{Path(matrix).name}: {row}", against=f"{Path(other_matrix).name}: {other_row}", differences=differences
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
    found: dict[str, tuple[Score, list[Rows], list[str]]] = {}
    groups: dict[str, list[str] | None] = {}
    for cell in cells:
        for column, scores in cell["scores"].items():
            results = [(read_result(matrix / path), (matrix / path).parent) for path in scores["results"]]
            read = [read_rows(folder / (result.per_item or ""), result) for result, folder in results]
            own = found.setdefault(column, (of_today(results[0][0].score), [], read[0][0]))
            own[1].append(np.stack([rows for _, rows in read]))
            groups[column] = read_groups(results[0][1] / (results[0][0].per_item or ""), results[0][0])
    is_paired = table["grid"]["evaluation_seeds"] == "paired"
    starts = {start["model"] for start in table["starts"]}
    entries = [entry for kind in table["rows"] if _kind_name(kind) == row for entry in kind.get("left_out", [])]
    records = [LeftOut.model_validate(entry) for entry in entries]
    chosen = {
        record.protocol: record.model_copy(update={"models": [name for name in record.models if name not in starts]})
        for record in records
    }
    return {
        column: MeasuredRow(score, rows, is_paired, items, chosen.get(column), groups[column])
        for column, (score, rows, items) in found.items()
    }


def _difference(mine: MeasuredRow, theirs: MeasuredRow) -> Difference:
    """The first row minus the second one. Raises: RequestError if they were not measured on the same seeds and images."""
    is_paired = mine.is_paired and theirs.is_paired
    shapes = [[rows.shape for rows in side.trainings] for side in (mine, theirs)]
    if shapes[0][0] != shapes[1][0] or mine.is_paired != theirs.is_paired or (is_paired and shapes[0] != shapes[1]):
        raise RequestError(
            "the rows were not measured on the same evaluation seeds and images, and have no common draws; measure both in "
            "one matrix, or with the same data and evaluation_seeds"
        )
    if mine.groups != theirs.groups:
        raise RequestError(
            "the rows were not measured with the same groups of images; measure both with the same group_by, or without"
        )
    chose = {name for side in (mine, theirs) if side.chosen and side.chosen.is_left_out for name in side.chosen.names}
    judges = np.array([item not in chose for item in mine.items])
    groups = kept_groups(mine.groups, judges)
    base, model = ([training[:, judges] for training in side.trainings] for side in (theirs, mine))
    found = difference_of(base, model, mine.score, groups=groups, is_paired=is_paired, resamples=RESAMPLES)
    up, down = (
        0.0
        if side.chosen is None
        else max(flattered(found, side.chosen, (base, model), "", side.chosen.models, groups).flattered)
        for side in (mine, theirs)
    )
    return replace(found, flattered=(up, down) if mine.score.higher_is_better else (down, up))


def _name(cell: dict[str, Any]) -> str:
    return _kind_name(cell["key"])


def _kind_name(kind: dict[str, Any]) -> str:
    return f"{kind['method']}/{kind['framework']}"
