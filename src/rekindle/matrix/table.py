# SPDX-License-Identifier: Apache-2.0
"""The table of a matrix: table.json with everything, table.csv with a line per kind and protocol, table.md to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rekindle.core.files import write_atomically
from rekindle.core.options import Options
from rekindle.evaluation.scores.result import write_json
from rekindle.evaluation.scores.score import is_fraction, shown
from rekindle.evaluation.verdict.overall import RULE, Overall
from rekindle.evaluation.verdict.telling import together, unjudged
from rekindle.matrix.cells import Key
from rekindle.matrix.columns import Column, share_told
from rekindle.matrix.pooling import Pooled
from rekindle.measuring.choosing import LeftOut

State = Literal["finished", "failed", "stopped", "waiting"]
Parts = tuple[str, ...]
"""What one field of the table to read says: mean (spread), difference [interval], verdict, and what is missing."""
NOT_IN_CSV = ("mean", "by_training_seed", "components", "flattered", "joint")
OF_ALL = ("verdict", "low", "high")
"""What table.csv says of `joint`, as joint_verdict, joint_low, joint_high."""
ALONE = "by itself"
ONE_TRAINING = "Where a row has one training seed, its words are about that run, not about the way it was trained."
Line = tuple[str, str, list[Parts]]
"""Start and method, framework, one field per protocol."""


class Scores(Options):
    """One model under one protocol."""

    metric: str
    """The headline: what is compared."""
    by_seed: list[float]
    """The headline of each evaluation seed."""
    metrics: dict[str, float]
    """Every metric that all evaluation seeds define, mean over them."""
    results: list[str]
    """Result files, below the folder of the matrix."""

    @property
    def mean(self) -> float:
        """Mean of the headline over the evaluation seeds."""
        return sum(self.by_seed) / len(self.by_seed)

    @property
    def told(self) -> str:
        """The headline with its mean, as people read it."""
        return f"{self.metric} {shown(self.metric, self.mean)}"


class StartRecord(Options):
    """One start."""

    name: str
    """Its name in the table."""
    model: str
    """The MODEL."""
    model_hash: str
    """Content hash of its tensors."""
    scores: dict[str, Scores]
    """By column; empty until it is measured."""


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
    """By column."""


class TableRow(Options):
    """All trainings of one kind: start, method, framework, share of the images."""

    start: str
    """Name of the start."""
    method: str
    """Name of the entry of `methods`."""
    framework: str
    """Name of the framework."""
    images: float
    """Share of the images that they learned from."""
    seeds: list[int]
    """Training seeds that are pooled: those that finished."""
    failed: dict[int, str]
    """Training seed -> why it failed."""
    waiting: list[int]
    """Training seeds that are not done."""
    pooled: dict[str, Pooled]
    """By column: the headline against the start's."""
    metrics: dict[str, dict[str, float]]
    """By column: every metric, mean over training and evaluation seeds."""
    left_out: list[LeftOut] = Field(default_factory=list)
    """By column: items that had chosen the step of a run or of the start; none in files of before."""
    overall: Overall | None
    """The verdict over all columns; None before a training is measured."""

    @property
    def place(self) -> str:
        """Framework and share of the images, as people read them."""
        return self.framework if self.images == 1.0 else f"{self.framework}, {share_told(self.images)} of the images"


class Table(Options):
    """A matrix: what was asked, every run, and every kind against its start."""

    grid: dict[str, Any]
    """The grid, with its defaults."""
    protocols: list[str]
    """Names of the columns: the protocols, with data and share of the labels where there are several."""
    columns: list[Column]
    """What they are."""
    is_complete: bool
    """Every cell has finished."""
    is_stopped: bool
    """The matrix was interrupted."""
    starts: list[StartRecord]
    """In the order of the grid."""
    cells: list[CellRecord]
    """In the order of the grid."""
    rows: list[TableRow]
    """In the order of the grid."""
    interval: str
    """What the intervals cover."""
    on_groups: list[str] = Field(default_factory=list)
    """Images that seem to belong together, and groups that both splits have."""

    def headline(self, protocol: str) -> Scores:
        """What a start was measured at under a protocol; a kind has no values before its start has."""
        return next(start.scores[protocol] for start in self.starts if protocol in start.scores)

    @property
    def failures(self) -> list[CellRecord]:
        """The cells that failed."""
        return [cell for cell in self.cells if cell.state == "failed"]


def mean_metrics(scores: Sequence[Scores]) -> dict[str, float]:
    """Means of the metrics that all of several models define."""
    common = [name for name in scores[0].metrics if all(name in s.metrics for s in scores)]
    return {name: sum(s.metrics[name] for s in scores) / len(scores) for name in common}


def number(metric: str, value: float, *, sign: str = "") -> str:
    """Write a value without its unit, a fraction in percent; `sign` "+" shows the sign of a difference.

    Example:
        >>> number("mIoU", 0.1234), number("mIoU", 0.0312, sign="+"), number("MSE (log²)", 1.5)
        ('12.34', '+3.12', '1.5')
    """
    return f"{100 * value:{sign}.2f}" if is_fraction(metric) else f"{value:{sign}.4g}"


def write_table(table: Table, out: Path) -> None:
    """Write table.json, table.csv and table.md, each atomically."""
    write_json(out / "table.json", table.model_dump(mode="json"))
    for name, text in (("table.csv", to_csv(table)), ("table.md", to_markdown(table))):
        _write_text(out / name, text)


def to_csv(table: Table) -> str:
    """One line per start, protocol and metric, then one per kind, protocol and metric; empty where there is none.

    Verdict and interval stand on the line of the headline.
    """
    text = io.StringIO()
    names = ["start", "method", "framework", "images", "protocol", "metric", "value", "seeds", "failed", "waiting"]
    names += [n for n in Pooled.model_fields if n not in NOT_IN_CSV] + [f"joint_{n}" for n in OF_ALL]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for start in table.starts:
        for protocol, scores in start.scores.items():
            for metric, value in scores.metrics.items():
                place = {"start": start.name, "protocol": protocol}
                writer.writerow({**place, "metric": metric, "value": value})
    for row in table.rows:
        place = {
            "start": row.start,
            "method": row.method,
            "framework": row.framework,
            "images": f"{row.images:g}",
            "seeds": _joined(row.seeds),
            "failed": _joined(row.failed),
            "waiting": _joined(row.waiting),
        }
        for protocol in table.protocols:
            found = row.pooled.get(protocol)
            if found is None:
                writer.writerow({**place, "protocol": protocol})
                continue
            headline = table.headline(protocol).metric
            pooled = found.model_dump(exclude=set(NOT_IN_CSV))
            pooled |= {f"joint_{n}": getattr(found.joint, n) for n in OF_ALL if found.joint}
            for metric, value in row.metrics[protocol].items():
                extra = pooled if metric == headline else {}
                writer.writerow({**place, "protocol": protocol, "metric": metric, "value": value, **extra})
    return text.getvalue()


def lines(table: Table) -> list[Line]:
    """The table to read: a line per start, and below it one per kind that starts there; with several columns, overall last."""
    found: list[Line] = []
    is_summed = len(table.protocols) > 1
    for start in table.starts:
        fields = [_start_field(start.scores.get(name)) for name in table.protocols]
        found.append((start.name, "", fields + [()] * is_summed))
        for row in table.rows:
            if row.start == start.name:
                fields = [_field(table, row, name) for name in table.protocols]
                word: Parts = () if row.overall is None else (row.overall.verdict,)
                found.append((f"{row.start} → {row.method}", row.place, fields + [word] * is_summed))
    return found


def titles(table: Table) -> list[str]:
    """Headings of the fields of `lines`."""
    last = ["overall"] if len(table.protocols) > 1 else []
    return ["start → method", "framework", *(column(table, name) for name in table.protocols), *last]


def notes(table: Table) -> list[str]:
    """What to know when reading it: what intervals cover, what belongs together, the last column's rule, how many there are."""
    pooled = [found for row in table.rows for found in row.pooled.values()]
    chosen = list(dict.fromkeys(f"{entry.told}." for row in table.rows for entry in row.left_out))
    told = [table.interval, *table.on_groups, *chosen, *_explained(pooled)]
    if len(pooled) < 2:
        return told
    chance, judged = 1 - table.grid["level"], [row for row in table.rows if row.pooled]
    count = (
        f"{len(pooled)} intervals at {table.grid['level']:.0%} stand here, not widened for their number: if nothing had any "
        f"effect, about {chance * len(pooled):.2g} would exclude zero by chance"
    )
    if len(table.protocols) > 1:
        count += (
            f". The overall word of a row rests on intervals widened for its columns; of the {len(judged)} overall words about "
            f'{chance * len(judged):.2g} would not be "no difference"'
        )
    return [*told, *([RULE] if len(table.protocols) > 1 else []), f"{count}."]


def _explained(pooled: Sequence[Pooled]) -> list[str]:
    """What the short words in the fields mean, those that stand there."""
    reasons = sorted({unjudged(found, "items") for found in pooled if found.verdict == "cannot judge"})
    said = {
        "sees": 'Where no difference could be shown, "sees" is the smallest effect that 80 of 100 such measurements would show.'
        if any(found.verdict == "no difference" and found.smallest_effect for found in pooled)
        else "",
        "alone": f'"{ALONE}": that word holds for the field by itself, and not over all columns of its row together.'
        if any(together(found, "") for found in pooled)
        else "",
        "unjudged": f"Cannot judge: {'. '.join(reasons)}." if reasons else "",
        "one training": ONE_TRAINING if any(found.training_seeds == 1 for found in pooled) else "",
    }
    return [text for text in said.values() if text]


def heading(table: Table) -> str:
    """What the numbers are."""
    grid = table.grid
    num_seeds, level = len(grid["seeds"]), f"{grid['level']:.0%}"
    places = dict.fromkeys(f"{c.test + ' = ' if c.test else ''}{c.data} ({c.split})" for c in table.columns)
    return (
        f"{', '.join(places)}: mean (standard deviation over {num_seeds} training seed"
        f"{'s' if num_seeds > 1 else ''}), difference to the start [{level} interval], verdict"
    )


def column(table: Table, protocol: str) -> str:
    """Title of a protocol's column: its name and what the numbers are."""
    measured = [start.scores[protocol] for start in table.starts if protocol in start.scores]
    if not measured:
        return protocol
    return f"{protocol} ({measured[0].metric}{', %' if is_fraction(measured[0].metric) else ''})"


def to_markdown(table: Table) -> str:
    """The table, what its numbers are, and what failed or is missing."""
    rows = [titles(table)]
    rows += [[_escaped(label), _escaped(kind), *map(", ".join, fields)] for label, kind, fields in lines(table)]
    rows.insert(1, ["---"] * len(rows[0]))
    text = (
        heading(table)
        + ".\n\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        + "\n\n"
        + "\n\n".join(notes(table))
        + "\n"
    )
    for title, state in (("Failed", "failed"), ("Not done yet", "waiting"), ("Stopped", "stopped")):
        cells = [cell for cell in table.cells if cell.state == state]
        if cells:
            told = [f"- {cell.key}" + (f": {' '.join(cell.error.split())}" if cell.error else "") for cell in cells]
            text += f"\n{title}:\n\n" + "\n".join(told) + "\n"
    return text


def _start_field(scores: Scores | None) -> Parts:
    return () if scores is None else (number(scores.metric, scores.mean),)


def _field(table: Table, row: TableRow, protocol: str) -> Parts:
    found = row.pooled.get(protocol)
    if found is None:
        return ("not done",) if row.waiting else ("failed",)
    metric = table.headline(protocol).metric
    spread = f" ({number(metric, found.training_std)})" if len(row.seeds) > 1 else ""
    difference, low, high = (number(metric, v, sign="+") for v in (found.difference, found.low, found.high))
    wanted = len(row.seeds) + len(row.failed) + len(row.waiting)
    is_open = found.verdict == "no difference" and found.smallest_effect
    return (
        f"{number(metric, found.mean)}{spread}",
        f"{difference} [{low}, {high}]",
        found.verdict,
        *([f"sees {number(metric, found.smallest_effect or 0.0)}"] if is_open else []),
        *([ALONE] if together(found, metric) else []),
        *([] if len(row.seeds) == wanted else [f"{len(row.seeds)} of {wanted} seeds"]),
    )


def _joined(values: Sequence[int] | Mapping[int, str]) -> str:
    return " ".join(map(str, values))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))
