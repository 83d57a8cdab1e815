# SPDX-License-Identifier: Apache-2.0
"""Measuring one model with every protocol and seed of a grid; result files that are still valid are not made again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rekindle.assess import Measurement, load_model, result_config
from rekindle.assess_options import CompareOptions
from rekindle.core.errors import RekindleError, RequestError
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.result import EvalResult, read_result, read_rows
from rekindle.evaluation.score import Rows, Score
from rekindle.matrix.table import Scores
from rekindle.measuring import LabelledData, LoadedModel, build_protocol


@dataclass(frozen=True)
class Measured:
    """One model under one protocol.

    Attributes:
        scores: what the table says of it.
        rows: [E, n, F], the items' rows of E evaluation seeds.
        score: what they come to.
        seconds: wall time; 0 if nothing was missing.
    """

    scores: Scores
    rows: Rows
    score: Score
    seconds: float


@dataclass(frozen=True)
class Bench:
    """The labelled data, and where results lie.

    Attributes:
        out: folder of the matrix.
        data: what the protocols read.
        watcher: told how it goes.
    """

    out: Path
    data: LabelledData
    watcher: Watcher

    def measure(self, name: str, model_hash: str, options: CompareOptions, place: Path) -> dict[str, Measured]:
        """Return a model under every protocol, measuring what no valid result file holds.

        A file is valid if it is of the same tensors, data and seed, and has the fingerprint that would be measured.

        Args:
            name: MODEL; read only if something is to be measured.
            model_hash: of its tensors.
            options: protocols, seeds, and how the model is read.
            place: of its results, below results/<protocol>; the seed is added to its name.

        Raises: RekindleError, RequestError as `rekindle evaluate` does.
        """
        model: LoadedModel | None = None
        measured = {}
        for protocol in options.protocol:
            paths = [self.result_path(protocol, place, seed) for seed in range(options.seeds)]
            sides = [self._kept(path, protocol, model_hash, options, seed) for seed, path in enumerate(paths)]
            began, is_kept = time.monotonic(), None not in sides
            if not is_kept:
                model = model or load_model(name, options, self.watcher)
                if model.hash != model_hash:
                    raise RekindleError(f"{name} has changed while the matrix ran; start the matrix again")
                running = build_protocol(protocol, options, model, self.data, self.watcher.message)
                running.check()
                self.watcher.message(f"{protocol}: features of {name}")
                running.prepare()
                measurement = Measurement(protocol, running, model, self.data, options)
                for seed, path in enumerate(paths):
                    if sides[seed] is None:
                        result, outcome = measurement.of_seed(seed, path)
                        sides[seed] = result, outcome.rows
            seconds = 0.0 if is_kept else time.monotonic() - began
            measured[protocol] = _joined([side for side in sides if side is not None], paths, self.out, seconds)
        return measured

    def num_results(self, options: CompareOptions, place: Path) -> int:
        """How many of a model's result files are there, valid or not."""
        seeds = range(options.seeds)
        return sum(self.result_path(name, place, seed).exists() for name in options.protocol for seed in seeds)

    def result_path(self, protocol: str, place: Path, seed: int) -> Path:
        """Where the result of one evaluation seed lies."""
        return self.out / "results" / protocol / place.parent / f"{place.name}-eval-{seed}.json"

    def _kept(
        self, path: Path, protocol: str, model_hash: str, options: CompareOptions, seed: int
    ) -> tuple[EvalResult, Rows] | None:
        """Read a result if it is there and of this request."""
        if not path.exists():
            return None
        try:
            result = read_result(path)
            _, rows = read_rows(path.parent / (result.per_item or ""), result)
        except RequestError as error:
            self.watcher.message(f"measuring again: {error}")
            return None
        fingerprint = self.data.fingerprint(protocol, result_config(options, protocol))
        found = (result.model_hash, result.data, result.split, result.seed, result.fingerprint)
        return (result, rows) if found == (model_hash, options.data, options.split, seed, fingerprint) else None


def _joined(sides: list[tuple[EvalResult, Rows]], paths: list[Path], out: Path, seconds: float) -> Measured:
    score = sides[0][0].score
    common = [name for name in sides[0][0].metrics if all(name in result.metrics for result, _ in sides)]
    scores = Scores(
        metric=score.name,
        by_seed=[score.value(rows) for _, rows in sides],
        metrics={name: float(np.mean([result.metrics[name] for result, _ in sides])) for name in common},
        results=[str(path.relative_to(out)) for path in paths],
    )
    return Measured(scores, np.stack([rows for _, rows in sides]), score, seconds)
