# SPDX-License-Identifier: Apache-2.0
"""The cells of a grid: each one's options, folder, and how far it is. All are checked before any runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rekindle.adapters.saved import read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.option_trees import lay_over, leaves
from rekindle.core.options import Options
from rekindle.data.images import find_images
from rekindle.engine.run_folder import RunFolder
from rekindle.matrix.columns import folder_name, share_told
from rekindle.matrix.grid import Grid, Tree
from rekindle.methods import METHODS
from rekindle.networks.checkpoints.create import FILE_SUFFIXES
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import PretrainOptions, Resolved, read_run_file, resolve
from rekindle.pretraining.recipes import is_short, with_recipe
from rekindle.pretraining.steps import plan_steps

MAY_CHANGE = ("out", "devices", "data", "engine")
"""Options that a run may continue with changed, as with `rekindle pretrain --resume`."""
GIVEN = "as it is"
"""Framework of a run that is given and not trained here."""
Kind = tuple[str, str, str, float]
"""Start, method, framework, share of the images."""


class Key(Options):
    """Which cell."""

    start: str
    """Name of the start."""
    method: str
    """Name of the entry of `methods`."""
    framework: str
    """Name of the framework."""
    seed: int
    """Seed of the training."""
    images: float = 1.0
    """Share of the images that it learns from."""

    def __str__(self) -> str:
        share = "" if self.images == 1.0 else f" / {share_told(self.images)} of the images"
        return f"{self.start} / {self.method} / {self.framework}{share} / seed {self.seed}"

    @property
    def kind(self) -> Kind:
        """What the trainings that are pooled have in common."""
        return self.start, self.method, self.framework, self.images

    @property
    def folder(self) -> Path:
        """Where the cell's files lie, below `runs` and below `results/<protocol>`."""
        share = () if self.images == 1.0 else (f"images-{self.images:.6g}",)
        return Path(*map(folder_name, (self.start, self.method, self.framework)), *share, f"seed-{self.seed}")


@dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    Attributes:
        key: which one.
        resolved: its options, with what the recipe fills in.
        steps: optimizer steps.
    """

    key: Key
    resolved: Resolved
    steps: int

    @property
    def run(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(self.resolved.options.out)

    @property
    def state(self) -> Literal["finished", "started", "new"]:
        """How far the training is."""
        return "finished" if self.run.is_finished else "started" if self.run.holds_run else "new"

    @property
    def steps_done(self) -> int:
        """Steps done; of a run that was killed, up to the last line of its metrics."""
        if self.run.is_finished:
            return self.steps
        try:
            lines = self.run.metrics.read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0  # no step is logged yet, or the last line is half written: only a display needs it


def keys(grid: Grid) -> Iterator[Key]:
    """The cells that are not skipped, in the order of the file; seeds vary fastest. A run that is given is one cell."""
    for start, (method, entry) in product(grid.starts, grid.methods.items()):
        frameworks = (GIVEN,) if entry.run else tuple(grid.frameworks)
        shares, seeds = ((1.0,), (0,)) if entry.run else (grid.image_fractions, grid.seeds)
        for framework, share, seed in product(frameworks, shares, seeds):
            key = Key(start=start, method=method, framework=framework, seed=seed, images=share)
            named = key.model_dump()
            if not any(all(named[k] == v for k, v in s.model_dump(exclude_none=True).items()) for s in grid.skip):
                yield key


def cell_tree(grid: Grid, key: Key) -> Tree:
    """Options of a cell as a run file would hold them: common < start < framework < the method's `set`.

    A group named after a method is left out of the first three in the cells of other methods.
    """
    entry, start = grid.methods[key.method], grid.starts[key.start]
    method = entry.method or key.method
    tree: Tree = {}
    for layer in (
        grid.common,
        {"backbone": start} if isinstance(start, str) else start,
        grid.frameworks[key.framework],
    ):
        lay_over(tree, {name: value for name, value in layer.items() if name == method or name not in METHODS})
    lay_over(tree, entry.set)
    if key.images != 1.0:
        lay_over(tree, {"data": {"fraction": key.images, "fraction_seed": grid.fraction_seed}})
    decided = {"images": grid.images, "out": str(Path(grid.out) / "runs" / key.folder), "seed": key.seed}
    return {"method": method} | tree | decided


def given_cell(grid: Grid, key: Key, where: str) -> Cell:
    """Return a finished run as a cell. Raises: RequestError if it is none."""
    place, run = f"{where}: methods.{key.method}.run", grid.methods[key.method].run
    folder = RunFolder(Path(run).expanduser())
    try:
        steps = int(read_description(folder.path)["steps"])
        stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config))
    except RequestError as error:
        raise placed(error, place) from None
    options = stored.options.model_copy(update={"out": str(folder.path)})
    return Cell(key, replace(stored, options=options), steps)


def resolve_cell(grid: Grid, key: Key, where: str) -> Resolved:
    """Check the options of a cell. Raises: RequestError that names the grid and the cell."""
    place = f"{where}, cell {key}"
    try:
        resolved = resolve(cell_tree(grid, key), {}, file_name=place)
        if resolved.options.devices > 1:
            raise RequestError(
                f"devices = {resolved.options.devices}: a matrix trains one cell at a time on one device"
            )
    except RequestError as error:
        raise placed(error, place) from None
    return resolved


def plan_cells(grid: Grid, where: str) -> list[Cell]:
    """Every cell with its options resolved for the number of images, checked against the run that lies in its folder.

    Raises: RequestError that names the grid and the cell: a wrong option, a missing path, or a run with other options.
    """
    names = list(keys(grid))
    if not names:
        raise RequestError(f"{where}: skip leaves no cell")
    given = {key: given_cell(grid, key, where) for key in names if grid.methods[key.method].run}
    found = {key: resolve_cell(grid, key, where) for key in names if key not in given}
    for key, resolved in found.items():
        _check_start(resolved.options, f"{where}, cell {key}")
    try:
        source = find_images(grid.images) if found else None
    except RequestError as error:
        raise placed(error, where) from None
    alike = all(is_short(resolved.options) for resolved in found.values())  # one recipe, or rows would not compare
    cells = []
    for key in names:
        if key in given:
            cells.append(given[key])
            continue
        assert source is not None
        place, resolved = f"{where}, cell {key}", found[key]
        num_images = len(source.part(key.images, grid.fraction_seed))
        try:
            whole = with_recipe(resolved, num_images, alike=alike)
            cell = Cell(key, whole, plan_steps(whole.options, num_images, machine_of(whole.options)).steps)
            refuse_other_options(cell)
            cell.run.refuse_unless_free(resume=True, needed_bytes=0)
        except RekindleError as error:
            raise placed(error, place) from None
        cells.append(cell)
    return cells


def refuse_other_options(cell: Cell, asks: str = "the grid") -> None:
    """Raise RequestError, naming the option, if the cell's folder holds a run that was started with other options.

    Args: asks, what wants the run, for the message.
    """
    folder = cell.run
    if not folder.holds_run:
        return
    stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config)).options
    before, now = (run_settings(options) for options in (stored, cell.resolved.options))
    if now["precision"] == "auto":  # the run goes on with what that came to
        now["precision"] = before["precision"]
    for name in [*before, *(n for n in now if n not in before)]:
        if before.get(name) != now.get(name):
            done = "was trained" if folder.is_finished else "was started"
            raise RequestError(
                f"{folder.path} {done} with {name} = {before.get(name)!r}, and {asks} now says {now.get(name)!r}; put "
                f"it back, remove that folder to train anew, or give {asks} another out"
            )


def run_settings(options: PretrainOptions) -> dict[str, Any]:
    """Dotted name -> value of what a run may not change while it continues."""
    tree = {name: value for name, value in options.model_dump(mode="json").items() if name not in MAY_CHANGE}
    flat: dict[str, Any] = dict(options.data.chosen)
    for name in leaves(tree):
        value: Any = tree
        for part in name.split("."):
            value = value[part]
        flat[name] = value
    return flat


def _check_start(options: PretrainOptions, place: str) -> None:
    """Find a path that is not there without loading anything; hubs are asked when the starts are loaded."""
    name = options.backbone
    looks_like_path = name.startswith((".", "/", "~")) or Path(name).suffix in FILE_SUFFIXES
    if looks_like_path and not Path(name).expanduser().exists():
        raise RequestError(
            f"{place}: starts: {name} is not there; give a checkpoint file, a run folder or a model name"
        )


def placed(error: RekindleError, place: str) -> RekindleError:
    """The error with its place in front, unless it has it already."""
    text = str(error)
    return error if text.startswith(place) else type(error)(f"{place}: {text}")
