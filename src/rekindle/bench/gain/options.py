# SPDX-License-Identifier: Apache-2.0
"""Options of `rekindle bench gain`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from rekindle.core.errors import RequestError
from rekindle.core.options import Accelerator, Options
from rekindle.measuring.options import (
    CompareOptions,
    compare_options,
    group_name,
    protocol_options,
)

THIS = "this"
"""Name of the environment that the bench itself runs in, among --build."""


class GainOptions(Options):
    """How soon is the gain there? Recipes and builds in turn: the score over seconds, and when a share of the gain is had."""

    recipe: tuple[str, ...] = ()
    """Run files (YAML) of `rekindle pretrain`, each a side named after its file; the gain of the first, the baseline, is the
    whole. An empty file is what `rekindle pretrain` chooses by itself."""
    build: tuple[str, ...] = (THIS,)
    """Environments that every recipe is trained in: `this` one, or LABEL=PYTHON, the python of an environment with another
    Rekindle. The first one's sides come first."""
    backbone: str = ""
    """The start, for all sides; without it the one that every recipe names."""
    images: str = ""
    """Images to learn from, for all sides; without it those that every recipe names."""
    labels: str = ""
    """Labelled data that the score is of: a folder, or NAME:ROOT of a published data set."""
    protocol: str = "linear-seg"
    """How to measure (`rekindle list protocols`); its options stand under its name, as --linear-seg.size-px."""
    split: str = "val"
    """Split that the score is of."""
    train_split: str = "train"
    """Split that heads learn from and memories hold."""
    group_by: str = ""
    """Items that belong together, so that intervals draw groups: a rule of `rekindle compare --group-by`."""
    share: float = Field(0.95, gt=0.0, le=1.0)
    """Share of the baseline's gain that a side has to reach, and to keep to its end."""
    seeds: int = Field(3, ge=1)
    """Trainings of each side, with seeds 0, 1, ..."""
    evaluation_seeds: int = Field(1, ge=1)
    """Seeds that each model is measured with: 0, 1, ..."""
    marks: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0)
    """Shares of a run's steps after which its model is scored, and the turn passes to the next side; the end is always one."""
    time_only: int | None = Field(None, ge=1)
    """Train nothing to its end: time so many steps of each side, one at a time in turn, and count up to the run's steps. Where
    heads move alone at first, a quarter as many of those steps are timed on their own."""
    warmup: int = Field(1, ge=1)
    """Untimed steps of each side before those of --time-only."""
    runs: str = ""
    """With --time-only: a YAML file, `SIDE: [FOLDER, ...]`, of finished runs that were trained elsewhere, one for each seed;
    they are scored here, and their seconds are counted up from the steps timed now."""
    accelerator: Accelerator = "auto"
    """Where to train and to measure; auto leaves it to the recipes, and takes a GPU where there is one."""
    threads: int | None = Field(None, ge=1)
    """Threads of each side on a CPU; None: as a run takes them by itself."""
    resamples: int = Field(2000, ge=100)
    """Draws of the bootstrap."""
    level: float = Field(0.95, gt=0.5, lt=1.0)
    """Coverage of the intervals."""
    work: str = ""
    """Folder that keeps runs, times and scores; the same command goes on with what is there. Without it nothing is kept."""
    out: str = ""
    """File (.json) for all that was found."""
    picture: str = ""
    """File (.png) for the score over seconds; without it, one beside --out."""

    @model_validator(mode="after")
    def _consistent(self) -> GainOptions:
        if any(not 0 < share <= 1 for share in self.marks):
            raise ValueError(f"marks = {self.marks}: shares of a run's steps are above 0 and at most 1")
        if self.runs and self.time_only is None:
            raise ValueError(
                "runs are scored as they are, and their times elsewhere do not compare with those here; add --time-only N, "
                "which times the steps of all sides now"
            )
        if self.runs and not self.labels:
            raise ValueError("runs are there to be scored; give labelled data with --labels")
        if self.out and not self.out.endswith(".json"):
            raise ValueError(f"out = {self.out} is one file; give a name that ends in .json")
        if self.picture and not self.picture.endswith(".png"):
            raise ValueError(f"picture = {self.picture} is a PNG; give a name that ends in .png")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The marks in order, the end among them."""
        return tuple(sorted({*self.marks, 1.0}))


def measuring_request(options: GainOptions, base: str, recipe: Mapping[str, Any]) -> CompareOptions:
    """Return how every model is measured. Args: recipe, whose options of the network are those of the start."""
    if not options.labels:
        raise RequestError(
            "--labels is missing: the score is of labelled data; or give --time-only N, which scores nothing"
        )
    asked: dict[str, object] = {
        "base": base,
        "protocol": [options.protocol],
        group_name(options.protocol): protocol_options(options, options.protocol).model_dump(),
        "data": options.labels,
        "split": options.split,
        "train_split": options.train_split,
        "group_by": options.group_by,
        "worst_images": 0,
        "seeds": options.evaluation_seeds,
        "device": options.accelerator,
    }
    return compare_options(asked | ({"network": recipe["network"]} if "network" in recipe else {}))
