# SPDX-License-Identifier: Apache-2.0
"""Cross-attention block in which the patches of one view read those of another."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn


class QueryBlock(nn.Module):
    """x + Attn(LN(x), LN(memory)), then y + MLP(LN(y)): one pre-norm block with its own norms (LOCA, section 3.2).

    7,089,408 parameters at width 768. Args: width, D; heads, of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_memory, self.norm_mlp = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.query, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mlp = Mlp(width, 4 * width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def stop_reading(self) -> None:
        """Freeze what reads the memory: for a memory that is always empty."""
        for module in (self.norm_query, self.norm_memory, self.query, self.key_value, self.proj):
            module.requires_grad_(False)

    def forward(self, x: Float[Tensor, "N Q D"], memory: Float[Tensor, "N M D"]) -> Float[Tensor, "N Q D"]:
        """Return the queries after reading; a memory without tokens is not read at all."""
        if memory.shape[1]:
            q = self.query(self.norm_query(x))
            k, v = self.key_value(self.norm_memory(memory)).chunk(2, dim=-1)
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out
