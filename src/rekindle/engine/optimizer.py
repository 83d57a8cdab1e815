# SPDX-License-Identifier: Apache-2.0
"""AdamW with the field's habits: no decay on vectors, per-tensor clipping, schedules by step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine, warmup_cosine
from rekindle.engine.options import OptimOptions


def build_optimizer(
    module: nn.Module, options: OptimOptions, waiting: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; biases and 1-D tensors are in a group without decay.

    Args: waiting, parameters that stay still while heads warm up; they have groups of their own.
    Raises RequestError if nothing is trainable.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise RequestError("nothing to train: every parameter is frozen; use train=adapters, norm or all")
    vectors = {id(p) for n, p in named if p.ndim <= 1 or n.endswith(".bias")}
    late = {id(p) for p in waiting}
    groups = [
        {
            "params": [p for _, p in named if (id(p) in late) == waits and (id(p) not in vectors) == decay],
            "decay": decay,
            "waits": waits,
        }
        for waits in (False, True)
        for decay in (True, False)
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=0.0,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=0.0,
        fused=True,
    )


def peak_lr(options: OptimOptions, batch_size: int) -> float:
    """Peak learning rate: lr_per_256 * batch / 256, or lr_per_256 itself."""
    return options.lr_per_256 if options.lr_is_peak else options.lr_per_256 * batch_size / 256


def set_schedule(
    optimizer: torch.optim.Optimizer, options: OptimOptions, progress: Progress, batch_size: int, head_steps: int = 0
) -> tuple[float, float]:
    """Give every group its learning rate and decay for this step; return both.

    Args: head_steps, steps in which parameters that wait have rate 0; theirs then rises over as many steps as the warm-up has.
    """
    peak = peak_lr(options, batch_size)
    warmup = warmup_steps(options, progress.total, progress.steps_per_epoch)
    lr = warmup_cosine(progress, peak, min(options.final_lr, peak), warmup_steps=warmup)
    end = options.weight_decay if options.final_weight_decay is None else options.final_weight_decay
    decay = cosine(progress, options.weight_decay, end)
    late = 1.0
    if head_steps:
        late = min(1.0, max(0, progress.step - head_steps + 1) / max(1, warmup))
    for group in optimizer.param_groups:
        group["lr"] = lr * late if group["waits"] else lr
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr, decay


def warmup_steps(options: OptimOptions, steps: int, steps_per_epoch: int) -> int:
    """Steps in which the learning rate rises; at most a third of the run."""
    return min(round(options.warmup_epochs * steps_per_epoch), steps // 3)


@torch.no_grad()
def clip_per_tensor(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale each tensor's gradient by min(1, max_norm / (norm + 1e-6)); max_norm 0 leaves them.

    Returns the norm over all gradients before clipping; it is not finite if any gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    if max_norm > 0:
        scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(scale.unbind()))
    total: torch.Tensor = torch.linalg.vector_norm(norms)
    return total


@torch.no_grad()
def total_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors)))))
