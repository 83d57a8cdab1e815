# SPDX-License-Identifier: Apache-2.0
"""Shares of a loss whose graph need not wait for the rest: their activations are never alive together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rekindle.objectives.prototypes import WeighedTerms


def gradient_in_advance(share: Callable[[], WeighedTerms], inputs: Sequence[Tensor]) -> WeighedTerms:
    """Compute a share of the loss and its gradient at once, and let go of its graph.

    The result is what `share()` returns, with the same gradients to `inputs` once `backward` runs: a total is a sum, so the
    gradient of a share needs nothing of the others. What stays is one gradient instead of all activations.

    Args:
        share: computes the terms; everything that trains in it must be among `inputs`.
        inputs: tensors that need a gradient (parameters, or what was computed from them); others are passed over.

    """
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not torch.is_grad_enabled() or not wanted:
        return share()
    found: list[WeighedTerms] = []
    total: Tensor = _Advance.apply(share, found, *wanted)
    return WeighedTerms(total, found[0].terms)


class _Advance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Callable[[], WeighedTerms], found: list[WeighedTerms], *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            result = share()
            gradients = torch.autograd.grad(result.total, inputs, allow_unused=True)
        ctx.used = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        found.append(WeighedTerms(result.total.detach(), result.terms))
        return result.total.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = iter(torch._foreach_mul(ctx.saved_tensors, gradient))
        return None, None, *(next(scaled) if used else None for used in ctx.used)
