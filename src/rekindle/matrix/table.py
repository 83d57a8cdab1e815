# SPDX-License-Identifier: Apache-2.0
"""The table of a matrix: table.json with everything, table.csv with a line per kind and protocol, table.md to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rekindle.core.files import write_atomically
from rekindle.core.options import Options
from rekindle.evaluation.result import write_json
from rekindle.matrix.cells import Key
from rekindle.matrix.pooling import Pooled

METRICS = ("mIoU", "aAcc", "mAcc")
State = Literal["finished", "failed", "stopped", "waiting"]
Parts = tuple[str, ...]
"""What one field of the table to read says: mean (spread), difference [interval], verdict, and what is missing."""
Line = tuple[str, str, list[Parts]]
"""Start and method, framework, one field per protocol."""


class Scores(Options):
    """One model under one protocol."""

    by_seed: list[float]
    """mIoU of each evaluation seed."""
    metrics: dict[str, float]
    """mIoU, aAcc and mAcc, means over the evaluation seeds."""
    results: list[str]
    """Result files, below the folder of the matrix."""


class StartRecord(Options):
    """One start."""

    name: str
    """Its name in the table."""
    model: str
    """The MODEL."""
    model_hash: str
    """Content hash of its tensors."""
    scores: dict[str, Scores]
    """By protocol; empty until it is measured."""


class CellRecord(Options):
    """One run."""

    key: Key
    """Which cell."""
    run: str
    """Its folder, below the folder of the matrix."""
    state: State
    """Finished: trained and measured; stopped: interrupted; failed: see `error`; waiting: not reached yet."""
    error: str | None
    """Why it failed."""
    steps: int
    """Optimizer steps of the whole run."""
    steps_done: int
    """Of these, done."""
    train_s: float
    """Wall time of its training, in seconds, over all calls that could report it."""
    measure_s: float
    """Wall time of its measurements, in seconds."""
    model_hash: str | None
    """Content hash of the trained model."""
    options: dict[str, Any]
    """Every option of the run."""
    scores: dict[str, Scores]
    """By protocol."""


class Row(Options):
    """All trainings of one kind: start, method, framework."""

    start: str
    """Name of the start."""
    method: str
    """Name of the entry of `methods`."""
    framework: str
    """Name of the framework."""
    seeds: list[int]
    """Training seeds that are pooled: those that finished."""
    failed: dict[int, str]
    """Training seed -> why it failed."""
    waiting: list[int]
    """Training seeds that are not done."""
    pooled: dict[str, Pooled]
    """By protocol: mIoU against the start's."""
    metrics: dict[str, dict[str, float]]
    """By protocol: mIoU, aAcc and mAcc, means over training and evaluation seeds."""


class Table(Options):
    """A matrix: what was asked, every run, and every kind against its start."""

    grid: dict[str, Any]
    """The grid, with its defaults."""
    protocols: list[str]
    """The columns."""
    is_complete: bool
    """Every cell has finished."""
    is_stopped: bool
    """The matrix was interrupted."""
    starts: list[StartRecord]
    """In the order of the grid."""
    cells: list[CellRecord]
    """In the order of the grid."""
    rows: list[Row]
    """In the order of the grid."""
    interval: str
    """What the intervals cover."""

    @property
    def failures(self) -> list[CellRecord]:
        """The cells that failed."""
        return [cell for cell in self.cells if cell.state == "failed"]


def mean_metrics(scores: Sequence[Scores]) -> dict[str, float]:
    """Means of the metrics of several models."""
    return {name: sum(s.metrics[name] for s in scores) / len(scores) for name in METRICS}


def write_table(table: Table, out: Path) -> None:
    """Write table.json, table.csv and table.md, each atomically."""
    write_json(out / "table.json", table.model_dump(mode="json"))
    for name, text in (("table.csv", to_csv(table)), ("table.md", to_markdown(table))):
        _write_text(out / name, text)


def to_csv(table: Table) -> str:
    """One line per start and protocol, then one per kind and protocol; fractions in [0, 1], empty where there is none."""
    text = io.StringIO()
    names = ["start", "method", "framework", "protocol", "seeds", "failed", "waiting", *METRICS]
    names += [n for n in Pooled.model_fields if n not in ("mean", "by_training_seed")]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for start in table.starts:
        for protocol, scores in start.scores.items():
            writer.writerow({"start": start.name, "protocol": protocol, **scores.metrics})
    for row in table.rows:
        place = {
            "start": row.start,
            "method": row.method,
            "framework": row.framework,
            "seeds": _joined(row.seeds),
            "failed": _joined(row.failed),
            "waiting": _joined(row.waiting),
        }
        for protocol in table.protocols:
            found = row.pooled.get(protocol)
            values = {} if found is None else found.model_dump(exclude={"mean", "by_training_seed"})
            writer.writerow({**place, "protocol": protocol, **row.metrics.get(protocol, {}), **values})
    return text.getvalue()


def lines(table: Table) -> list[Line]:
    """The table to read: a line per start, and below it one per kind that starts there. Percent of mIoU."""
    found: list[Line] = []
    for start in table.starts:
        found.append((start.name, "", [_start_field(start.scores.get(protocol)) for protocol in table.protocols]))
        for row in table.rows:
            if row.start == start.name:
                label = f"{row.start} → {row.method}"
                found.append((label, row.framework, [_field(row, protocol) for protocol in table.protocols]))
    return found


def heading(table: Table) -> str:
    """What the numbers are."""
    grid = table.grid
    num_seeds, level = len(grid["seeds"]), f"{grid['level']:.0%}"
    return (
        f"mIoU in % on {grid['data']} ({grid['split']}): mean (standard deviation over {num_seeds} training seed"
        f"{'s' if num_seeds > 1 else ''}), difference to the start [{level} interval], verdict"
    )


def to_markdown(table: Table) -> str:
    """The table, what its numbers are, and what failed or is missing."""
    rows = [["start → method", "framework", *table.protocols]]
    rows += [[_escaped(label), _escaped(kind), *map(", ".join, fields)] for label, kind, fields in lines(table)]
    rows.insert(1, ["---"] * len(rows[0]))
    text = (
        heading(table) + ".\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n" + table.interval + "\n"
    )
    for title, state in (("Failed", "failed"), ("Not done yet", "waiting"), ("Stopped", "stopped")):
        cells = [cell for cell in table.cells if cell.state == state]
        if cells:
            told = [f"- {cell.key}" + (f": {' '.join(cell.error.split())}" if cell.error else "") for cell in cells]
            text += f"\n{title}:\n\n" + "\n".join(told) + "\n"
    return text


def _start_field(scores: Scores | None) -> Parts:
    return () if scores is None else (f"{100 * scores.metrics['mIoU']:.2f}",)


def _field(row: Row, protocol: str) -> Parts:
    found = row.pooled.get(protocol)
    if found is None:
        return ("not done",) if row.waiting else ("failed",)
    spread = f" ({100 * found.training_std:.2f})" if len(row.seeds) > 1 else ""
    wanted = len(row.seeds) + len(row.failed) + len(row.waiting)
    return (
        f"{100 * found.mean:.2f}{spread}",
        f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]",
        found.verdict,
        *([] if len(row.seeds) == wanted else [f"{len(row.seeds)} of {wanted} seeds"]),
    )


def _joined(values: Sequence[int] | Mapping[int, str]) -> str:
    return " ".join(map(str, values))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))
