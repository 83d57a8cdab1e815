# SPDX-License-Identifier: Apache-2.0
"""Settings that follow the number of images and the device: a few hundred are not adapted to as a million are. Torch-free.

A recipe fills in what nobody set. It is decided here and not taken from a paper; docs/recipes.md has what evidence there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rekindle.adapters import ADAPTERS
from rekindle.adapters.peft_folder import is_peft_folder, read_folder
from rekindle.core.devices import has_gpu
from rekindle.core.option_trees import checked, lay_over, nested
from rekindle.core.options import Options
from rekindle.core.text_files import read_json
from rekindle.pretraining.options import PretrainOptions, Resolved, Source

TEACHER_MEMORY = 0.01
"""Share of its first weights that the teacher still holds at the end of a run."""
PEAK_LR = {"adapters": 5e-4, "norm": 5e-4, "all": 5e-5}
"""Peak learning rate by what trains: a whole backbone is spoilt by what an adapter needs."""


@dataclass(frozen=True)
class Size:
    """What suits up to this many images.

    Attributes:
        images: up to how many.
        batch_size: images of a step.
        steps: of the run, at this many images.
        num_prototypes: K.
    """

    images: float
    batch_size: int
    steps: int
    num_prototypes: int


SIZES = (
    Size(400, 32, 200, 1024),
    Size(1_000, 64, 600, 1024),
    Size(3_500, 128, 1_000, 2048),
    Size(10_000, 256, 1_500, 4096),
    Size(math.inf, 512, 3_000, 8192),
)

SHORT_SIZES = (
    Size(400, 4, 400, 1024),
    Size(1_000, 4, 800, 1024),
    Size(3_500, 4, 1_600, 1024),
    Size(math.inf, 4, 3_200, 1024),
)
"""Of the short recipe, which a CPU can wait for: many small steps (docs/recipes.md#short-on-a-cpu)."""
SHORT_METHODS = ("glare",)
"""Methods that the short recipe was measured with: `auto` takes it for these."""
SHORT_PEAK_LR = 2e-3
SHORT_VIEWS: Mapping[str, object] = {
    "views.global_size_px": 112,
    "views.local_size_px": 56,
    "views.num_local": 2,
}
SHORT_HEAD: Mapping[str, object] = {"head_hidden": 512, "head_bottleneck": 128}
OF_REGIONS = ("regional_weight", "num_regions", "region_", "min_region_", "attention_")
"""How GLARE's options of its regional term begin; who sets one of them has the term."""

FEW = 1_000
"""Up to so many images, adapters are narrow and GLARE's targets sharp and balanced: docs/results/does-the-recipe-help.md."""
NARROW_RANK = 64
SHARP_TARGETS: Mapping[str, object] = {
    "balance": "sinkhorn",
    "teacher_temperature": (0.01, 0.01),
    "norm_last_layer": True,
}


@dataclass(frozen=True)
class Choice:
    """A value, and why it was chosen."""

    value: object
    why: str


def choose(resolved: Resolved, num_images: int, *, short: bool) -> dict[str, Choice]:
    """Return what suits a run with this many images, by dotted name; what the options fix already is taken into account.

    Nothing for training from scratch (that has the paper's settings) and for `recipe=paper`.
    Args: short, by the short recipe and not by the full one.
    """
    options = resolved.options
    if options.recipe == "paper" or options.init == "random":
        return {}
    size = next(s for s in (SHORT_SIZES if short else SIZES) if num_images <= s.images)
    images = f"{num_images} images"
    is_free = resolved.sources["batch_size"] == "default"
    batch = min(size.batch_size if is_free else options.batch_size, num_images)
    steps = _steps(options, size, num_images, batch)
    group = type(getattr(options, options.method)).model_fields
    momentum = round(min(0.9995, max(0.9, 1 + 2 * math.log(TEACHER_MEMORY) / steps)), 4)
    chosen = {
        "batch_size": Choice(
            size.batch_size, f"{images}: steps of up to {size.batch_size} leave enough of them in an epoch"
        ),
        "optim.lr_per_256": _peak(options, short),
        "optim.lr_is_peak": Choice(
            True, "short runs have small batches, and linear scaling would leave them almost still"
        ),
        "optim.warmup_epochs": Choice(_epochs(0.1 * steps, num_images, batch), f"a tenth of {steps} steps"),
    }
    if options.epochs is None and options.steps is None:
        chosen["steps"] = Choice(
            steps, f"{images} in steps of {batch}: {steps * batch / num_images:.0f} passes over them"
        )
    adapter = ADAPTERS[options.adapter.kind]
    if options.train == "adapters" and adapter.has_scale:
        chosen["adapter.scale"] = Choice(1.0, "at 0.1 adapters hardly moved in runs of this length (docs/results)")
        if (short or num_images <= FEW) and adapter.usual_rank is not None:
            chosen["adapter.rank"] = Choice(
                NARROW_RANK, f"{images}: as good as 512 in small, steadier over seeds, and cheaper (docs/results)"
            )
    method = {
        "momentum": Choice(
            (momentum, 1.0), f"after {steps} steps the teacher holds {TEACHER_MEMORY:.0%} of its first weights"
        ),
        "num_prototypes": Choice(size.num_prototypes, f"{images} do not fill more prototypes"),
        "teacher_temperature": Choice((0.04, 0.04), "a warmer teacher drifted to uniform targets in short runs"),
    }
    if num_images > SIZES[-2].images:
        del method["teacher_temperature"]
    if (short or num_images <= FEW) and SHARP_TARGETS.keys() <= group.keys() and not _targets_are_asked_for(resolved):
        why = f"{images} look alike to many backbones: sharp, balanced targets moved them, others hardly (docs/results)"
        method |= {name: Choice(value, why) for name, value in SHARP_TARGETS.items()}
    if short:
        chosen |= {
            name: Choice(value, "small views: a CPU has seen them in minutes") for name, value in SHORT_VIEWS.items()
        }
        if SHORT_HEAD.keys() <= group.keys():
            why = "what a head this narrow saves on a CPU buys steps (docs/recipes.md)"
            method |= {name: Choice(value, why) for name, value in SHORT_HEAD.items()}
        of_regions = [f"{options.method}.{name}" for name in group if name.startswith(OF_REGIONS)]
        if all(resolved.sources[name] == "default" for name in of_regions):
            why = "small views have few regions, and gained as much without them (docs/recipes.md)"
            method["regional_weight"] = Choice(0.0, why)
    chosen.update({f"{options.method}.{name}": choice for name, choice in method.items() if name in group})
    return chosen


def with_recipe(resolved: Resolved, num_images: int, *, alike: bool = True) -> Resolved:
    """Fill in what nobody set: the adapters of a run that this one goes on from, then what suits the number of images.

    Args: alike, all runs beside which this one will stand take the short recipe by themselves (`is_short`); if not, none of them
    does.
    """
    options = resolved.options
    inherited = _adapters_of(options)
    chosen = choose(resolved, num_images, short=is_short(options) and (alike or options.recipe == "short"))
    if inherited:
        chosen = {name: choice for name, choice in chosen.items() if not name.startswith("adapter.")}
    free = {name: c for name, c in (chosen | inherited).items() if resolved.sources[name] == "default"}
    if not free:
        return resolved
    tree = options.model_dump()
    lay_over(tree, nested({name: choice.value for name, choice in free.items()}))
    filled = checked(type(options), tree, "recipe")
    sources = resolved.sources | {name: "base" if name in inherited else "recipe" for name in free}
    return replace(resolved, options=filled, sources=sources, reasons={n: c.why for n, c in free.items()})


def with_view_sizes(resolved: Resolved, patch: int) -> Resolved:
    """Let the sizes of views that nobody set follow the backbone's patch: the nearest multiples of it."""
    views, chosen = resolved.options.views, {}
    for name, size in {"global_size_px": views.global_size_px, "local_size_px": views.local_size_px}.items():
        is_free = resolved.sources[f"views.{name}"] in ("default", "method", "paper", "recipe")
        if size % patch and is_free:
            whole = max(1, math.floor(size / patch + 0.5)) * patch
            chosen[f"views.{name}"] = Choice(
                whole, f"nearest to {size} of what the backbone's patch of {patch} px divides"
            )
    if not chosen:
        return resolved
    tree = resolved.options.model_dump()
    lay_over(tree, nested({name: choice.value for name, choice in chosen.items()}))
    sources: dict[str, Source] = {name: "backbone" for name in chosen}
    return replace(
        resolved,
        options=checked(type(resolved.options), tree, "backbone"),
        sources=resolved.sources | sources,
        reasons=resolved.reasons | {name: choice.why for name, choice in chosen.items()},
    )


def is_short(options: PretrainOptions) -> bool:
    """Whether a run by itself takes the short recipe: it is asked for, or has what that was measured with, on a CPU."""
    if options.recipe != "auto":
        return options.recipe == "short"
    return options.method in SHORT_METHODS and options.train == "adapters" and not has_gpu(options.accelerator)


def _peak(options: PretrainOptions, short: bool) -> Choice:
    if short and options.train != "all":
        return Choice(
            SHORT_PEAK_LR, "the peak itself: few steps are enough at four times the full recipe's (docs/recipes.md)"
        )
    return Choice(PEAK_LR[options.train], f"the peak itself, for train={options.train}, whatever the batch")


def _steps(options: PretrainOptions, size: Size, num_images: int, batch: int) -> int:
    if options.steps is not None:
        return options.steps
    per_epoch = max(1, num_images // batch)
    return size.steps if options.epochs is None else max(1, round(options.epochs * per_epoch))


def _targets_are_asked_for(resolved: Resolved) -> bool:
    """Whether a part of `SHARP_TARGETS` is fixed already: they go together."""
    return any(resolved.sources[f"{resolved.options.method}.{name}"] != "default" for name in SHARP_TARGETS)


def _epochs(steps: float, num_images: int, batch: int) -> float:
    return round(steps / max(1, num_images // batch), 4)


def _adapters_of(options: PretrainOptions) -> dict[str, Choice]:
    """The adapter's options of the run or of PEFT's folder that `backbone` names, if it has adapters."""
    folder = Path(options.backbone or "-")
    stored: Mapping[str, Any] = {}
    if options.train != "adapters":
        return {}
    if is_peft_folder(folder):
        stored = read_folder(folder).options.model_dump()
    elif (folder / "model.json").is_file():
        try:
            stored = read_json(folder / "model.json").get("adapter") or {}
        except (ValueError, AttributeError, OSError):
            return {}  # loading it will say what is wrong
    why = f"as the adapters of {options.backbone}, which are trained on"
    known: type[Options] = type(options.adapter)
    return {f"adapter.{name}": Choice(value, why) for name, value in stored.items() if name in known.model_fields}
