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
        check_decoder_width(width, heads)
        self.num_prefix = num_prefix
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
        y = with_mask_tokens(self.embed(visible), self.mask_token, keep, grid, num_prefix=self.num_prefix)
        for block in self.blocks:
            y = block(y)
        predicted: Tensor = self.predict(self.norm(y))[:, self.num_prefix :]
        return predicted


def with_mask_tokens(
    tokens: Float[Tensor, "N T W"],
    mask_token: Float[Tensor, " W"],
    keep: Int64[Tensor, "N L"],
    grid: tuple[int, int],
    *,
    num_prefix: int,
) -> Float[Tensor, "N S W"]:
    """Return what a decoder reads: the prefix, then a token for every patch, with fixed positions.

    Args: tokens, the prefix and the patches `keep` in this order; mask_token stands in for the patches that are not among them;
    grid (gh, gw). Returns: S = num_prefix + gh * gw tokens.
    """
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
    width = tokens.shape[-1]
    full = mask_token.to(tokens.dtype).expand(len(tokens), grid[0] * grid[1], -1)
    full = full.scatter(1, keep[..., None].expand(-1, -1, width), patches)
    positions = build_sincos2d_pos_embed(list(grid), dim=width, device=tokens.device, dtype=torch.float32)
    return torch.cat([prefix, full + positions.to(tokens.dtype)], dim=1)


def check_decoder_width(width: int, heads: int) -> None:
    """Raise RequestError unless a decoder of this width can have sines and cosines of two axes, and these heads."""
    if width % heads or width % 4:
        raise RequestError(
            f"decoder_width = {width} cannot have decoder_heads = {heads}; both 4 and the heads must divide it"
        )
