# SPDX-License-Identifier: Apache-2.0
"""The decoder of masked autoencoders: from visible tokens to a prediction for every patch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rekindle.core.errors import RequestError


class MaskedDecoder(nn.Module):
    """Linear map, mask tokens at hidden places, fixed positions, blocks, norm, linear map (MAE, arXiv:2111.06377, section 3).

    Args:
        encoder_width: D of the visible tokens.
        width: of the decoder, a multiple of 4 (its positions are sines and cosines of two axes) and of `heads`.
        depth, heads: of its blocks.
        out: numbers predicted for each patch.
        num_prefix: leading tokens (class token), which are decoded along and predict nothing.

    """

    def __init__(
        self, encoder_width: int, *, width: int, depth: int, heads: int, out: int, num_prefix: int = 1
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise RequestError(
                f"a decoder of width {width} cannot have {heads} heads; both 4 and the heads must divide it"
            )
        self.num_prefix, self._width = num_prefix, width
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.mask_token, std=0.02)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.predict = nn.Linear(width, out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, visible: Float[Tensor, "N T D"], keep: Int64[Tensor, "N L"], grid: tuple[int, int]
    ) -> Float[Tensor, "N P out"]:
        """Return the prediction for each patch; visible tokens are the prefix and the patches `keep`, in this order."""
        y = self.embed(visible)
        prefix, patches = y[:, : self.num_prefix], y[:, self.num_prefix :]
        full = self.mask_token.to(y.dtype).expand(len(y), grid[0] * grid[1], -1)
        full = full.scatter(1, keep[..., None].expand(-1, -1, self._width), patches)
        positions = build_sincos2d_pos_embed(list(grid), dim=self._width, device=y.device, dtype=torch.float32)
        y = torch.cat([prefix, full + positions.to(y.dtype)], dim=1)
        for block in self.blocks:
            y = block(y)
        predicted: Tensor = self.predict(self.norm(y))[:, self.num_prefix :]
        return predicted
