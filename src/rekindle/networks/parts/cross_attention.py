# SPDX-License-Identifier: Apache-2.0
"""One-head cross-attention in which queries read the tokens of a view, or of a region of it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rekindle.core.precision import full_precision

_softmax = full_precision(F.softmax)


class CrossAttention(nn.Module):
    """CA(q, Z, Z) = softmax(temperature * (W_q q)(W_k Z)^T) W_v Z: one head, no bias. GLARE, eqs. 5-6.

    Args:
        width: D.
        temperature: factor on the scores; None is 1 / sqrt(D) (0.1 / sqrt(D) for `meanshift`).
        init: `identity_value` starts with W_v = I, so that outputs are convex combinations of the memory, and
            small
            random W_q, W_k; `meanshift` starts with all three the identity (FLSL's step without parameters).
        residual: add the query and normalise, LayerNorm(q + CA).

    """

    def __init__(
        self,
        width: int,
        *,
        temperature: float | None = None,
        init: Literal["identity_value", "meanshift"] = "identity_value",
        residual: bool = False,
    ) -> None:
        super().__init__()
        default = (0.1 if init == "meanshift" else 1.0) / math.sqrt(width)
        self.temperature = default if temperature is None else temperature
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        nn.init.eye_(self.value.weight)
        for layer in (self.query, self.key):
            if init == "meanshift":
                nn.init.eye_(layer.weight)
            else:
                nn.init.trunc_normal_(layer.weight, std=0.02)
        self.norm = nn.LayerNorm(width, eps=1e-6) if residual else None

    def forward(
        self,
        queries: Float[Tensor, "N *M L D"],
        memory: Float[Tensor, "N P D"],
        *,
        key_mask: Bool[Tensor, "N *M P"] | None = None,
    ) -> Float[Tensor, "N *M L D"]:
        """Return what each query reads from the memory of its image.

        Args:
            queries: [N, L, D], or [N, M, L, D] for M regions with L patches each.
            memory: the tokens Z of one view per image; projected once, whatever M is.
            key_mask: True for the keys that may be read, one row per region (per image without M). A row
                without any
                key reads the mean of all: finite, for the caller to leave out.

        """
        weights = self.weights(queries, memory, key_mask=key_mask)
        read: Tensor = (weights.flatten(1, -2).to(memory.dtype) @ self.value(memory)).view(queries.shape)
        if self.norm is not None:
            read = self.norm(queries + read)
        return read

    def weights(
        self,
        queries: Float[Tensor, "N *M L D"],
        memory: Float[Tensor, "N P D"],
        *,
        key_mask: Bool[Tensor, "N *M P"] | None = None,
    ) -> Float[Tensor, "N *M L P"]:
        """Return the attention weights, which sum to 1 over P; arguments as in `forward`."""
        scores = self.query(queries).flatten(1, -2) @ self.key(memory).transpose(1, 2)
        scores = self.temperature * scores.view(*queries.shape[:-1], memory.shape[1])
        if key_mask is not None:  # the most negative finite value: a row of -inf alone would be NaN
            scores = scores.masked_fill(~key_mask[..., None, :], torch.finfo(scores.dtype).min)
        weights: Tensor = _softmax(scores, dim=-1)
        return weights
