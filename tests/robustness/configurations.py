# SPDX-License-Identifier: Apache-2.0
"""Legal configurations by chance: each trains two steps, or is refused with a message that names an option.

`python -m tests.robustness.configurations --count 500 --seed 0 [--out FILE.json]` exits with 1 if one did anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rekindle.core.errors import RekindleError
from rekindle.core.option_trees import nested
from rekindle.core.tables import import_named
from rekindle.methods import METHODS
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining.options import PretrainOptions, resolve
from rekindle.pretraining.run import pretrain
from tests.engine.running import write_images

FIXED = {
    "images",
    "out",
    "backbone",
    "steps",
    "epochs",
    "devices",
    "accelerator",
    "method",
    "seed",
    "probe_data",
    "every",
}
"""The harness says these itself, or they need what it has not."""
LATER = {
    "engine.compile",
    "engine.pictures_every",
    "engine.tensorboard",
    "data.num_workers",
    "network.arch",
    "network.checkpoint_key",
}
"""Slow, or about checkpoints of others; tested on their own."""
SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 32)
ARCHES = (
    "vit:width=32,depth=2,heads=2,patch=8,img=32",
    "vit:width=24,depth=3,heads=3,patch=4,img=16",
    "vit:width=32,depth=1,heads=1,patch=16,img=32",
)


@dataclass
class Found:
    """What the configurations came to.

    Attributes:
        trained: did their steps.
        refused: with a message that names an option.
        broken: what did anything else: the configuration and what happened.
        methods: configurations by method.
        reasons: beginnings of the messages of what was refused.
    """

    trained: int
    refused: int
    broken: list[str]
    methods: dict[str, int]
    reasons: dict[str, int]


def drawn(dice: random.Random) -> dict[str, Any]:
    """A configuration: dotted name -> value; about six of its values are not defaults."""
    method = dice.choice(sorted(METHODS))
    flat: dict[str, Any] = {
        "method": method,
        "backbone": dice.choice(ARCHES),
        "steps": 2,
        "seed": dice.randrange(1000),
        "accelerator": "cpu",
        "engine.tensorboard": False,
        "data.num_workers": 0,
        "batch_size": dice.choice((1, 2, 4, 8)),
        "views.global_size_px": dice.choice((16, 32, 48)),
        "views.local_size_px": dice.choice((16, 32)),
        "views.num_local": dice.choice((0, 1, 3)),
        **dice.choice(({"init": "random", "train": "all"}, {"train": "all"}, {"train": "norm"}, {"train": "adapters"})),
    }
    options = import_named(METHODS, "method", method).Config
    flat |= {f"{method}.{name}": 32 for name, field in options.model_fields.items() if _is_large(field)}
    known = {name: field for name, field in leaves(PretrainOptions, "") if name not in FIXED | LATER}
    own = dict(leaves(options, f"{method}."))
    for names, count in ((known, 4), (own, 3)):
        for name in dice.sample(sorted(names), min(count, len(names))):
            value = _value(names[name].annotation, names[name], dice)
            if value is not ...:
                flat[name] = value
    return flat


def tried(flat: dict[str, Any], images: Path, backbone: str, out: Path) -> tuple[str, str]:
    """Run a configuration; return "trained" or "refused", and why. Raises: what else happens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pretrain(resolve({}, nested({**flat, "images": str(images), "backbone": backbone, "out": str(out)})))
    except RekindleError as error:
        if not _names_an_option(str(error)):
            raise AssertionError(f"refused without naming an option: {error}") from error
        return "refused", str(error)
    return "trained", ""


def harness(folder: Path, count: int, seed: int) -> Found:
    """Try `count` configurations."""
    images = write_images(folder / "images")
    dice, outcomes, broken = random.Random(seed), Counter[str](), []
    methods: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number in range(count):
        flat = drawn(dice)
        methods[flat["method"]] += 1
        try:
            outcome, why = tried(flat, images, _base(flat, folder), folder / f"run-{number}")
            outcomes[outcome] += 1
            reasons[re.sub(r"[0-9.]+", "N", why)[:90]] += outcome == "refused"
        except Exception as error:
            what = f"{''.join(traceback.format_exception_only(error)).strip()}: {json.dumps(flat)}"
            broken.append(what)
            print(what, file=sys.stderr, flush=True)
    return Found(
        outcomes["trained"], outcomes["refused"], broken, dict(sorted(methods.items())), dict(reasons.most_common())
    )


def _base(flat: dict[str, Any], folder: Path) -> str:
    """The architecture, or a file with weights of it."""
    if flat.get("init") == "random":
        return str(flat["backbone"])
    path = folder / f"base-{ARCHES.index(flat['backbone'])}.safetensors"
    if not path.exists():
        write_checkpoint(create_backbone(flat["backbone"], NetworkOptions(), init="random")[0], path)
    return str(path)


def leaves(model: type[BaseModel], prefix: str) -> list[tuple[str, FieldInfo]]:
    """Return every option below a model, by its dotted name."""
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += leaves(field.annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


def _is_large(field: FieldInfo) -> bool:
    return field.annotation is int and isinstance(field.default, int) and field.default >= 128


def _value(kind: Any, field: FieldInfo, dice: random.Random) -> Any:
    """A legal value, or `...` where none can be made up."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return dice.choice(parts)
    if kind is bool:
        return dice.random() < 0.5
    if kind in (int, float):
        return _number(kind, field, dice)
    if origin is Union or type(kind).__name__ == "UnionType":
        return _value(dice.choice(parts), field, dice)
    if kind is type(None):
        return None
    if origin is tuple and Ellipsis not in parts:
        values = [_value(part, field, dice) for part in parts]
        return ... if ... in values else tuple(sorted(values) if dice.random() < 0.8 else values)
    return ...


def _number(kind: type, field: FieldInfo, dice: random.Random) -> float | int:
    low, high = 0.0, 1e9
    for bound in field.metadata:
        if isinstance(bound, Ge | Gt):
            least: Any = bound.ge if isinstance(bound, Ge) else bound.gt
            low = max(low, float(least) + (0.0 if isinstance(bound, Ge) else 1e-6))
        if isinstance(bound, Le | Lt):
            most: Any = bound.le if isinstance(bound, Le) else bound.lt
            high = min(high, float(most) - (0.0 if isinstance(bound, Le) else 1e-6))
    if kind is int:
        return dice.choice([n for n in (*SIZES, int(low), int(low) + 1) if low <= n <= high])
    usual = [min(high, low + share) for share in (0.1, 0.2, 0.5, dice.random())]
    return dice.choice([*usual, *usual, low, min(high, 5.0)])


def _names_an_option(message: str) -> bool:
    """Whether a message says which option to change: --a.b-c, a.b_c, or backbone=... in the words of the command line."""
    names = {name for name, _ in leaves(PretrainOptions, "")}
    for method in METHODS:
        names |= {name for name, _ in leaves(import_named(METHODS, "method", method).Config, f"{method}.")}
    plain = message.replace("-", "_")
    if any(name in plain for name in names if "." in name) or any(f"__{name}" in plain for name in names):
        return True
    ends = {name.rsplit(".", 1)[-1] for name in names}
    return any(re.search(rf"\b{leaf}\b", plain) for leaf in ends if "_" in leaf) or any(
        f"{n} =" in plain for n in names
    )


def main() -> int:
    """Run the harness from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = harness(Path(folder), asked.count, asked.seed)
    text = json.dumps({**asdict(found), "count": asked.count, "seed": asked.seed}, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())
