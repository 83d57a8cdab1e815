# SPDX-License-Identifier: Apache-2.0
"""UDI's module that makes features of sampled places from all patches: semantics-constrained reading."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SparseRead(nn.Module):
    """LayerNorm(S Z + Attn(S Z, Z)) with Z = LayerNorm(patch tokens before the final norm) and sampling maps S.

    UDI, its SRS module (the stratified random sampling of patch-level features): queries S W_q Z, keys and values of all
    patches, output projection, skip. 592,896 parameters at width 384.

    Args: width, D; heads, of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Float[Tensor, "N P D"], sampling: Float[Tensor, "N M P"]) -> Float[Tensor, "N M D"]:
        """Return the features of M places per view; a row of `sampling` weighs the patches around a place."""
        z = self.norm_in(patches)
        sampling = sampling.to(z.dtype)
        q, k, v = self.qkv(z).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (sampling @ q, k, v))
        read = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = self.norm_out(sampling @ z + read)
        return out


def one_hot_rows(index: Tensor, num_patches: int, dtype: torch.dtype) -> Tensor:
    """Sampling maps [..., M, P] that take the patches `index` [..., M] themselves."""
    return F.one_hot(index, num_patches).to(dtype)
