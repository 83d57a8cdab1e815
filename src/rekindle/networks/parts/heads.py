# SPDX-License-Identifier: Apache-2.0
"""The projection head of DINO."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from rekindle.core.precision import full_precision


class _UnitRows(torch.autograd.Function):
    """What `F.normalize` does over the last axis; keeps the result and the norms, and goes back in four operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        unit: Tensor = x / norms
        ctx.save_for_backward(unit, norms)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, norms = ctx.saved_tensors
        along = torch.linalg.vecdot(unit, gradient)[..., None]
        to_x: Tensor = torch.addcmul(gradient, unit, along, value=-1) / norms
        return to_x


@full_precision
def _unit_rows(x: Tensor) -> Tensor:
    unit: Tensor = _UnitRows.apply(x)
    return unit


class DinoHead(nn.Module):
    """MLP, L2 normalisation, weight-normalised linear layer: features to logits over prototypes.

    DINO (arXiv:2104.14294), section 3.1 and appendix C: Linear(D, hidden) - GELU - Linear(hidden, hidden) -
    GELU -
    Linear(hidden, bottleneck) - unit length - Linear(bottleneck, K, no bias) with rows g * v / |v|. No batch
    norm.

    Args:
        width: D of the features.
        num_prototypes: K.
        hidden: width of the MLP.
        bottleneck: width before the prototypes.
        norm_last_layer: freeze every g at 1; the logits are then cosines in [-1, 1].

    """

    def __init__(
        self,
        width: int,
        num_prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, num_prototypes, bias=False))
        gain = self.last_layer.get_parameter("parametrizations.weight.original0")
        nn.init.ones_(gain)
        gain.requires_grad_(not norm_last_layer)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """Return logits, before any temperature. Unit length in float32; the products may run in autocast."""
        rows = self.project(x)
        return rows @ self.prototypes().to(rows.dtype).T

    def project(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows C"]:
        """Return the unit rows before the prototypes."""
        unit: Tensor = _unit_rows(self.mlp(x))
        return unit.to(x.dtype)

    def prototypes(self) -> Float[Tensor, "K C"]:
        """Return the rows g * v / |v|."""
        weight: Tensor = self.last_layer.weight
        return weight
