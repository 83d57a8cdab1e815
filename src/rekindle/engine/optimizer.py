# SPDX-License-Identifier: Apache-2.0
"""AdamW with the field's habits: decay where the method wants it, clipping, schedules by step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine, warmup_cosine
from rekindle.engine.options import OptimOptions
from rekindle.methods.base import Method


def build_optimizer(method: Method, options: OptimOptions, waiting: Collection[nn.Parameter] = ()) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; those that the method does not decay are in a group without decay.

    Args: waiting, parameters that stay still while heads warm up, or have a rate of their own; they have groups of their own.
    Raises RequestError if nothing is trainable.
    """
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    if not named:
        raise RequestError("nothing to train: every parameter is frozen; use train=adapters, norm or all")
    decayed = {n for n, p in named if method.decays(n, p) or (options.decay_vectors and _is_vector(n, p))}
    late = {id(p) for p in waiting}
    groups = []
    for waits in (False, True):
        for decay in (True, False):
            own = [(n, p) for n, p in named if (id(p) in late) == waits and (n in decayed) == decay]
            groups.append({"params": [p for _, p in own], "names": [n for n, _ in own], "decay": decay, "waits": waits})
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=0.0,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=0.0,
        fused=True,
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], method: Method) -> None:
    """Give every parameter its own averages of a checkpoint, by name, in whatever group it is now.

    Checkpoints from before groups had names hold a group's parameters in the method's order, parted as every method then was:
    biases and what has one axis were not decayed.
    """
    current = optimizer.state_dict()
    late = {name for group in current["param_groups"] if group["waits"] for name in group["names"]}
    places: dict[str, int] = {}
    for group in stored["param_groups"]:
        names = group.get("names") or [
            n
            for n, p in method.named_parameters()
            if p.requires_grad and (n in late) == group["waits"] and _is_vector(n, p) != group["decay"]
        ]
        places |= zip(names, group["params"], strict=True)
    state = {
        place: stored["state"][places[name]]
        for group in current["param_groups"]
        for name, place in zip(group["names"], group["params"], strict=True)
        if places[name] in stored["state"]
    }
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.endswith(".bias")


def peak_lr(options: OptimOptions, batch_size: int) -> float:
    """Peak learning rate: lr_per_256 * batch / 256, or lr_per_256 itself."""
    return options.lr_per_256 * _scale(options, batch_size)


def _scale(options: OptimOptions, batch_size: int) -> float:
    return 1.0 if options.lr_is_peak else batch_size / 256


def set_schedule(
    optimizer: torch.optim.Optimizer, options: OptimOptions, progress: Progress, batch_size: int, head_steps: int = 0
) -> tuple[float, float]:
    """Give every group its learning rate and decay for this step; return both, as the heads have them.

    Args: head_steps, steps in which parameters that wait have rate 0; theirs then rises over as many steps as the warm-up has.
    """
    peak = peak_lr(options, batch_size)
    warmup = warmup_steps(options, progress.total, progress.steps_per_epoch)
    first, last = min(options.start_lr * _scale(options, batch_size), peak), min(options.final_lr, peak)
    lr = warmup_cosine(progress, peak, last, warmup_steps=warmup, start=first, stretch=options.stretch)
    end = options.weight_decay if options.final_weight_decay is None else options.final_weight_decay
    decay = cosine(progress, options.weight_decay, end, stretch=options.stretch)
    late = 1.0
    if head_steps:
        late = min(1.0, max(0, progress.step - head_steps + 1) / max(1, warmup))
    for group in optimizer.param_groups:
        group["lr"] = lr * late * options.backbone_lr_factor if group["waits"] else lr
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr, decay


def warmup_steps(options: OptimOptions, steps: int, steps_per_epoch: int) -> int:
    """Steps in which the learning rate rises; at most `warmup_limit` of the run."""
    most = int(options.warmup_limit * steps + 1e-9)  # a third of three steps is one
    return min(round(options.warmup_epochs * steps_per_epoch), most)


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, over: Literal["tensor", "all"] = "tensor"
) -> torch.Tensor:
    """Scale gradients by min(1, max_norm / (norm + 1e-6)), the norm being each tensor's own or that of all; 0 leaves them.

    Returns the norm over all gradients before clipping; it is not finite if any gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    total: torch.Tensor = torch.linalg.vector_norm(norms)
    if max_norm > 0:
        which = norms if over == "tensor" else total.expand_as(norms)
        scale = (max_norm / (which + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(scale.unbind()))
    return total


@torch.no_grad()
def total_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors)))))
