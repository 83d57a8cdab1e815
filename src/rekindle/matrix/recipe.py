# SPDX-License-Identifier: Apache-2.0
"""A recipe against its base: several trainings that differ in nothing but the seed, given or trained here, and one verdict.

One run says nothing of its recipe: with other seeds the same recipe spreads by 0.3 to 1 point, and a verdict about one run, read
as one about the recipe, is wrong in 12 to 47 of 100 cases. The trainings are those of a matrix with one row; the face is that of
`rekindle compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekindle.adapters.saved import load_backbone, model_hash, patch_of_model, read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.images import chosen_images
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.matrix.cells import Cell, Key, refuse_other_options, run_settings
from rekindle.measuring.compare import run_compare
from rekindle.measuring.comparison import Comparison
from rekindle.measuring.measurement import build_protocol, open_labelled
from rekindle.measuring.models import load_model
from rekindle.measuring.options import CompareOptions, require
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import read_run_file, resolve
from rekindle.pretraining.recipes import with_recipe, with_view_sizes
from rekindle.pretraining.requests import check_request
from rekindle.pretraining.run import pretrain
from rekindle.pretraining.steps import plan_steps

OF_A_TRAINING = ("seed", "out")
"""Options in which trainings of one recipe differ; `run_settings` leaves the folder out."""


def compare(options: CompareOptions, *, watcher: Watcher | None = None) -> Comparison:
    """Do what `rekindle compare` does: train a recipe where one is given, measure, compare, write.

    Raises: RequestError before anything runs; RekindleError if a training fails or was asked to stop.
    """
    watcher = watcher or LoggingWatcher()
    if options.recipe:
        options = _trained(options, watcher)
    if options.pool:
        refuse_other_recipes(options.models)
    return run_compare(options, watcher=watcher)


def refuse_other_recipes(models: Sequence[str]) -> None:
    """Raise RequestError, naming the option, unless the models are finished runs that differ in their seed alone."""
    first: dict[str, Any] = {}
    seeds: dict[int, str] = {}
    for model in models:
        folder = RunFolder(Path(model).expanduser())
        if not (folder.holds_run and folder.is_finished):
            raise RequestError(
                f"--pool: {model} is not the folder of a finished run, so it is not known what trained it; give runs of "
                "`rekindle pretrain` that differ in their seed, or compare without --pool"
            )
        stored = resolve(read_run_file(folder.config), {}, file_name=str(folder.config)).options
        settings: dict[str, Any] = {"method": stored.method} | run_settings(stored)
        base = read_description(folder.path)["base"]["sha256"]
        if stored.init == "pretrained":  # random weights follow the seed
            settings["backbone"] = base
        first = first or settings
        for name in dict.fromkeys([*first, *settings]):
            if name not in OF_A_TRAINING and first.get(name) != settings.get(name):
                raise RequestError(
                    f"--pool: {models[0]} and {model} are not trainings of one recipe: {name} = {first.get(name)!r} and "
                    f"{settings.get(name)!r}; pool runs that differ in their seed alone, or compare without --pool"
                )
        if stored.seed in seeds:
            raise RequestError(
                f"--pool: {seeds[stored.seed]} and {model} were both trained with seed {stored.seed}, so they are one training; "
                "train one of them with another --seed"
            )
        seeds[stored.seed] = model


def _trained(options: CompareOptions, watcher: Watcher) -> CompareOptions:
    """Train what is not done of a recipe; return the request to pool its runs."""
    require("compare", BASE=options.base, data=options.data, protocol=options.protocol, out=options.out)
    if options.models:
        raise RequestError(
            f"--recipe trains the models itself, and {options.models[0]} is given as well; leave it out, or use --pool for runs "
            "that are there"
        )
    cells = _cells(options)
    _check(options, cells[0], watcher)
    for number, cell in enumerate(cells, start=1):
        told = f"training {number} of {len(cells)}, seed {cell.key.seed}"
        if cell.run.is_finished:
            watcher.message(f"{told}: finished before, in {cell.run.path}")
            continue
        watcher.message(f"{told}: {cell.steps} steps into {cell.run.path}")
        if not pretrain(cell.resolved, resume=True, watcher=watcher).is_finished:
            raise RekindleError(
                f"{told} was asked to stop after step {cell.steps_done} of {cell.steps}; the same command goes on from there"
            )
    runs = tuple(str(cell.run.path) for cell in cells)
    return options.model_copy(update={"models": runs, "pool": True})


def _cells(options: CompareOptions) -> list[Cell]:
    """The trainings of a recipe, checked against what lies in their folders. Raises: RequestError."""
    where = f"--recipe {options.recipe}"
    tree, patch = _tree(options), patch_of_model(options.base)
    cells = []
    for seed in range(options.training_seeds):
        out = Path(options.out) / "runs" / f"seed-{seed}"
        resolved = resolve(tree, {"seed": seed, "out": str(out)}, file_name=where)
        check_request(resolved.options)
        num_images = len(chosen_images(resolved.options.images, resolved.options.data))
        whole = with_recipe(resolved, num_images)
        if patch is not None:
            whole = with_view_sizes(whole, patch)
        key = Key(start=options.base, method=whole.options.method, framework=whole.options.train, seed=seed)
        cell = Cell(key, whole, plan_steps(whole.options, num_images, machine_of(whole.options)).steps)
        refuse_other_options(cell, where)
        cell.run.refuse_unless_free(resume=True, needed_bytes=0)
        cells.append(cell)
    return cells


def _tree(options: CompareOptions) -> dict[str, Any]:
    """The run file, from BASE and read as BASE is, where it says nothing else. Raises: RequestError for another backbone."""
    tree = read_run_file(options.recipe, "--recipe")
    named = str(tree.get("backbone") or options.base)
    if _place(named) != _place(options.base):
        raise RequestError(
            f"--recipe {options.recipe}: backbone = {named}, and BASE is {options.base}: the verdict would not be about the "
            "recipe alone; give the same model, or leave backbone out of the file"
        )
    tree["backbone"] = options.base
    network, usual = options.network.model_dump(mode="json"), type(options.network)().model_dump(mode="json")
    asked = {name: value for name, value in network.items() if value != usual[name]}
    if asked:
        tree.setdefault("network", asked)
    if options.init != "pretrained":
        tree.setdefault("init", options.init)
    if options.device != "auto":
        tree.setdefault("accelerator", options.device)
    return tree


def _check(options: CompareOptions, cell: Cell, watcher: Watcher) -> None:
    """See, before hours of training, that the data are whole, that the base can be measured, and that runs are of this base."""
    data = open_labelled(options, options.protocol)
    base = load_model(options.base, options, watcher)
    for name in options.protocol:
        build_protocol(name, options, base, data).check()
    run = cell.resolved.options
    if cell.run.is_finished and run.init == "pretrained":
        then = read_description(cell.run.path)["base"]["sha256"]
        now = model_hash(load_backbone(run.backbone, run.network)[0])
        if then != now:
            raise RequestError(
                f"{cell.run.path} was trained from a base with hash {then[:12]}, and {run.backbone} now has {now[:12]}; put it "
                "back, or choose another --out"
            )


def _place(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model
