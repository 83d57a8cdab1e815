# SPDX-License-Identifier: Apache-2.0
"""Multi-layer heads with a norm of choice, and batch normalisation over the rows of all processes."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rekindle.core.distributed import all_sum, is_distributed, world_size

HeadNorm = Literal["bn", "ln", "none"]


class SharedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of the rows at hand, of all processes; in training and in evaluation alike.

    There are no running statistics, so none can lag behind: a momentum teacher normalises by its batch as well, as where
    MoCo v3 trains. Every process must have the same number of rows.

    Args: width; affine, whether a gain and an offset per channel follow.
    """

    def __init__(self, width: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
        """Normalise each channel. Raises ValueError for a single row in a single process, which has no variance."""
        if not is_distributed():
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        normalised: Tensor = _AcrossProcesses.apply(x, self.weight, self.bias, self.eps)
        return normalised


class _AcrossProcesses(torch.autograd.Function):
    """What `F.batch_norm` does, with sums over all processes; keeps the input and two numbers per channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        wide = _wide(x)
        rows = len(x) * world_size()
        mean = all_sum(wide.sum(dim=0)) / rows
        centred = wide - mean
        inverse = (all_sum(centred.square().sum(dim=0)) / rows + eps).rsqrt()
        ctx.rows, ctx.has_affine = rows, weight is not None
        ctx.save_for_backward(x, mean, inverse, torch.empty(0) if weight is None else weight)
        out = centred.mul_(inverse)
        if weight is not None and bias is not None:
            out = out.mul_(_wide(weight)).add_(_wide(bias))
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight = ctx.saved_tensors
        unit, pull = (_wide(x) - mean) * inverse, _wide(gradient)
        own = torch.stack([pull.sum(dim=0), (pull * unit).sum(dim=0)])
        both = all_sum(own) / ctx.rows
        scale = inverse * _wide(weight) if ctx.has_affine else inverse
        to_input = ((pull - both[0] - unit * both[1]) * scale).to(x.dtype)
        if not ctx.has_affine:
            return to_input, None, None, None
        return to_input, own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


class MlpHead(nn.Sequential):
    """Linear maps with a norm and an activation after each but the last, which may end in a norm without affine map.

    A map has a bias only where no norm follows it. MMC's heads are those of MoCo v3 (arXiv:2104.02057, section 4.3); `none`
    is a plain perceptron.

    Args: widths, of the input, of each hidden layer and of the output; norm; activation; norm_last, whether the output is
    normalised as well.
    """

    def __init__(
        self,
        *widths: int,
        norm: HeadNorm = "bn",
        activation: type[nn.Module] = nn.ReLU,
        norm_last: bool = True,
    ) -> None:
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(itertools.pairwise(widths)):
            is_last = place == len(widths) - 2
            is_normed = norm != "none" and (norm_last or not is_last)
            layers.append(nn.Linear(before, after, bias=not is_normed))
            if is_normed and norm == "bn":
                layers.append(SharedBatchNorm(after, affine=not is_last))
            elif is_normed:
                layers.append(nn.LayerNorm(after, elementwise_affine=not is_last))
            if not is_last:
                layers.append(activation())
        super().__init__(*layers)
