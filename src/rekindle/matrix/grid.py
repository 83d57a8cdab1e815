# SPDX-License-Identifier: Apache-2.0
"""The grid file of `rekindle compare --grid`: what is trained, what it is measured with. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from rekindle.core.errors import RequestError, unknown_name
from rekindle.core.option_trees import checked
from rekindle.core.options import Options
from rekindle.core.text_files import read_yaml
from rekindle.evaluation import PROTOCOLS
from rekindle.matrix.columns import Column, Target, folder_name
from rekindle.measuring.options import (
    CompareOptions,
    ComputeOptions,
    FractionOptions,
    IntervalOptions,
    MeasuringOptions,
    compare_options,
    group_name,
    with_preset,
    with_protocols,
)
from rekindle.methods import METHODS

Tree = dict[str, Any]
"""Options of a run, as in a run file."""
DECIDED = {"images": "images", "out": "out", "seed": "seeds"}
"""Options of a run that the grid has at its top -> their names there."""
CHOSEN = {"fraction": "image_fractions", "fraction_seed": "fraction_seed"}
"""The same of its options under `data`."""


class MethodEntry(Options):
    """One way to learn."""

    method: str = ""
    """Method (`rekindle list methods`); without it, the entry's name."""
    set: Tree = Field(default_factory=dict)
    """Options of these runs; they win over `common`, the start's and the framework's."""
    run: str = ""
    """A finished run that is measured as it is, instead of training; no other entry of the grid changes it."""

    @model_validator(mode="after")
    def _trains_or_is_given(self) -> MethodEntry:
        if self.run and (self.method or self.set):
            raise ValueError("run is a finished run, which method and set cannot change; leave them out")
        return self


class Skip(Options):
    """Cells to leave out: those that match everything given."""

    start: str | None = None
    """Name of a start."""
    method: str | None = None
    """Name of an entry of `methods`."""
    framework: str | None = None
    """Name of a framework."""
    seed: int | None = None
    """Seed of the training."""

    @model_validator(mode="after")
    def _says_something(self) -> Skip:
        if not self.model_dump(exclude_none=True):
            raise ValueError(
                "an entry that names nothing would leave out everything; name start, method, framework or seed"
            )
        return self


class Grid(IntervalOptions, MeasuringOptions, FractionOptions, ComputeOptions):
    """Train every start x method x framework x seed, measure all of them and their starts, and write one table."""

    images: str = ""
    """Images to learn from, for all runs: whatever `rekindle pretrain --images` takes."""
    data: str = ""
    """Labelled images of the protocols: a folder, or NAME:ROOT of a published data set (`rekindle list datasets`)."""
    tests: dict[str, Target] = Field(default_factory=dict)
    """Name -> more labelled images (as `data`, or a tree: data, protocols, split, train_split, train_shots, group_by); own
    columns."""
    out: str = ""
    """Folder of the table, the runs and the results; --out on the command line wins."""
    protocols: tuple[str, ...] = Field(("linear-seg", "dense-retrieval"), min_length=1)
    """How to measure (`rekindle list protocols`); the options of each stand at the top, as linear_seg: {steps: 300}."""
    evaluation_seeds: int | Literal["paired"] = 3
    """Seeds of every measurement: 0, 1, ...; paired: a run is measured with the seed of its training alone, a start with all."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of the training; each is a run."""
    starts: dict[str, str | Tree] = Field(default_factory=dict)
    """Name -> MODEL to start from, or a tree with `backbone` and other options of the runs that start there."""
    methods: dict[str, MethodEntry] = Field(default_factory=dict)
    """Name in the table -> method and its options; `glare: {}` is the method glare as it is."""
    frameworks: dict[str, Tree] = Field(default_factory=lambda: {"adapters": {"train": "adapters"}})
    """Name -> options of the runs under it, such as {train: all} or {adapter: {kind: lora, rank: 16}}."""
    image_fractions: tuple[float, ...] = Field((1.0,), min_length=1)
    """Shares of `images` to learn from, each a run of its own; a smaller share is part of a larger one."""
    fraction_seed: int = Field(0, ge=0)
    """Draws these shares; the same for every run."""
    common: Tree = Field(default_factory=dict)
    """Options of every run; a method's group counts for the cells of that method. Order: common < start < framework < set."""
    skip: tuple[Skip, ...] = ()
    """Cells that are left out. A start without any is measured as it is (random weights, for example)."""
    train_fractions: tuple[float, ...] = ()
    """Several such shares, each a column of its own, instead of `train_fraction`."""

    @field_validator("evaluation_seeds", mode="before")
    @classmethod
    def _count_or_paired(cls, seeds: Any) -> Any:
        if seeds != "paired" and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
            raise ValueError("give a whole number from 1 on, or paired")
        return seeds

    @field_validator("image_fractions", "train_fractions")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share <= 1 for share in shares) or len(set(shares)) < len(shares):
            raise ValueError("shares are numbers above 0 and up to 1, each once")
        return shares

    @field_validator("tests", mode="before")
    @classmethod
    def _data_alone(cls, tests: Any) -> Any:
        """`name: DATA` is short for `name: {data: DATA}`."""
        if not isinstance(tests, dict):
            return tests
        return {name: {"data": entry} if isinstance(entry, str) else entry for name, entry in tests.items()}

    @model_validator(mode="after")
    def _one_kind_of_shares(self) -> Grid:
        if self.train_fractions and self.train_fraction != 1.0:
            raise ValueError("train_fraction and train_fractions are both given; keep one of them")
        for name, target in self.tests.items():
            if name in PROTOCOLS:
                raise ValueError(f"tests.{name} has the name of a protocol, and their results would mix; rename it")
            for protocol in target.protocols:
                if protocol not in self.protocols:
                    raise ValueError(f"tests.{name}: {protocol} is not among protocols = {list(self.protocols)}")
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError("seeds are whole numbers from 0 on, each once")
        return seeds

    @field_validator("protocols")
    @classmethod
    def _each_once(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(protocols))

    @field_validator("methods", "frameworks", mode="before")
    @classmethod
    def _nothing_is_a_default(cls, entries: Any) -> Any:
        """In YAML `glare:` alone is null; it means the method as it is."""
        if not isinstance(entries, dict):
            return entries
        return {name: {} if entry is None else entry for name, entry in entries.items()}

    @field_validator("starts", "methods", "frameworks", "tests")
    @classmethod
    def _distinct_folders(cls, entries: dict[str, Any]) -> dict[str, Any]:
        taken: dict[str, str] = {}
        for name in entries:
            folder = folder_name(name).lower()  # some disks do not tell upper from lower case
            if not folder:
                raise ValueError(f"the name {name!r} has no letter or digit to make a folder of")
            if folder in taken:
                raise ValueError(
                    f"the names {taken[folder]!r} and {name!r} would share the folder {folder}; rename one"
                )
            taken[folder] = name
        return entries

    @property
    def trains(self) -> bool:
        """Whether any entry of `methods` is to be trained."""
        return any(not entry.run for entry in self.methods.values())

    @property
    def start_seeds(self) -> tuple[int, ...]:
        """Evaluation seeds that a start is measured with."""
        return self.seeds if self.evaluation_seeds == "paired" else tuple(range(self.evaluation_seeds))

    def is_paired(self, method: str) -> bool:
        """Whether runs of a method are each measured with the seed of their training alone; a given run knows no such seed."""
        return self.evaluation_seeds == "paired" and not self.methods[method].run

    def columns(self) -> list[Column]:
        """What every model is measured with: data by data, protocol by protocol, share by share."""
        targets = ({"": Target(data=self.data)} if self.data else {}) | self.tests
        return [
            Column(
                protocol=protocol,
                test=test,
                data=target.data,
                split=target.split or self.split,
                train_split=target.train_split or self.train_split,
                train_fraction=share,
                train_shots=target.train_shots or self.train_shots,
                group_by=target.group_by or self.group_by,
                is_one_of_shares=bool(self.train_fractions),
            )
            for test, target in targets.items()
            for protocol in target.protocols or self.protocols
            for share in self.train_fractions or (self.train_fraction,)
        ]

    def measuring(self, column: Column, run: Tree | None = None) -> CompareOptions:
        """How models are measured for a column; `run` has the `init` and `network` that a start is read with."""
        run, group = run or {}, group_name(column.protocol)
        shared = {*IntervalOptions.model_fields, *MeasuringOptions.model_fields, *ComputeOptions.model_fields}
        shared -= {"preset"}  # its values stand in the groups by now, and a single protocol may not know it
        tree = {name: getattr(self, name) for name in shared} | {k: run[k] for k in ("init", "network") if k in run}
        tree |= column.model_dump(include={"data", "split", "train_split", "train_fraction", "train_shots", "group_by"})
        tree |= {group: getattr(self, group).model_dump(), "protocol": (column.protocol,)}
        return compare_options(tree)


def read_grid(path: str | Path, *, out: str = "", images: str = "", data: str = "") -> Grid:
    """Read and check a grid file; `out`, `images` and `data` win over the file's where they are given.

    Raises: RequestError that names the file, the option, what it may be, and the nearest known name.
    """
    path = Path(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise RequestError(f"--grid {path}: {error.strerror}; give the path of a YAML grid") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"--grid {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RequestError(f"--grid {path}: a grid holds `name: value` lines; see examples/grids/first.yaml")
    given = {"out": out, "images": images, "data": data}
    return check_grid(content | {name: value for name, value in given.items() if value}, str(path))


def check_grid(content: Mapping[str, Any], where: str = "grid") -> Grid:
    """Check the tree of a grid. Raises: RequestError, as `read_grid` does."""
    for name in METHODS:
        if name in content:
            raise RequestError(
                f"{where}: {name} holds options of the method {name}; put them under common, or under methods.<name>.set"
            )
    protocols = content.get("protocols", Grid.model_fields["protocols"].default)
    if isinstance(protocols, str) or not isinstance(protocols, list | tuple):
        raise RequestError(f"{where}: protocols = {protocols!r} must be a list of names, such as [linear-seg]")
    try:
        names = list(dict.fromkeys(map(str, protocols)))
        model = with_protocols(Grid, names)
        content = with_preset(content, names)
    except RequestError as error:
        raise RequestError(f"{where}: protocols: {error}") from error
    grid = checked(model, content, where)
    _require(grid, where)
    _refuse_decided(grid, where)
    known: dict[str, list[str]] = {
        "start": list(grid.starts),
        "method": list(grid.methods),
        "framework": list(grid.frameworks),
    }
    for skip in grid.skip:
        for kind, value in skip.model_dump(exclude_none=True).items():
            if kind == "seed" and value not in grid.seeds:
                raise RequestError(f"{where}: skip: seed {value} is not among seeds = {list(grid.seeds)}")
            if kind != "seed" and value not in known[kind]:
                raise RequestError(f"{where}: skip: {unknown_name(kind, value, known[kind])}")
    return grid


def _require(grid: Grid, where: str) -> None:
    examples = {
        "images": "images: my_images",
        "out": "out: runs/table1, or --out on the command line",
        "starts": "starts: {dino: vit_small_patch16_224.dino}",
        "methods": "methods: {glare: {}}",
        "frameworks": "frameworks: {adapters: {train: adapters}}",
    }
    if not grid.data and not grid.tests:
        raise RequestError(f"{where}: data is missing; for example data: my_labelled_data (or several, under tests)")
    if not grid.trains:
        examples = {name: example for name, example in examples.items() if name not in ("images", "frameworks")}
    for name, example in examples.items():
        if not getattr(grid, name):
            raise RequestError(f"{where}: {name} is missing; for example {example}")


def _refuse_decided(grid: Grid, where: str) -> None:
    """Refuse what the grid decides inside the options of runs, where it would be overwritten in silence."""
    starts = {name: entry for name, entry in grid.starts.items() if isinstance(entry, dict)}
    for name, entry in starts.items():
        if not isinstance(entry.get("backbone"), str):
            raise RequestError(f"{where}: starts.{name} has no backbone; name the MODEL that its runs start from")
    trees = {"common": grid.common}
    trees |= {f"frameworks.{name}": tree for name, tree in grid.frameworks.items()}
    trees |= {f"methods.{name}.set": entry.set for name, entry in grid.methods.items()}
    for place, tree in (trees | {f"starts.{name}": entry for name, entry in starts.items()}).items():
        for option, home in DECIDED.items():
            if option in tree:
                raise RequestError(f"{where}: {place}.{option} is for the whole grid to say; use {home} at the top")
        for option, home in CHOSEN.items():
            if option in (tree.get("data") or {}):
                raise RequestError(
                    f"{where}: {place}.data.{option}: which images count is for the whole grid; use {home}"
                )
        if "method" in tree:
            raise RequestError(f"{where}: {place}.method: the methods of the cells stand under methods, one entry each")
        if "backbone" in tree and place in trees:
            raise RequestError(f"{where}: {place}.backbone: what the cells start from stands under starts")
