# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON of an evaluation, one CSV of the values of its items. Torch-free."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.core.options import Options
from rekindle.evaluation.scores.kinds import AnyScore
from rekindle.evaluation.scores.score import Rows


class EvalResult(Options):
    """One model under one protocol with one seed."""

    protocol: str
    """Name of the protocol."""
    model: str
    """What the user called the model."""
    model_hash: str
    """Content hash of its tensors."""
    data: str
    """The data set's folder."""
    split: str
    """The split that the metrics are of."""
    seed: int
    """Seed of the head, the memory and the order of the batches."""
    config: dict[str, Any]
    """Every option of the protocol."""
    fingerprint: str
    """Of protocol, options and items; numbers of one fingerprint may be compared."""
    metrics: dict[str, float]
    """Fractions in [0, 1] unless the name has a unit; what the data do not define is left out."""
    score: AnyScore
    """Which of them is the headline, and how it follows from the rows of the items."""
    per_item: str | None
    """CSV of the values of single items, relative to this file."""
    group_by: str = ""
    """Rule by which items belong together; their groups are a column of the CSV. Empty for none."""
    shared_groups: list[str] = Field(default_factory=list)
    """Groups with items among what was learnt from as well, which `allow_shared_groups` let through."""
    maps: str | None = None
    """Folder of the confusion matrix and of pictures of the class maps, relative to this file; none without class maps."""
    counts: dict[str, int]
    """Images, pixels and classes that went in."""
    software: dict[str, str]
    """Versions that computed it."""


def write_result(
    result: EvalResult, path: Path, items: Sequence[str], rows: Rows, groups: Sequence[str] = ()
) -> EvalResult:
    """Write `path` and, beside it, the CSV that it names; return the result that names it.

    Args:
        result: its `per_item` is replaced.
        path: of the JSON file.
        items: one name per item.
        rows: [n, F], its values as `result.score.columns` names them.
        groups: of the items, where `result.group_by` says what they are.

    """
    table = path.with_suffix(".csv")
    named = result.model_copy(update={"per_item": table.name})
    places = zip(items, groups, strict=True) if result.group_by else ((item,) for item in items)
    lines = ([*place, *row] for place, row in zip(places, rows.tolist(), strict=True))
    write_csv(table, [*_head(result), *result.score.columns], lines)
    write_json(path, named.model_dump(mode="json"))
    return named


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_atomically(path, lambda stream: stream.write(text.getvalue().encode()))


def write_json(path: Path, content: object) -> None:
    """Write one JSON document atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_result(path: str | Path) -> EvalResult:
    """Read a result file. Raises RequestError if it is missing or not one."""
    path = Path(path)
    try:
        return EvalResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; give a result file of `rekindle evaluate`") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(f"{path} is not a result of `rekindle evaluate`: {place}: {first['msg']}") from error


def read_rows(path: str | Path, result: EvalResult) -> tuple[list[str], Rows]:
    """Read the CSV of a result: the items' names, and their rows [n, F]. Raises RequestError."""
    places, rows = _read_table(Path(path), result)
    return [place[0] for place in places], rows


def read_groups(path: str | Path, result: EvalResult) -> list[str] | None:
    """Read the group of each item from the CSV of a result; None where it has no groups. Raises RequestError."""
    return [place[1] for place in _read_table(Path(path), result)[0]] if result.group_by else None


def _head(result: EvalResult) -> list[str]:
    """Columns before those of the score."""
    return ["item", "group"] if result.group_by else ["item"]


def _read_table(path: Path, result: EvalResult) -> tuple[list[list[str]], Rows]:
    head = _head(result)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file))
        if header[1:] != [*head[1:], *result.score.columns]:
            raise ValueError("its columns are not those of the score")
        values = np.array([line[len(head) :] for line in lines], dtype=np.float64)
        return [line[: len(head)] for line in lines], values.reshape(len(lines), len(header) - len(head))
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; it lies beside its result file") from error
    except ValueError as error:
        raise RequestError(f"{path} is not the table of the items' values ({error}); evaluate again") from error
