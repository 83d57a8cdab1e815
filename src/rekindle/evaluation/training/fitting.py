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
from rekindle.evaluation.training.options import TrainingOptions
from rekindle.networks.backbone import Backbone

NEWS_EVERY_S = 20.0


def layer_scales(backbone: Backbone, decay: float) -> dict[str, float]:
    """Return the share of the peak rate that each parameter of the backbone gets: decay^(D + 1 - id).

    The id is 0 for patch embedding and positions, i for block i (from 1), and D + 1 for the final norm, the class token and
    registers (TEC, section 13: the released code gives the class token the head's rate).
    """
    depth = backbone.depth
    scales = {}
    for name, _ in backbone.named_parameters():
        parts = name.split(".")
        if "blocks" in parts:
            layer = 1 + int(parts[parts.index("blocks") + 1])
        elif "patch_embed" in parts or "pos_embed" in parts or "norm_pre" in parts:
            layer = 0
        else:
            layer = depth + 1
        scales[name] = decay ** (depth + 1 - layer)
    return scales


def training_groups(backbone: Backbone | None, head: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Return optimizer groups with a `scale` of the rate each: the backbone's by layer, if it trains, and the head's.

    Vectors are not decayed under AdamW; SGD's decay is the same for all.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}

    def add(parameter: nn.Parameter, scale: float) -> None:
        is_decayed = options.optimizer == "sgd" or parameter.ndim > 1
        found.setdefault((scale, is_decayed), []).append(parameter)

    if backbone is not None:
        scales = layer_scales(backbone, options.layer_decay)
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                add(parameter, scales[name])
    for parameter in head.parameters():
        add(parameter, options.head_lr_scale)
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
