# SPDX-License-Identifier: Apache-2.0
"""Time to gain: from a request to its answer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rekindle.bench.gain.figures import Scored, SideFigures, figures_of, plain
from rekindle.bench.gain.options import GainOptions, measuring_request
from rekindle.bench.gain.pace import Pace, Recorded, Training, pace_of
from rekindle.bench.gain.scores import Scorer, elsewhere, read_runs
from rekindle.bench.gain.sides import Side, sides_of
from rekindle.bench.gain.trainings import as_plain, time_in_turn, train_in_turn
from rekindle.bench.running import describe_machine
from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.result import write_json
from rekindle.evaluation.scores.score import Score

Message = Callable[[str], None]
PLACES = ("work", "out", "picture")


@dataclass(frozen=True)
class GainResult:
    """What the bench found.

    Attributes:
        options: of the request; without folders.
        machine: CPU, cores, versions.
        recipes: by side, the run file's tree; without folders.
        score: what is compared, with its direction; None where nothing was scored.
        sides: the baseline first.
    """

    options: dict[str, Any]
    machine: dict[str, object]
    recipes: dict[str, dict[str, Any]]
    score: Score | None
    sides: list[SideFigures]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without a place of this machine."""
        score = self.score
        told = None if score is None else {"metric": score.name, "higher_is_better": score.higher_is_better}
        return {
            "bench": "gain",
            "machine": self.machine,
            "options": self.options,
            "score": told,
            "sides": [
                {
                    "label": side.label,
                    "recipe": self.recipes[side.label],
                    "pace": as_plain(side.pace),
                    "whole_of_baseline": side.whole_of_baseline,
                    "curve": [asdict(point) for point in side.curve],
                    "gain": plain(side.gain),
                    "against_baseline": plain(side.against_baseline),
                    "reached": None if side.reached is None else asdict(side.reached),
                }
                for side in self.sides
            ],
        }


def run_gain(options: GainOptions, message: Message) -> GainResult:
    """Train or time the sides in turn, score them, and say when each has the share of the baseline's gain.

    Raises: RequestError for a wrong request, before anything is trained; RekindleError if a training fails or is stopped.
    """
    sides = sides_of(options)
    for name in ("out", "picture"):
        path = getattr(options, name)
        if path and not Path(path).absolute().parent.is_dir():
            raise RequestError(f"--{name} {path}: its folder does not exist; make it, or name another file")
    runs = read_runs(options, sides)
    if options.threads:
        torch.set_num_threads(options.threads)
    is_scored = options.time_only is None or bool(runs)
    if is_scored:
        measuring_request(options, str(sides[0].recipe["backbone"]), sides[0].recipe)
    with _work(options) as work:
        scorer = Scorer(options, sides[0], work, _Told(message)) if is_scored else None
        if options.time_only is not None:
            paces, scored = _timed(options, sides, runs, scorer, work, message)
        else:
            assert scorer is not None
            paces, scored = _trained(options, sides, scorer, work, message)
    start = None if scorer is None else scorer.start
    figures = figures_of(
        paces,
        scored,
        None if start is None else start.rows,
        None if start is None else start.score,
        None if start is None else start.groups,
        share=options.share,
        resamples=options.resamples,
        level=options.level,
    )
    result = GainResult(
        options=without_places(options.model_dump(mode="json", exclude={*PLACES})),
        machine=describe_machine(options.threads or int(figures[0].pace.facts["threads"])),
        recipes={side.label: without_places(side.recipe) for side in sides},
        score=None if start is None else start.score,
        sides=figures,
    )
    _write(options, result)
    return result


def _trained(
    options: GainOptions, sides: list[Side], scorer: Scorer, work: Path, message: Message
) -> tuple[dict[str, Pace], dict[str, Scored]]:
    recorded: dict[str, list[Recorded]] = {side.label: [] for side in sides}
    scored = {side.label: Scored([], []) for side in sides}
    for seed in range(options.seeds):
        done = train_in_turn(sides, seed, options, work, message)
        for side in sides:
            times, training = done[side.label]
            recorded[side.label].append(times)
            _score(scored[side.label], scorer, side, training, message)
    return {label: pace_of(own) for label, own in recorded.items()}, scored


def _timed(
    options: GainOptions,
    sides: list[Side],
    runs: dict[str, list[Path]],
    scorer: Scorer | None,
    work: Path,
    message: Message,
) -> tuple[dict[str, Pace], dict[str, Scored]]:
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
        paces = time_in_turn(sides, options, Path(scratch), message)
    scored: dict[str, Scored] = {}
    for side in sides:
        for folder in runs.get(side.label, ()):
            assert scorer is not None
            pace = paces[side.label]
            training = elsewhere(folder, pace.steps, f"--runs {options.runs}")
            timed = tuple(replace(mark, seconds=pace.seconds_at(mark.step)) for mark in training.marks)
            own = scored.setdefault(side.label, Scored([], []))
            _score(own, scorer, side, replace(training, marks=timed), message)
    return paces, scored


def _score(own: Scored, scorer: Scorer, side: Side, training: Training, message: Message) -> None:
    measured = scorer.of(training, Path(side.folder) / f"seed-{training.seed}")
    own.trainings.append(training)
    own.rows.append([column.rows for column in measured])
    last = measured[-1]
    values = ", ".join(f"{sum(m.scores.by_seed) / len(m.scores.by_seed):.4f}" for m in measured)
    message(
        f"{side.label}, seed {training.seed}: {last.score.name} {values} at steps "
        f"{', '.join(str(mark.step) for mark in training.marks)}"
    )


@contextmanager
def _work(options: GainOptions) -> Iterator[Path]:
    if options.work:
        Path(options.work).mkdir(parents=True, exist_ok=True)
        yield Path(options.work)
        return
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
        yield Path(scratch)


def _write(options: GainOptions, result: GainResult) -> None:
    if options.out:
        write_json(Path(options.out), result.to_dict())
    path = options.picture or (str(Path(options.out).with_suffix(".png")) if options.out else "")
    if path and result.score is not None:
        from rekindle.bench.gain.picture import (
            write_gain_picture,  # loads matplotlib, which nobody needs before the end
        )

        write_gain_picture(Path(path), result.sides, result.score, options.share)


def without_places(tree: Any) -> Any:
    """Return a tree in which paths are the names of files and folders alone.

    Example:
        >>> without_places({"images": "/data/camvid/images", "views": {"num_local": 2}, "recipe": ["runs/a.yaml"]})
        {'images': 'images', 'views': {'num_local': 2}, 'recipe': ['a.yaml']}
    """
    if isinstance(tree, dict):
        return {name: without_places(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_places(value) for value in tree]
    if isinstance(tree, str) and os.sep in tree:
        label, equals, _ = tree.partition("=")
        return label if equals else Path(tree).name
    return tree


class _Told:
    """A watcher that passes lines on."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def message(self, text: str) -> None:
        """Pass one on."""
        self._message(text)

    def step(self, report: object) -> None:
        """Nothing here trains."""

    def close(self) -> None:
        """Nothing to do."""
