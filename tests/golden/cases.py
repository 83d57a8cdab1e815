# SPDX-License-Identifier: Apache-2.0
"""One small fixed case of each method, made by formulas: what the authors' code was run on, and what ours is held to.

Nothing is stored and nothing is drawn but by `core.rng`: weights, pixels and centres are numbers of `pattern`, crops are a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rekindle.core.progress import Progress
from rekindle.core.tables import import_named
from rekindle.engine.optimizer import build_optimizer, set_schedule
from rekindle.methods import METHODS
from rekindle.methods.base import Method
from rekindle.methods.shared.distillation import Centre
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.fixed_positions import fix_positions
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining.options import resolve
from rekindle.views.batch import Crops, ViewBatch, Views

ARCH = "vit:width=32,depth=2,heads=2,patch=8,img=40"  # 5 x 5 patches; small views have 3 x 3
AT = Progress(30, 1000, steps_per_epoch=10)  # epoch 3 of 100, on the ramp of the teacher's temperature
IMAGES, LARGE_PX, SMALL_PX = 4, 40, 24
HEAD: dict[str, Any] = {"num_prototypes": 32, "head_hidden": 32, "head_bottleneck": 16}
CONTRAST: dict[str, Any] = {"head_hidden": 32, "head_out": 16, "pixel_hidden": 32, "pixel_layers": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "dino": HEAD,
    "ibot": HEAD,
    "udi": {**HEAD, "window": 2, "local_window": 1},
    "flsl": {**HEAD, "window": 2, "local_window": 2},
    "mae": {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2},
    "mocov3": {"projector_hidden": 32, "projector_out": 16},
    "msn": {"num_prototypes": 32, "head_hidden": 32, "head_out": 16},
    "loca": HEAD,
    "tec": {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "blocks_per_group": 1, "num_selected": 3},
    "sit": {
        **CONTRAST,
        "fill": "zeros",
        "noise_area": (0.5, 0.5),
        "align_px": 1,
        "scale_2tau": True,
        "cls_weight": 2.0,
    },
}
NETWORKS: dict[str, str] = {"udi": f"{ARCH},registers=1"}
FIXED_POSITIONS = ("mae", "mocov3", "flsl")
SMALL_VIEWS = {"dino": 2, "ibot": 2, "udi": 3, "flsl": 2, "msn": 2, "loca": 2}
RUN = {"epochs": 300, "steps_per_epoch": 10, "batch_size": 1024}
FIVE = (0, 750, 1500, 2250, 2999)


def pattern(*shape: int, start: int = 0) -> Tensor:
    """Numbers in (-1, 1) that look random: the fraction of 43758.5453 sin(12.9898 (start + i)), in double precision."""
    place = np.arange(start, start + int(np.prod(shape)), dtype=np.float64)
    value = np.sin(12.9898 * place) * 43758.5453
    return torch.from_numpy(2 * (value - np.floor(value)) - 1).view(shape)


@torch.no_grad()
def fill(parameters: Iterable[tuple[str, nn.Parameter]], start: int) -> None:
    """Give named parameters numbers of `pattern`, in the order of their names; fixed positions stay."""
    places = count(start, 10_007)
    for (name, parameter), place in zip(sorted(parameters, key=lambda pair: pair[0]), places, strict=False):
        numbers = pattern(*parameter.shape, start=place)
        if name.endswith("vit.pos_embed") and not parameter.requires_grad:
            continue
        if name.endswith("original0"):  # gains of prototypes
            numbers = 1 + 0.1 * numbers if parameter.requires_grad else torch.ones_like(numbers)
        elif parameter.ndim == 1:
            numbers = 0.1 * numbers + (1.0 if name.endswith("weight") else 0.0)
        elif parameter.ndim == 3:  # tokens and positions
            numbers = 0.5 * numbers
        else:
            numbers = numbers * (3 / parameter[0].numel()) ** 0.5
        parameter.copy_(numbers)


def network(method: str) -> Backbone:
    """The student's network, all of which trains."""
    positions = "sincos" if method in FIXED_POSITIONS else "learnt"
    mode = "size" if method == "msn" else "dino"
    options = NetworkOptions(drop_path=0.0, pos_interp=mode, positions=positions)
    backbone, _ = create_backbone(NETWORKS.get(method, ARCH), options, init="random")
    backbone.requires_grad_(True)
    if positions == "sincos":
        fix_positions(backbone, "golden")
    return backbone


def batch(num_local: int) -> ViewBatch:
    """Two large views and some small ones of four images, whose crops are all over the image, some mirrored."""

    def views(number: int, side: int, size: float, start: int) -> Views:
        pixels = 1.5 * pattern(number, IMAGES, 3, side, side, start=start)
        pixels += torch.linspace(-1, 1, side, dtype=torch.float64)[:, None] * pattern(
            number, IMAGES, 3, 1, 1, start=start
        )
        shift = 0.5 + 0.5 * pattern(2, number, IMAGES, start=start + 1)
        flipped = pattern(number, IMAGES, start=start + 2) > 0
        whole = torch.full((number, IMAGES), 100.0)
        extent = torch.full((number, IMAGES), size)
        top, left = (shift * (1 - size)).float()
        return Views(
            pixels.float(),
            Crops(top, left, extent, extent.clone(), flipped, torch.zeros_like(flipped), whole, whole.clone()),
        )

    local = views(num_local, SMALL_PX, 0.4, 500_000) if num_local else None
    return ViewBatch(views(2, LARGE_PX, 0.7, 100_000), local, torch.arange(IMAGES))


@dataclass(frozen=True)
class Case:
    """A method, its batch and its place in a run."""

    method: Method
    batch: ViewBatch
    progress: Progress


def case(name: str) -> Case:
    """The fixed case of a method. Student and teacher differ; centres are not zero."""
    method_class = import_named(METHODS, "method", name)
    backbone = network(name)
    if name == "tec":
        fill(backbone.named_parameters(), 7)
    method: Method = method_class(method_class.Config(**OPTIONS[name]), backbone)
    for module in method.modules():
        if isinstance(module, EmaTeacher):
            fill(module.network.named_parameters(), 11)
    apart = ("teacher.", "base_model.")
    fill(((n, p) for n, p in method.named_parameters() if not n.startswith(apart)), 1)
    centres = sorted((n, m) for n, m in method.named_modules() if isinstance(m, Centre))
    for place, (_, centre) in enumerate(centres, start=1):
        centre.value.copy_(0.1 * pattern(len(centre.value), start=1000 * place))
    return Case(method.train(), batch(SMALL_VIEWS.get(name, 0)), AT)


def measured(case: Case) -> dict[str, dict[str, float]]:
    """Loss and terms, norms of the gradients inside and outside of the network, and of the centres after the step."""
    method = case.method
    found = method(case.batch, case.progress)
    found.total.backward()
    inside = {id(p) for p in method.backbone_parameters()}
    squares = {"network": 0.0, "heads": 0.0}
    for parameter in method.parameters():
        if parameter.grad is not None:
            where = "network" if id(parameter) in inside else "heads"
            squares[where] += float(parameter.grad.double().square().sum())
    method.after_step(case.progress)
    centres = {n.rpartition(".")[2]: float(m.value.norm()) for n, m in method.named_modules() if isinstance(m, Centre)}
    losses = {"total": float(found.total.detach())} | {name: float(value) for name, value in found.terms.items()}
    return {
        "losses": losses,
        "gradients": {where: value**0.5 for where, value in squares.items() if value},
        "centres": centres,
    }


def settings(name: str, method: Method, *, ahead: int = 0) -> dict[str, Any]:
    """Learning rate, decay and momentum at five steps of training from scratch, and how many tensors and numbers are decayed.

    Args: ahead, steps by which the authors' learning rate and decay are ahead of ours.
    """
    resolved = resolve({}, {"method": name, "init": "random", "train": "all"})
    optim = resolved.options.optim
    optimizer = build_optimizer(method, optim)
    total = RUN["epochs"] * RUN["steps_per_epoch"]
    rates, decays, momenta = [], [], []
    for step in FIVE:
        progress = Progress(step, total, RUN["steps_per_epoch"])
        later = replace(progress, step=step + ahead)
        rate, decay = set_schedule(optimizer, optim, later, RUN["batch_size"])
        rates.append(rate)
        decays.append(decay)
        with torch.no_grad():
            stats = method(batch(SMALL_VIEWS.get(name, 0)), progress).stats
        if "momentum" in stats:
            momenta.append(float(stats["momentum"]))
    decayed = [p for group in optimizer.param_groups if group["decay"] for p in group["params"]]
    return {
        "rate": rates,
        "decay": decays,
        "momentum": momenta,
        "decayed": [len(decayed), sum(p.numel() for p in decayed)],
    }
