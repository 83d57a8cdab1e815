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
from pydantic import ValidationError

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
    maps: str | None = None
    """Folder of the confusion matrix and of pictures of the class maps, relative to this file; none without class maps."""
    counts: dict[str, int]
    """Images, pixels and classes that went in."""
    software: dict[str, str]
    """Versions that computed it."""


def write_result(result: EvalResult, path: Path, items: Sequence[str], rows: Rows) -> EvalResult:
    """Write `path` and, beside it, the CSV that it names; return the result that names it.

    Args:
        result: its `per_item` is replaced.
        path: of the JSON file.
        items: one name per item.
        rows: [n, F], its values as `result.score.columns` names them.

    """
    table = path.with_suffix(".csv")
    named = result.model_copy(update={"per_item": table.name})
    lines = ([item, *row] for item, row in zip(items, rows.tolist(), strict=True))
    write_csv(table, ["item", *result.score.columns], lines)
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
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file))
        if header[1:] != result.score.columns:
            raise ValueError("its columns are not those of the score")
        values = np.array([line[1:] for line in lines], dtype=np.float64)
        return [line[0] for line in lines], values.reshape(len(lines), len(header) - 1)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; it lies beside its result file") from error
    except ValueError as error:
        raise RequestError(f"{path} is not the table of the items' values ({error}); evaluate again") from error
