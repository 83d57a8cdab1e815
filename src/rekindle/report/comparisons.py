# SPDX-License-Identifier: Apache-2.0
"""Comparisons that measured a run, found by the hash of its model, and what they say of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from rekindle.core.errors import RequestError
from rekindle.core.option_trees import leaves
from rekindle.core.tables import import_options
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.scores.result import EvalResult, read_rows
from rekindle.evaluation.scores.score import Values
from rekindle.evaluation.verdict.difference import deviation
from rekindle.evaluation.verdict.judging import Verdict
from rekindle.measuring.comparison import Comparison, Row
from rekindle.report.page import ClassTable, MetricLine
from rekindle.report.record import RunRecord
from rekindle.report.verdicts import VerdictRow

FILE = "comparison.json"


@dataclass(frozen=True)
class MeasuredModel:
    """One comparison, as far as it is about one run.

    Attributes:
        path: of comparison.json.
        comparison: all of it.
        model: what it calls the run.
        is_own_base: whether its base is the one that the run started from.

    """

    path: Path
    comparison: Comparison
    model: str
    is_own_base: bool

    @property
    def place(self) -> str:
        """Data and split, in short."""
        data = self.comparison.data
        named, _, root = data.rpartition(":")
        return f"{named or Path(root).name}, {self.comparison.split}"

    @property
    def rows(self) -> list[Row]:
        """The run's rows."""
        return [row for row in self.comparison.rows if self.model in (row.model, *row.trainings)]

    def results(self, model: str, protocol: str) -> list[EvalResult]:
        """The evaluations of one model under one protocol, by seed."""
        every = self.comparison.results
        return [result for result in every if result.model == model and result.protocol == protocol]

    def items_of(self, model: str, protocol: str) -> tuple[list[str], Values]:
        """Names of the items and their rows [S, n, F], one per seed. Raises RequestError if the tables are not there."""
        items: list[str] = []
        rows = []
        for result in self.results(model, protocol):
            if result.per_item is None:
                raise RequestError(f"{self.path}: {protocol} names no table of single items")
            items, values = read_rows(self.path.parent / result.per_item, result)
            rows.append(values)
        if not rows:
            raise RequestError(f"{self.path}: no evaluation of {model} under {protocol}")
        return items, np.stack(rows)

    def changes(self, row: Row) -> tuple[list[str], Values, Values]:
        """Names of the items under a protocol, and the score of each alone [n]: base and run, means over the seeds."""
        items, base = self.items_of(self.comparison.base, row.protocol)
        _, own = self.items_of(self.model, row.protocol)
        one = np.ones((1, 1))
        sides = [
            np.array([row.score.over(side[:, i : i + 1], one)[0].mean() for i in range(len(items))])
            for side in (base, own)
        ]
        return items, sides[0], sides[1]


def find_comparisons(record: RunRecord, named: Sequence[str]) -> list[MeasuredModel]:
    """Return the comparisons that measured a run, the named ones or those that lie around; what is not there is noted.

    Raises: RequestError if a named one cannot be read or is about other models.
    """
    if record.description is None:
        return []
    hashes = str(record.description["model_hash"]), str(record.description["base"]["sha256"])
    found = []
    for path in _named(named) if named else _around(record.folder.path):
        try:
            comparison = Comparison.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            if named:
                raise RequestError(f"{path} is not a comparison of `rekindle compare` ({_first(error)})") from error
            record.missing.append(f"{path} cannot be read as a comparison and is left out ({_first(error)}).")
            continue
        by_model = {result.model: result.model_hash for result in comparison.results}
        models = [m for m, h in by_model.items() if h == hashes[0] and m != comparison.base]
        found += [MeasuredModel(path, comparison, m, by_model.get(comparison.base) == hashes[1]) for m in models]
        if named and len(named) == 1 and not models:
            raise RequestError(
                f"{path} did not measure this model (its hash is {hashes[0][:12]}); it is about {', '.join(by_model)}. Was the "
                "run trained again since? Compare again"
            )
    if not found:
        record.missing.append(
            "There is no comparison with the base, so nothing can be said about whether it helped: run `rekindle compare`, "
            "then make the report again (--comparison names one that lies elsewhere)."
        )
    return found


def verdict_rows(measured: MeasuredModel, name: str = "adapted") -> list[VerdictRow]:
    """Return what a comparison says of the run."""
    found = []
    for row in measured.rows:
        found.append(
            VerdictRow(
                protocol=row.protocol,
                metric=row.metric,
                found=_counted(measured, row),
                higher_is_better=row.score.higher_is_better,
                name=name,
                data=measured.place,
                comparison=str(measured.path),
                subject=row.subject,
            )
        )
    return found


def metric_lines(measured: MeasuredModel) -> list[MetricLine]:
    """Return every metric that all seeds of both models define, without those of single classes."""
    lines = []
    for protocol in dict.fromkeys(row.protocol for row in measured.rows):
        base, own = (measured.results(model, protocol) for model in (measured.comparison.base, measured.model))
        for metric in own[0].metrics if own else []:
            if "/" in metric or not all(metric in result.metrics for result in [*base, *own]):
                continue
            sides = [np.array([result.metrics[metric] for result in side]) for side in (base, own)]
            (b, b_std), (m, m_std) = ((float(s.mean()), deviation(s)) for s in sides)
            lines.append(MetricLine(protocol, measured.place, metric, b, b_std, m, m_std, len(own)))
    return lines


def class_tables(measured: MeasuredModel) -> list[ClassTable]:
    """Return base, adapted and difference of every part of the scores that have parts, the largest gain first."""
    tables = []
    for row in measured.rows:
        if not row.verdict.per_class:
            continue
        known = {
            model: _part_means(measured.results(model, row.protocol))
            for model in (measured.comparison.base, measured.model)
        }
        ranked = sorted(row.verdict.per_class.items(), key=lambda part: -part[1])
        rows = {
            name: (known[measured.comparison.base].get(name), known[measured.model].get(name), difference)
            for name, difference in ranked
        }
        tables.append(ClassTable(row.protocol, measured.place, row.metric, rows))
    return tables


def compare_command(measured: MeasuredModel, base: str, run: str) -> str:
    """Return the command that makes a comparison again; options of protocols that differ from the defaults are named."""
    comparison = measured.comparison
    protocols = list(dict.fromkeys(row.protocol for row in comparison.rows))
    words = ["rekindle", "compare", base, run, "--protocol", *protocols]
    words += ["--data", comparison.data, "--split", comparison.split, "--seeds", str(len(comparison.seeds))]
    shared: dict[str, str] = {}
    for protocol in protocols:
        config = measured.results(measured.model, protocol)[0].config
        defaults = import_options(PROTOCOLS, "protocol", protocol)().model_dump(mode="json")
        for name in leaves(defaults):
            value, default = _at(config, name), _at(defaults, name)
            if value is not None and value != default:
                words += [f"--{protocol}.{name.replace('_', '-')}", *_written(value)]
        shared |= {
            name: str(config[name])
            for name, usual in (
                ("train_split", "train"),
                ("train_fraction", 1.0),
                ("train_shots", 0),
                ("train_list", ""),
                ("precision", "fp32"),
            )
            if name in config and config[name] != usual
        }
    for name, text in shared.items():
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def _written(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(part) for part in value]
    return [str(value)]


def _at(tree: Mapping[str, Any], name: str) -> Any:
    value: Any = tree
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _part_means(results: Sequence[EvalResult]) -> dict[str, float]:
    """Mean over the seeds of every metric of a part, such as IoU/<class>, by part."""
    found: dict[str, list[float]] = {}
    for result in results:
        for metric, value in result.metrics.items():
            kind, slash, part = metric.partition("/")
            if slash and kind == next(name for name in result.metrics if "/" in name).partition("/")[0]:
                found.setdefault(part, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _counted(measured: MeasuredModel, row: Row) -> Verdict:
    """The verdict; of a file of before, with the items and seeds that its results hold."""
    if row.verdict.items:
        return row.verdict
    results = measured.results(measured.model, row.protocol)
    table = measured.path.parent / (results[0].per_item or "") if results else measured.path.parent
    items = 0
    if table.is_file():
        with table.open("rb") as stream:
            items = max(0, sum(1 for _ in stream) - 1)
    counts = {"items": items, "units": items, "evaluation_seeds": len(measured.comparison.seeds)}
    return row.verdict.model_copy(update=counts)


def _named(names: Sequence[str]) -> list[Path]:
    paths = [Path(name) / FILE if Path(name).is_dir() else Path(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise RequestError(
                f"--comparison {path}: there is no such file; give the --out folder of `rekindle compare`"
            )
    return paths


def _around(run: Path) -> list[Path]:
    places = [Path("results"), run, run.resolve().parent]
    return list({p.resolve(): p for place in places for p in sorted(place.glob(f"*/{FILE}"))}.values())


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return str(error)
