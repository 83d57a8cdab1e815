# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON of an evaluation, one CSV of its per-image values. Torch-free."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.core.options import Options

KINDS = ("intersection", "label", "predicted")
Statistics = NDArray[np.int64]


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
    metrics: dict[str, float]
    """Fractions in [0, 1]; `IoU/<class>` is left out for a class that neither labels nor predictions hold."""
    per_item: str | None
    """CSV of the per-image values, relative to this file."""
    counts: dict[str, int]
    """Images, pixels and classes that went in."""
    software: dict[str, str]
    """Versions that computed it."""


def write_result(result: EvalResult, path: Path, items: Sequence[str], statistics: Statistics) -> EvalResult:
    """Write `path` and, beside it, the CSV that it names; return the result that names it.

    Args:
        result: its `per_item` is replaced.
        path: of the JSON file.
        items: one name per image.
        statistics: [n, 3, C], pixels per class: intersection, label, predicted.

    """
    table = path.with_suffix(".csv")
    named = result.model_copy(update={"per_item": table.name})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    num_classes = statistics.shape[2]
    writer.writerow(["item", *(f"{kind}_{c}" for kind in KINDS for c in range(num_classes))])
    writer.writerows([item, *row] for item, row in zip(items, statistics.reshape(len(items), -1).tolist(), strict=True))
    write_atomically(table, lambda stream: stream.write(text.getvalue().encode()))
    write_json(path, named.model_dump(mode="json"))
    return named


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


def read_statistics(path: str | Path) -> tuple[list[str], Statistics]:
    """Read the per-image CSV: item names, and pixels per class [n, 3, C]. Raises RequestError."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        num_classes = (len(header) - 1) // len(KINDS)
        values = np.array([row[1:] for row in rows], dtype=np.int64)
        return [row[0] for row in rows], values.reshape(len(rows), len(KINDS), num_classes)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; it lies beside its result file") from error
    except ValueError as error:
        raise RequestError(f"{path} is not a table of per-image values ({error}); evaluate again") from error
