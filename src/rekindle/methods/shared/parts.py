# SPDX-License-Identifier: Apache-2.0
"""Gradient in advance, for parts of a loss whose graphs are then never alive together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rekindle.methods.base import LossBreakdown


def gradient_in_advance(parts: Sequence[Callable[[], LossBreakdown]], inputs: Sequence[Tensor]) -> LossBreakdown:
    """Compute parts of the loss in turn, each with its gradient at once, and let go of its graph before the next.

    The result is the sum of what the parts return, with the same gradients to `inputs` once `backward` runs: a total is a
    sum, so the gradient of a part needs nothing of the others. What stays is one gradient instead of all activations.

    Args:
        parts: each computes some terms; everything that trains in them must be among `inputs`.
        inputs: tensors that need a gradient (parameters, or what was computed from them); others are passed over.

    """
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not torch.is_grad_enabled() or not wanted:
        return LossBreakdown.join([part() for part in parts])
    found: list[LossBreakdown] = []
    total: Tensor = _Advance.apply(parts, found, *wanted)
    return LossBreakdown(total, found[0].terms)


class _Advance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[Callable[[], LossBreakdown]], found: list[LossBreakdown], *inputs: Tensor
    ) -> Tensor:
        results: list[LossBreakdown] = []
        sums: dict[int, Tensor] = {}
        for part in parts:
            with torch.enable_grad():
                result = part()
                own = torch.autograd.grad(result.total, inputs, allow_unused=True)
            results.append(LossBreakdown(result.total.detach(), result.terms))
            del result
            new = {place: gradient for place, gradient in enumerate(own) if gradient is not None}
            both = [place for place in new if place in sums]
            if both:
                torch._foreach_add_([sums[place] for place in both], [new[place] for place in both])
            sums = new | sums
        ctx.places, ctx.number = list(sums), len(inputs)
        ctx.save_for_backward(*sums.values())
        found.append(LossBreakdown.join(results))
        return found[0].total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = dict(zip(ctx.places, torch._foreach_mul(ctx.saved_tensors, gradient), strict=True))
        return None, None, *(scaled.get(place) for place in range(ctx.number))
