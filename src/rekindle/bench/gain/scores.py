# SPDX-License-Identifier: Apache-2.0
"""Scores of the start and of every model on the way, on the same items and evaluation seeds; what was measured is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.adapters.saved import read_description
from rekindle.bench.gain.options import GainOptions, measuring_request
from rekindle.bench.gain.pace import Mark, Training
from rekindle.bench.gain.sides import COMMON, Side, side_named
from rekindle.bench.gain.trainings import models_at
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.option_trees import leaves
from rekindle.core.text_files import read_yaml
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import Watcher
from rekindle.matrix.columns import Column
from rekindle.matrix.measure import MatrixSetup, MeasuredColumn
from rekindle.measuring.measurement import build_protocol, open_labelled
from rekindle.measuring.models import load_model
from rekindle.pretraining.options import read_run_file


class Scorer:
    """Measures models as the request asks; the start first, which shows whether the data and the options do.

    Raises: RequestError for data or options that do not fit.
    """

    def __init__(self, options: GainOptions, side: Side, out: Path, watcher: Watcher) -> None:
        start = str(side.recipe["backbone"])
        self._request = measuring_request(options, start, side.recipe)
        data = open_labelled(self._request, [options.protocol])
        model = load_model(start, self._request, watcher)
        build_protocol(options.protocol, self._request, model, data).check()
        self._column = Column(
            protocol=options.protocol,
            test="",
            data=options.labels,
            split=options.split,
            train_split=options.train_split,
            train_fraction=1.0,
            group_by=options.group_by,
            is_one_of_shares=False,
        )
        self._setup = MatrixSetup(out, [self._column], {"": data}, watcher)
        self._seeds = list(range(options.evaluation_seeds))
        self.start_hash = model.hash
        self.start = self._measured(start, self.start_hash, Path("start"))

    def of(self, training: Training, place: Path) -> list[MeasuredColumn]:
        """Return the score at every mark of a training. Raises: RekindleError for one that began elsewhere."""
        found = []
        for mark in training.marks:
            description = read_description(mark.model)
            if description["base"]["sha256"] != self.start_hash:
                raise RekindleError(
                    f"{mark.model} was trained from {description['base']['name']} with hash "
                    f"{description['base']['sha256'][:12]}, and the start has {self.start_hash[:12]}: its score would not be the "
                    "gain over this start"
                )
            measured = self._measured(str(mark.model), description["model_hash"], place / f"step-{mark.step:06}")
            if measured.items != self.start.items:
                raise RekindleError(
                    f"{mark.model} was not measured on the start's items; did the data change meanwhile?"
                )
            found.append(measured)
        return found

    def _measured(self, name: str, found: str, place: Path) -> MeasuredColumn:
        requests = {self._column.name: self._request}
        return self._setup.measure(name, found, requests, self._seeds, place)[self._column.name]


def read_runs(options: GainOptions, sides: Sequence[Side]) -> dict[str, list[Path]]:
    """Read the file of --runs: the folders of finished runs, by side.

    Raises: RequestError for what is no such file, for an unknown side, and for a run that its recipe did not make.
    """
    if not options.runs:
        return {}
    where = f"--runs {options.runs}"
    try:
        content = read_yaml(Path(options.runs))
    except (OSError, ValueError) as error:
        raise RequestError(f"{where}: {error}; give a YAML file of `SIDE: [FOLDER, ...]`") from error
    if not isinstance(content, Mapping) or not all(isinstance(own, list) and own for own in content.values()):
        raise RequestError(f"{where} holds no `SIDE: [FOLDER, ...]`, the folders of finished runs, one for each seed")
    found = {}
    for name, folders in content.items():
        side = side_named(str(name), sides, where)
        seeds: dict[int, str] = {}
        for folder in map(str, folders):
            seed = _checked(RunFolder(Path(folder).expanduser()), side, where)
            if seed in seeds:
                raise RequestError(
                    f"{where}: {side.label}: {seeds[seed]} and {folder} were both trained with seed {seed}, so they are one "
                    "training; leave one out"
                )
            seeds[seed] = folder
        found[side.label] = [Path(folder).expanduser() for folder in map(str, folders)]
    return found


def elsewhere(folder: Path, steps: int, where: str) -> Training:
    """Return a run that was trained elsewhere, without seconds; its marks, where this bench left them beside it.

    Args: steps, that the side's runs have. Raises: RequestError for a run of other steps.
    """
    end = int(read_description(folder)["steps"])
    if end != steps:
        raise RequestError(
            f"{where}: {folder} has {end} steps, and the recipe's runs {steps}, so that its seconds cannot be counted up; give "
            "runs of this recipe"
        )
    passed = {step: path for step, path in models_at(folder.parent / "marks").items() if step < end}
    seed = int(read_run_file(RunFolder(folder).config)["seed"])
    return Training(seed, tuple(Mark(step, 0.0, None, path) for step, path in (passed | {end: folder}).items()))


def _checked(folder: RunFolder, side: Side, where: str) -> int:
    """Return the seed of a finished run of a recipe. Raises: RequestError."""
    if not (folder.holds_run and folder.is_finished):
        raise RequestError(
            f"{where}: {side.label}: {folder.path} is not the folder of a finished run of `rekindle pretrain`"
        )
    stored = read_run_file(folder.config)
    for name in leaves(side.recipe):
        if name in (*COMMON, "out", "seed", "accelerator"):
            continue
        then, now = _value(stored, name), _value(side.recipe, name)
        if then != now and not _is_same_number(then, now):
            raise RequestError(
                f"{where}: {side.label}: {folder.path} was trained with {name} = {then!r}, and the recipe says {now!r}; give "
                "runs of this recipe"
            )
    return int(stored["seed"])


def _value(tree: Mapping[str, Any], name: str) -> Any:
    found: Any = tree
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return list(found) if isinstance(found, tuple) else found


def _is_same_number(then: Any, now: Any) -> bool:
    try:
        return bool(np.isclose(float(then), float(now), rtol=1e-12))
    except (TypeError, ValueError):
        return False
