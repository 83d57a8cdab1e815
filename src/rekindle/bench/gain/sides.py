# SPDX-License-Identifier: Apache-2.0
"""The sides of `rekindle bench gain`: a recipe in an environment. Torch-free."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.bench.gain.options import THIS, GainOptions
from rekindle.core.errors import RequestError, unknown_name
from rekindle.matrix.columns import folder_name
from rekindle.pretraining.options import read_run_file, resolve

COMMON = ("backbone", "images")
"""What all sides share, or their scores would not compare."""


@dataclass(frozen=True)
class Side:
    """One recipe in one environment.

    Attributes:
        label: its name.
        recipe: the run file's tree, with the start and the images of all sides.
        python: that trains it.
    """

    label: str
    recipe: dict[str, Any]
    python: str

    @property
    def folder(self) -> str:
        """Its name as a folder."""
        return folder_name(self.label)

    def asked(self, seed: int, out: Path) -> dict[str, Any]:
        """Return the options of one training, which win over the recipe's."""
        return {"seed": seed, "out": str(out)}


def sides_of(options: GainOptions) -> list[Side]:
    """The sides that are asked for, the baseline first.

    Raises: RequestError for a file, a name or an option that cannot be, before anything runs.
    """
    if not options.recipe:
        raise RequestError(
            "--recipe is missing: give run files (YAML) of `rekindle pretrain`, the baseline first; "
            "`rekindle config --help` says how one is written"
        )
    recipes = {path: _recipe(path, options) for path in options.recipe}
    _refuse_doubles("--recipe", [Path(path).stem for path in options.recipe])
    builds = dict(_build(told) for told in options.build)
    _refuse_doubles("--build", [told.partition("=")[0] for told in options.build])
    for name in COMMON:
        values = {path: tree.get(name) for path, tree in recipes.items()}
        for path, value in values.items():
            if not value:
                raise RequestError(f"--recipe {path} names no {name}; give --{name}, for all sides, or write it there")
        if len(set(map(str, values.values()))) > 1:
            told = ", ".join(f"{path}: {value}" for path, value in values.items())
            raise RequestError(
                f"the recipes differ in {name} ({told}), so their scores would not compare; give --{name}, for all sides"
            )
    sides = []
    for label, python in builds.items():
        for path, tree in recipes.items():
            if python == sys.executable:  # another Rekindle may have other options
                resolve(tree, {}, file_name=f"--recipe {path}")
            sides.append(Side(_label(Path(path).stem, label, options), tree, python))
    _refuse_doubles("sides", [side.folder for side in sides])
    return sides


def side_named(name: str, sides: Sequence[Side], where: str) -> Side:
    """Return the side of a name. Raises: RequestError, with the nearest known one."""
    for side in sides:
        if side.label == name:
            return side
    raise RequestError(f"{where}: {unknown_name('side', name, [side.label for side in sides])}")


def _recipe(path: str, options: GainOptions) -> dict[str, Any]:
    tree = read_run_file(path, "--recipe")
    if tree.get("init") == "random":
        raise RequestError(
            f"--recipe {path}: init = random: every seed would begin elsewhere, and there is no start to gain over; leave it out"
        )
    given = {name: getattr(options, name) for name in COMMON if getattr(options, name)}
    if options.accelerator != "auto":
        given["accelerator"] = options.accelerator
    return tree | given


def _build(told: str) -> tuple[str, str]:
    """A label and its python. Raises: RequestError."""
    if told == THIS:
        return THIS, sys.executable
    label, equals, python = told.partition("=")
    found = shutil.which(python) if equals and label else None
    if found is None:
        raise RequestError(
            f"--build {told}: give `{THIS}`, or LABEL=PYTHON with the python of an environment that has a Rekindle, for "
            "example before=old/.venv/bin/python"
        )
    return label, str(Path(found).absolute())


def _label(recipe: str, build: str, options: GainOptions) -> str:
    if len(options.build) == 1:
        return recipe
    return build if len(options.recipe) == 1 else f"{recipe}, {build}"


def _refuse_doubles(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"{what}: '{name}' is there {names.count(name)} times; sides are told apart by their names"
            )
