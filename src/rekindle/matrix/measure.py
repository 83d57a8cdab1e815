# SPDX-License-Identifier: Apache-2.0
"""Measuring one model with every column and seed of a grid; result files that are still valid are not made again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rekindle.core.errors import RekindleError, RequestError
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.scores.kinds import of_today
from rekindle.evaluation.scores.result import EvalResult, read_groups, read_result, read_rows
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.groups import group_indices
from rekindle.matrix.columns import Column
from rekindle.matrix.table import Scores
from rekindle.measuring.measurement import AnyProtocol, LabelledData, Measurement, build_protocol, result_config
from rekindle.measuring.models import LoadedModel, load_model
from rekindle.measuring.options import CompareOptions

Requests = Mapping[str, CompareOptions]
"""How a model is measured, by the name of the column."""

_Side = tuple[EvalResult, list[str], Rows]
"""A result, the names of its items, and their rows."""


@dataclass(frozen=True)
class MeasuredColumn:
    """One model under one column.

    Attributes:
        scores: what the table says of it.
        items: names of the n items.
        rows: [E, n, F], the items' rows of E evaluation seeds.
        score: what they come to.
        seconds: wall time; 0 if nothing was missing.
        groups: [n], the group of each item, numbered; None where items stand alone.
    """

    scores: Scores
    items: list[str]
    rows: Rows
    score: Score
    seconds: float
    groups: NDArray[np.int64] | None


@dataclass(frozen=True)
class MatrixSetup:
    """The labelled data, and where results lie.

    Attributes:
        out: folder of the matrix.
        columns: what every model is measured with.
        data: what the protocols read, by the name of the data.
        watcher: told how it goes.
    """

    out: Path
    columns: Sequence[Column]
    data: Mapping[str, LabelledData]
    watcher: Watcher

    def measure(
        self, name: str, model_hash: str, requests: Requests, seeds: Sequence[int], place: Path
    ) -> dict[str, MeasuredColumn]:
        """Return a model under every column, measuring what no valid result file holds.

        A file is valid if it is of the same tensors, data and seed, and has the fingerprint that would be measured.

        Args:
            name: MODEL; read only if something is to be measured.
            model_hash: of its tensors.
            requests: options, and how the model is read, by column.
            seeds: of the evaluation.
            place: of its results, below the column's folder; the seed is added to its name.

        Raises: RekindleError, RequestError as `rekindle evaluate` does.
        """
        reader = _Reader(self, name, model_hash)
        measured = {}
        for column in self.columns:
            options = requests[column.name]
            paths = [self.result_path(column, place, seed) for seed in seeds]
            sides = [
                self._kept(path, column, model_hash, options, seed) for seed, path in zip(seeds, paths, strict=True)
            ]
            began, is_kept = time.monotonic(), None not in sides
            if not is_kept:
                measurement = reader.measurement(column, options)
                for index, (seed, path) in enumerate(zip(seeds, paths, strict=True)):
                    if sides[index] is None:
                        result, outcome = measurement.of_seed(seed, path, draw=index == 0)
                        sides[index] = result, outcome.items, outcome.rows
            seconds = 0.0 if is_kept else time.monotonic() - began
            measured[column.name] = _joined([side for side in sides if side is not None], paths, self.out, seconds)
        return measured

    def num_results(self, seeds: Sequence[int], place: Path) -> int:
        """How many of a model's result files are there, valid or not."""
        return sum(self.result_path(c, place, seed).exists() for c in self.columns for seed in seeds)

    def result_path(self, column: Column, place: Path, seed: int) -> Path:
        """Where the result of one evaluation seed lies."""
        return self.out / "results" / column.folder / place.parent / f"{place.name}-eval-{seed}.json"

    def _kept(self, path: Path, column: Column, model_hash: str, options: CompareOptions, seed: int) -> _Side | None:
        """Read a result if it is there and of this request."""
        if not path.exists():
            return None
        try:
            result = read_result(path)
            items, rows = read_rows(path.parent / (result.per_item or ""), result)
        except RequestError as error:
            self.watcher.message(f"measuring again: {error}")
            return None
        data = self.data[column.test]
        fingerprint = data.fingerprint(column.protocol, result_config(options, column.protocol))
        found = (result.model_hash, result.data, result.split, result.seed, result.fingerprint)
        return (result, items, rows) if found == (model_hash, options.data, options.split, seed, fingerprint) else None


class _Reader:
    """One model while it is measured: read once, and prepared once for all shares of the same labels."""

    def __init__(self, bench: MatrixSetup, name: str, model_hash: str) -> None:
        self._bench, self._name, self._hash = bench, name, model_hash
        self._model: LoadedModel | None = None
        self._test: str | None = None
        self._prepared: dict[str, AnyProtocol] = {}  # the last one, by the name of its panel

    def measurement(self, column: Column, options: CompareOptions) -> Measurement:
        """Return what measures a column."""
        message, data = self._bench.watcher.message, self._bench.data[column.test]
        model = self._model = self._model or self._load(options)
        if column.test != self._test:
            model.features.forget()
            self._test = column.test
        protocol = build_protocol(column.protocol, options, model, data, message)
        protocol.check()
        if column.panel not in self._prepared:
            message(f"{column.panel}: features of {self._name}")
            self._prepared.clear()  # lets go of its features first
            protocol.prepare()
            self._prepared[column.panel] = protocol
        running = self._prepared[column.panel].learning_from(protocol.part)
        return Measurement(column.protocol, running, model, data, options)

    def _load(self, options: CompareOptions) -> LoadedModel:
        model = load_model(self._name, options, self._bench.watcher)
        if model.hash != self._hash:
            raise RekindleError(f"{self._name} has changed while the matrix ran; start the matrix again")
        return model


def _joined(sides: list[_Side], paths: list[Path], out: Path, seconds: float) -> MeasuredColumn:
    score = of_today(sides[0][0].score)
    metrics = [_metrics(result, rows) for result, _, rows in sides]
    common = [name for name in metrics[0] if all(name in own for own in metrics)]
    scores = Scores(
        metric=score.name,
        by_seed=[score.value(rows) for _, _, rows in sides],
        metrics={name: float(np.mean([own[name] for own in metrics])) for name in common},
        results=[str(path.relative_to(out)) for path in paths],
    )
    first = sides[0][0]
    per_item = paths[0].parent / (first.per_item or "")
    named = read_groups(per_item, first)
    groups = None if named is None else group_indices(named)
    return MeasuredColumn(scores, sides[0][1], np.stack([rows for *_, rows in sides]), score, seconds, groups)


def _metrics(result: EvalResult, rows: Rows) -> dict[str, float]:
    """Metrics of a result; of one of before by today's rule, so that a matrix that goes on has one rule for all its cells."""
    score = of_today(result.score)
    if score == result.score:
        return result.metrics
    older = result.score.metrics(rows)
    return score.metrics(rows) | {name: value for name, value in result.metrics.items() if name not in older}
