# SPDX-License-Identifier: Apache-2.0
"""Requests for studies: the options of `rekindle study`, and the grid that they stand for. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import tyro
from pydantic import Field, field_validator

from rekindle.adapters.options import Train
from rekindle.core.errors import RequestError
from rekindle.core.options import Accelerator
from rekindle.matrix.columns import folder_name
from rekindle.matrix.grid import Grid, Tree, check_grid
from rekindle.measuring.options import IntervalOptions, MeasuringOptions, group_name, protocol_options
from rekindle.pretraining.options import read_run_file

Kind = Literal["forgetting", "data-scale", "label-efficiency"]
FRACTIONS: dict[str, tuple[float, ...]] = {
    "data-scale": (0.1, 0.2, 0.5, 1.0),
    "label-efficiency": (1.0, 0.5, 0.25, 0.125),
}
"""Shares that a study takes unless others are asked for (GLARE, section 9.4; LOCA, section 15.2)."""


class StudyOptions(IntervalOptions, MeasuringOptions):
    """Ask a matrix of runs one question: is anything forgotten, how many images does it take, how many labels are saved."""

    kind: tyro.conf.Positional[Kind] = "forgetting"
    """forgetting: adapted on some images, measured on other data; data-scale: adapted on shares of the images; label-efficiency:
    measured with shares of the labels."""
    start: tyro.conf.Positional[str] = ""
    """The MODEL to start from and to compare with."""
    images: str = ""
    """Images to adapt to, without labels: whatever `rekindle pretrain --images` takes. Not needed with --runs alone."""
    data: str = ""
    """Labelled data of the same kind, if there are any: a folder, or NAME:ROOT of a published data set."""
    tests: tuple[str, ...] = ()
    """More labelled data to measure on, as NAME=DATA each; of forgetting, what could be forgotten."""
    out: str = ""
    """Folder of the runs, the results and the study; the same command goes on there."""
    methods: tuple[str, ...] = ()
    """How to adapt (`rekindle list methods`), each a line; without it and without --runs, glare."""
    runs: tuple[str, ...] = ()
    """Finished runs from this start to measure as they are (not of data-scale, which has to train)."""
    config: str = ""
    """Run file (YAML) with more options of every run."""
    train: Train = "adapters"
    """What moves."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps of every run."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the images of every run instead (GLARE: 100); of data-scale, fewer images are then fewer steps."""
    batch_size: int | None = Field(None, ge=1)
    """Images per optimizer step; without it the recipe chooses."""
    accelerator: Accelerator = "auto"
    """Where to train and to measure."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the training; each is a run."""
    fractions: tuple[float, ...] = ()
    """Shares: of the images (data-scale: 0.1 0.2 0.5 1) or of the labels (label-efficiency: 1 0.5 0.25 0.125); nested."""
    fraction_seed: int = Field(0, ge=0)
    """Draws the shares of the images; the same for every run."""
    protocol: tuple[str, ...] = ("linear-seg", "dense-retrieval")
    """Protocols that read these data; the options of each stand under its name, as --linear-seg.steps."""
    evaluation_seeds: int = Field(3, ge=1)
    """Seeds of every measurement: 0, 1, ..."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone while measuring; training has its own."""

    @field_validator("tests")
    @classmethod
    def _named(cls, tests: tuple[str, ...]) -> tuple[str, ...]:
        for entry in tests:
            name, equals, data = entry.partition("=")
            if not (name and equals and data):
                raise ValueError(f"{entry!r} is not NAME=DATA, such as city=camvid:/data/camvid")
        return tests


def study_grid(options: StudyOptions) -> tuple[Grid, Tree]:
    """Return the grid that answers a study, checked, and its tree, which `rekindle compare --grid` reads.

    Raises: RequestError for what is missing or does not fit the kind of study.
    """
    _check(options)
    fractions = options.fractions or FRACTIONS.get(options.kind, ())
    common = read_run_file(options.config) if options.config else {}
    common |= {k: v for k, v in _run_options(options).items() if v is not None}
    common.setdefault("engine", {}).setdefault("tensorboard", False)
    methods: Tree = {name: {} for name in options.methods or (() if options.runs else ("glare",))}
    methods |= {name: {"run": run} for name, run in _run_names(options.runs).items()}
    tree: Tree = {
        "images": options.images,
        "data": options.data,
        "tests": dict(entry.split("=", 1) for entry in options.tests),
        "out": options.out,
        "protocols": list(options.protocol),
        "starts": {"start": options.start},
        "methods": methods,
        "frameworks": {_framework(options.train): {"train": options.train}},
        "common": common,
        "image_fractions": list(fractions) if options.kind == "data-scale" else [1.0],
        "train_fractions": list(fractions) if options.kind == "label-efficiency" else [],
        "device": options.accelerator,
    }
    same = {*IntervalOptions.model_fields, *MeasuringOptions.model_fields}
    same |= {"fraction_seed", "evaluation_seeds", "precision"}
    tree |= {name: getattr(options, name) for name in sorted(same)} | {"seeds": list(options.seeds)}
    tree |= {group_name(name): protocol_options(options, name).model_dump(mode="json") for name in options.protocol}
    return check_grid(tree, f"study {options.kind}"), tree


def _framework(train: str) -> str:
    return {"adapters": "adapters", "all": "all weights", "norm": "norms"}[train]


def _run_options(options: StudyOptions) -> dict[str, Any]:
    return {
        "steps": options.steps,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "accelerator": None if options.accelerator == "auto" else options.accelerator,
    }


def _run_names(runs: Sequence[str]) -> dict[str, str]:
    """Name each run by the last parts of its path that tell them apart."""
    parts = [[p for p in run.replace("\\", "/").split("/") if p not in ("", ".")] for run in runs]
    for depth in range(1, 1 + max(map(len, parts), default=0)):
        names = [folder_name("-".join(p[-depth:])) for p in parts]
        if len({name.lower() for name in names}) == len(runs):
            return dict(zip(names, runs, strict=True))
    if runs:
        raise RequestError("--runs names a run twice; name each once")
    return {}


def _check(options: StudyOptions) -> None:
    for name, value in {"START": options.start, "--out": options.out}.items():
        if not value:
            raise RequestError(f"{name} is missing; `rekindle study --help` says what it may be")
    if options.kind == "forgetting" and not options.tests:
        raise RequestError("--tests is missing: labelled data that the adapted model was not trained on, as NAME=DATA")
    if options.kind != "forgetting" and not (options.data or options.tests):
        raise RequestError("--data is missing: the labelled data to measure on")
    if options.kind == "data-scale" and options.runs:
        raise RequestError(
            "--runs: data-scale trains on shares of the images, which finished runs did not; leave it out"
        )
    if options.kind == "forgetting" and options.fractions:
        raise RequestError("--fractions belongs to data-scale and label-efficiency; leave it out")
    trains = bool(options.methods) or not options.runs
    if trains and not options.images:
        raise RequestError("--images is missing: what to adapt to; or name finished runs with --runs")
    names = [entry.partition("=")[0] for entry in options.tests]
    if len(set(names)) < len(names):
        raise RequestError(f"--tests: the names {', '.join(names)} are not distinct; rename one")


KINDS: tuple[str, ...] = get_args(Kind)
