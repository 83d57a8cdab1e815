# SPDX-License-Identifier: Apache-2.0
"""Running a matrix: check everything, then train and measure cell by cell, and write the table after each."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.adapters.saved import read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.tables import import_named
from rekindle.core.text_files import read_json
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.verdict.difference import difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import margin_in
from rekindle.evaluation.verdict.overall import overall
from rekindle.matrix.cells import Cell, Key, Kind, placed, plan_cells
from rekindle.matrix.columns import Column, folder_name
from rekindle.matrix.grid import Grid, Tree, check_grid, read_grid
from rekindle.matrix.measure import MatrixSetup, MeasuredColumn
from rekindle.matrix.pooling import pooled_of
from rekindle.matrix.starts import check_start, start_model, start_tree
from rekindle.matrix.table import CellRecord, Scores, StartRecord, Table, TableRow, mean_metrics, write_table
from rekindle.measuring.belonging import EvidentGroups
from rekindle.measuring.choosing import LeftOut, choices_of, flattered, kept_groups, left_out
from rekindle.measuring.measurement import open_labelled
from rekindle.measuring.options import CompareOptions
from rekindle.pretraining.run import pretrain

INTERVAL = (
    "Intervals: a bootstrap that draws images, evaluation seeds and training seeds with replacement, paired with the start "
    "on images and evaluation seeds, with Student's t for their numbers (docs/verdict.md)."
)
INTERVAL_OF_PAIRS = (
    "Intervals: a bootstrap that draws images and seeds with replacement, paired with the start on both, with "
    "Student's t for their numbers (docs/verdict.md); each run is measured with the seed of its training alone."
)


def compare_grid(grid: str | Path | Mapping[str, Any], *, out: str = "", watcher: Watcher | None = None) -> Table:
    """Run a matrix from a grid file or its tree; what is done already is kept.

    Example: `compare_grid("examples/grids/first.yaml", out="runs/first")`.
    """
    if isinstance(grid, Mapping):
        return run_matrix(check_grid(dict(grid) | ({"out": out} if out else {})), "grid", watcher=watcher)
    return run_matrix(read_grid(grid, out=out), str(grid), watcher=watcher)


def run_matrix(grid: Grid, where: str, *, watcher: Watcher | None = None) -> Table:
    """Train and measure every cell that is not done, and write the table after each.

    A cell that fails is recorded, and the others go on. An interrupt ends it cleanly; calling it again continues.

    Args: where, the name of the grid for messages.
    Raises: RequestError before anything runs, if a cell cannot be; RekindleError if a start cannot be measured.
    """
    watcher = watcher or LoggingWatcher()
    cells, bench = _planned(grid, where, watcher)
    hashes = {
        name: check_start(grid, name, [c for c in cells if c.key.start == name], bench, where) for name in grid.starts
    }
    with RunFolder(grid.out).locked():
        matrix = _Matrix(grid, cells, hashes, bench)
        try:
            with _terminated_as_interrupt():
                matrix.run()
        except KeyboardInterrupt:
            matrix.is_stopped = True
        matrix.write()
    return matrix.table()


@dataclass(frozen=True)
class Plan:
    """What a matrix would do for one cell.

    Attributes:
        key: which cell.
        state: of its training: `finished`, `started` or `new`.
        steps: optimizer steps of the run; steps_done: of these, done.
        results: result files that are there; of `results_wanted`.
    """

    key: Key
    state: str
    steps: int
    steps_done: int
    results: int
    results_wanted: int


def survey(grid: Grid, where: str) -> list[Plan]:
    """What `run_matrix` would do; everything is checked but what needs a start's weights, and nothing is written.

    Raises: RequestError as `run_matrix` does.
    """
    cells, bench = _planned(grid, where, LoggingWatcher())

    def plan(cell: Cell) -> Plan:
        seeds = _evaluation_seeds(grid, cell.key)
        done, wanted = bench.num_results(seeds, cell.key.folder), len(bench.columns) * len(seeds)
        return Plan(cell.key, cell.state, cell.steps, cell.steps_done, done, wanted)

    return [plan(cell) for cell in cells]


def _evaluation_seeds(grid: Grid, key: Key) -> tuple[int, ...]:
    """What a cell is measured with."""
    return (key.seed,) if grid.is_paired(key.method) else grid.start_seeds


def _planned(grid: Grid, where: str, watcher: Watcher) -> tuple[list[Cell], MatrixSetup]:
    cells = plan_cells(grid, where)
    if RunFolder(grid.out).holds_run:
        raise RequestError(f"{where}: out = {grid.out} is the folder of a run; give the matrix one of its own")
    columns, data = grid.columns(), {}
    for column in columns:
        if column.test not in data:
            protocols = [c.protocol for c in columns if c.test == column.test]
            try:
                data[column.test] = open_labelled(grid.measuring(column), protocols)
            except RequestError as error:
                raise placed(error, f"{where}: tests.{column.test}") if column.test else error from None
    return cells, MatrixSetup(Path(grid.out), columns, data, watcher)


class _Matrix:
    """A matrix under way: records of starts and cells, and rows of the kind in hand."""

    def __init__(self, grid: Grid, cells: list[Cell], hashes: Mapping[str, str], bench: MatrixSetup) -> None:
        self.grid, self.cells, self.bench, self.watcher = grid, cells, bench, bench.watcher
        self.is_stopped, self._evident = False, EvidentGroups()
        spent = _times_spent(bench.out / "table.json")
        self.records = [_waiting(cell, bench.out, *spent.get(str(cell.key), (0.0, 0.0))) for cell in cells]
        self.starts = {
            name: StartRecord(name=name, model=start_model(grid, name), model_hash=found, scores={})
            for name, found in hashes.items()
        }
        self.rows: dict[Kind, TableRow] = {}
        self._start_side: dict[str, MeasuredColumn] = {}  # of the start in hand, by column
        self._sides: dict[int, dict[str, MeasuredColumn]] = {}  # of the kind in hand: training seed -> by column

    def run(self) -> None:
        """Go through the cells in order; returns early, with `is_stopped`, where a training was asked to stop."""
        before: Cell | None = None
        left = sum(cell.steps - cell.steps_done for cell in self.cells)
        began, steps_here = time.monotonic(), 0
        for index, cell in enumerate(self.cells):
            if before is None or before.key.start != cell.key.start:
                self._measure_start(cell.key.start)
            if before is None or before.key.kind != cell.key.kind:
                self._sides = {}
            before = cell
            todo = cell.steps - cell.steps_done
            self._run_cell(index, cell)
            self.write()
            steps_here, left = steps_here + todo, left - todo
            elapsed = time.monotonic() - began
            eta = f"; ETA {timedelta(seconds=round(elapsed / steps_here * left))}" if steps_here and left else ""
            self.watcher.message(f"[{index + 1}/{len(self.cells)}] {_told(self.records[index])}{eta}")
            if self.is_stopped:
                return
        for name in self.starts:
            if all(cell.key.start != name for cell in self.cells):
                self._measure_start(name)  # nothing begins there: it stands in the table as it is

    def table(self) -> Table:
        """The table as it stands."""
        return Table(
            grid=self.grid.model_dump(mode="json"),
            protocols=[column.name for column in self.bench.columns],
            columns=list(self.bench.columns),
            is_complete=all(record.state == "finished" for record in self.records),
            is_stopped=self.is_stopped,
            starts=list(self.starts.values()),
            cells=self.records,
            rows=[self._row(kind) for kind in dict.fromkeys(cell.key.kind for cell in self.cells)],
            interval=_interval(self.grid, self.bench.columns),
            on_groups=self._evident.notes,
        )

    def write(self) -> None:
        """Write the table as it stands."""
        write_table(self.table(), self.bench.out)

    def _measure_start(self, name: str) -> None:
        record = self.starts[name]
        self._start_side = self.bench.measure(
            record.model,
            record.model_hash,
            self._requests(start_tree(self.grid, name)),
            self.grid.start_seeds,
            Path(folder_name(name)) / "start",
        )
        scores = {protocol: side.scores for protocol, side in self._start_side.items()}
        self.starts[name] = record.model_copy(update={"scores": scores})
        self.write()

    def _run_cell(self, index: int, cell: Cell) -> None:
        """Train and measure one cell, as far as it is not done; leaves its record and its kind's row."""
        record: dict[str, Any] = {}
        try:
            if cell.run.is_finished or self._train(index, cell):
                record = self._measure_cell(index, cell) | {"state": "finished"}
            else:
                self.is_stopped, record["state"] = True, "stopped"
        except RekindleError as error:
            record = {"state": "failed", "error": str(error)}
        except KeyboardInterrupt:
            record["state"] = "stopped"
            raise
        finally:
            self._update(index, steps_done=cell.steps_done, **record)

    def _train(self, index: int, cell: Cell) -> bool:
        """Train until the run is finished, or until it is asked to stop: then False."""
        done = cell.steps_done
        what = f"continuing after step {done} of {cell.steps}" if done else f"training {cell.steps} steps"
        self.watcher.message(f"[{index + 1}/{len(self.cells)}] {cell.key}: {what}")
        began = time.monotonic()
        try:
            return pretrain(cell.resolved, resume=True, watcher=self.watcher).is_finished
        finally:
            self._update(index, train_s=self.records[index].train_s + time.monotonic() - began)

    def _measure_cell(self, index: int, cell: Cell) -> dict[str, Any]:
        found = str(read_description(cell.run.path)["model_hash"])
        seeds = _evaluation_seeds(self.grid, cell.key)
        sides = self.bench.measure(str(cell.run.path), found, self._requests(), seeds, cell.key.folder)
        self._sides[cell.key.seed] = sides
        self._pool(cell)
        seconds = self.records[index].measure_s + sum(side.seconds for side in sides.values())
        return {"model_hash": found, "scores": {p: s.scores for p, s in sides.items()}, "measure_s": seconds}

    def _requests(self, run: Tree | None = None) -> dict[str, CompareOptions]:
        return {column.name: self.grid.measuring(column, run) for column in self.bench.columns}

    def _pool(self, cell: Cell) -> None:
        grid, is_paired = self.grid, self.grid.is_paired(cell.key.method)
        found, metrics, chosen = {}, {}, []
        runs = [c.run.path for c in self.cells if c.key.kind == cell.key.kind and c.key.seed in self._sides]
        for column in self.bench.columns:
            sides = [by_column[column.name] for by_column in self._sides.values()]
            start = self._start_side[column.name]
            of_start = start.rows[[grid.start_seeds.index(seed) for seed in self._sides]] if is_paired else start.rows
            chosen_here, judges = self._left_out(column, start, cell.key.start, runs)
            rows = [of_start[:, judges]], [side.rows[:, judges] for side in sides]
            groups = kept_groups(start.groups, judges)
            named = {f"{cell.key.method}/{cell.key.framework}": [side.rows for side in sides]}
            self._evident.look(
                column.name,
                self.bench.data[column.test],
                column.protocol,
                start.items,
                start.score,
                [of_start],
                named,
            )
            plain = difference_of(*rows, start.score, groups=groups, is_paired=is_paired, resamples=grid.resamples)
            base = start_model(grid, cell.key.start)
            found[column.name] = flattered(plain, chosen_here, rows, base, [str(run) for run in runs], groups)
            chosen += [] if chosen_here is None else [chosen_here]
            metrics[column.name] = mean_metrics([side.scores for side in sides])
        margins = {name: margin_in(own.score, grid.margin) for name, own in found.items()}
        joint = joint_verdicts(found, grid.level, margins)
        pooled = {
            name: pooled_of(own, level=grid.level, margin=margins[name], joint=joint.get(name))
            for name, own in found.items()
        }
        record = {
            "seeds": list(self._sides),
            "pooled": pooled,
            "metrics": metrics,
            "left_out": chosen,
            "overall": overall({name: own.verdict for name, own in pooled.items()}, joint, grid.level),
        }
        self.rows[cell.key.kind] = _empty_row(cell.key.kind).model_copy(update=record)

    def _left_out(
        self, column: Column, start: MeasuredColumn, name: str, runs: Sequence[Path]
    ) -> tuple[LeftOut | None, NDArray[np.bool_]]:
        """Find the items that had chosen the step of a run of the kind in hand, or of its start; and those that judge."""
        models = [start_model(self.grid, name), *map(str, runs)]
        draws_items = bool(import_named(PROTOCOLS, "protocol", column.protocol).UNGROUPED)
        return left_out(
            column.name,
            start.items,
            {model: choices_of(model) for model in models},
            column.data,
            column.split,
            groups=start.groups,
            test_items=self.bench.data[column.test].test(column.protocol).items if draws_items else None,
        )

    def _row(self, kind: Kind) -> TableRow:
        """The row of a kind, with what failed and what is missing as the records say."""
        own = [r for r in self.records if r.key.kind == kind]
        failed = {r.key.seed: r.error or "" for r in own if r.state == "failed"}
        waiting = [r.key.seed for r in own if r.state in ("waiting", "stopped")]
        row = self.rows.get(kind) or _empty_row(kind)
        return row.model_copy(update={"failed": failed, "waiting": waiting})

    def _update(self, index: int, **record: Any) -> None:
        self.records[index] = self.records[index].model_copy(update=record)


def _interval(grid: Grid, columns: Sequence[Column]) -> str:
    """What the intervals of a table cover."""
    text = INTERVAL_OF_PAIRS if grid.evaluation_seeds == "paired" else INTERVAL
    rules = list(dict.fromkeys(column.group_by for column in columns))
    if not any(rules):
        return text
    told = ", ".join(filter(None, rules))
    units = f"groups of images ({told})" if all(rules) else f"images, or where asked groups of them ({told}),"
    return text.replace("draws images", f"draws {units}")


def _empty_row(kind: Kind) -> TableRow:
    start, method, framework, images = kind
    return TableRow(
        start=start,
        method=method,
        framework=framework,
        images=images,
        seeds=[],
        failed={},
        waiting=[],
        pooled={},
        metrics={},
        overall=None,
    )


def _waiting(cell: Cell, out: Path, train_s: float, measure_s: float) -> CellRecord:
    return CellRecord(
        key=cell.key,
        run=str(cell.run.path.relative_to(out) if cell.run.path.is_relative_to(out) else cell.run.path),
        state="waiting",
        error=None,
        steps=cell.steps,
        steps_done=cell.steps_done,
        train_s=train_s,
        measure_s=measure_s,
        model_hash=None,
        options=cell.resolved.options.model_dump(mode="json"),
        scores={},
    )


def _told(record: CellRecord) -> str:
    """One line about a cell that was just gone through."""
    if record.state == "failed":
        return f"{record.key} failed: {record.error}"
    if record.state == "stopped":
        return f"{record.key}: stopped after step {record.steps_done} of {record.steps}"
    scores: Mapping[str, Scores] = record.scores
    values = ", ".join(f"{name} {s.told}" for name, s in scores.items())
    return f"{record.key}: {record.steps} steps in {record.train_s:.0f} s; {values}"


def _times_spent(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds of training and measuring in earlier calls, by cell; nothing where no table, or none of this form, lies."""
    try:
        cells = read_json(path)["cells"]
        records = [CellRecord.model_validate(cell) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {str(record.key): (record.train_s, record.measure_s) for record in records}


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C: while a training runs, the engine handles both and saves; elsewhere files are whole or not there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
