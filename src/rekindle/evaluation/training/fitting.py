# SPDX-License-Identifier: Apache-2.0
"""Training of a network on labels, for protocols: groups, rates and the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rekindle.core.errors import RekindleError
from rekindle.core.rng import generator, seeded_default
from rekindle.evaluation.training.options import ClassTokenLayer, TrainingOptions
from rekindle.networks.backbone import Backbone

NEWS_EVERY_S = 20.0
TOKENS = ("pos_embed", "cls_token", "reg_token", "mask_token", "class_token")


def layer_scales(backbone: Backbone, decay: float, *, class_token_layer: ClassTokenLayer) -> dict[str, float]:
    """Return the share of the peak rate that each parameter of the backbone gets: decay^(D + 1 - id).

    The id is 0 for patch embedding and positions, i for block i (from 1), and D + 1 for the final norm. Class token and registers
    have the id 0 with `embedding` (BEiT, MAE and the segmentation toolkit) and D + 1 with `head` (TEC, section 13).
    """
    depth = backbone.depth
    scales = {}
    for name, _ in backbone.named_parameters():
        parts = name.split(".")
        if "blocks" in parts:
            layer = 1 + int(parts[parts.index("blocks") + 1])
        elif is_token(name):
            layer = 0 if class_token_layer == "embedding" or "pos_embed" in parts else depth + 1
        else:
            layer = 0 if "patch_embed" in parts or "norm_pre" in parts else depth + 1
        scales[name] = decay ** (depth + 1 - layer)
    return scales


def is_token(name: str) -> bool:
    """Whether a parameter is a token or a table of positions, by name: class token, registers, mask token, positions."""
    return name.rpartition(".")[2] in TOKENS


def training_groups(backbone: Backbone | None, head: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Return optimizer groups with a `scale` of the rate each: the backbone's by layer, if it trains, and the head's.

    AdamW decays neither vectors nor tokens and positions, whatever their axes (GLARE, section 9.1; MAE's and TEC's fine-tuning);
    SGD's decay is the same for all.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}

    def add(name: str, parameter: nn.Parameter, scale: float) -> None:
        is_decayed = options.optimizer == "sgd" or (parameter.ndim > 1 and not is_token(name))
        found.setdefault((scale, is_decayed), []).append(parameter)

    if backbone is not None:
        scales = layer_scales(backbone, options.layer_decay, class_token_layer=options.class_token_layer)
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                add(name, parameter, scales[name])
    for name, parameter in head.named_parameters():
        add(name, parameter, options.head_lr_scale)
    return [
        {"params": parameters, "scale": scale, "weight_decay": options.weight_decay if is_decayed else 0.0}
        for (scale, is_decayed), parameters in found.items()
    ]


def rate(step: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step: linear warm-up, then from peak to final.

    `poly` falls as (1 - step / steps)^power; `cosine` as half a cosine that begins where the warm-up ends.
    """
    warmup, steps = options.warmup_steps, options.steps
    if step < warmup:
        return options.lr * (step + 1) / warmup
    share: float = (1.0 - step / steps) ** options.schedule_power
    if options.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return options.final_lr + (options.lr - options.final_lr) * share


def fitting_optimizer(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    """Return AdamW or SGD over the groups of `training_groups`."""
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(options.momentum, 0.999))


def fit(
    groups: list[dict[str, Any]],
    losses: Callable[[Any], Tensor],
    batches: Iterable[Any],
    options: TrainingOptions,
    *,
    seed: int,
    message: Callable[[str], None],
) -> None:
    """Train over `batches`, one step each.

    Args:
        groups: of `training_groups`.
        losses: the loss of a batch.
        batches: as many as `options.steps`.
        options: rates and the like.
        seed: of stochastic depth and dropout, which draw from torch's default generator.
        message: takes a line of progress now and then.

    Raises: RekindleError where the loss is not finite.
    """
    optimizer = fitting_optimizer(groups, options)
    parameters = [p for group in groups for p in group["params"]]
    began = last = time.monotonic()
    for step, batch in enumerate(batches):
        now_rate = rate(step, options)
        for group in optimizer.param_groups:
            group["lr"] = now_rate * group["scale"]
        with seeded_default(seed, "fit", step):
            loss = losses(batch)
        value = loss.detach()
        if not bool(value.isfinite()):
            raise RekindleError(
                f"the loss is {float(value)} at step {step}; lower lr = {options.lr:g}, or clip the gradient (clip_norm)"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        optimizer.step()
        if time.monotonic() - last > NEWS_EVERY_S:
            last = time.monotonic()
            left = (last - began) / (step + 1) * (options.steps - step - 1)
            message(f"step {step + 1} of {options.steps}, loss {float(value):.3f}, about {left:.0f} s left")


def endless_order(indices: list[int], seed: int, purpose: str) -> Iterator[int]:
    """Yield every index once, then every one once again in another order, and so on."""
    epoch = 0
    while True:
        order = torch.randperm(len(indices), generator=generator(seed, purpose, epoch)).tolist()
        yield from (indices[i] for i in order)
        epoch += 1
