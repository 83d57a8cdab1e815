# SPDX-License-Identifier: Apache-2.0
"""Decoder with one trunk and two targets: features of hidden patches, and rows of an attention."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rekindle.networks.parts.masked_decoder import check_decoder_width, with_mask_tokens

AttentionScale = Literal["full", "head"]


class TargetStem(nn.Module):
    """What belongs to one target alone before the trunk: a linear map and the token that stands in for hidden patches."""

    def __init__(self, encoder_width: int, width: int, num_prefix: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, visible: Float[Tensor, "N T D"], keep: Int64[Tensor, "N L"], grid: tuple[int, int]
    ) -> Float[Tensor, "N S W"]:
        """Return the prefix and all patches, hidden ones as mask tokens, with positions."""
        return with_mask_tokens(self.embed(visible), self.mask_token, keep, grid, num_prefix=self.num_prefix)


class FeatureHead(nn.Module):
    """Norm and linear map from the decoder's patches to the base model's features."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, feature_width)

    def forward(self, patches: Float[Tensor, "N P W"]) -> Float[Tensor, "N P C"]:
        """Return the predicted features."""
        predicted: Tensor = self.predict(self.norm(patches))
        return predicted


class AttentionHead(nn.Module):
    """Norm, then queries and keys whose products are the predicted logits of the base model's attention.

    Args: width, of the decoder; feature_width C and heads H, of the base model; scale, of the products: `full` is C^-0.5 (the
    released code), `head` is (C / H)^-0.5.
    """

    def __init__(self, width: int, feature_width: int, heads: int, scale: AttentionScale) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (feature_width if scale == "full" else feature_width // heads) ** -0.5
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query, self.key = nn.Linear(width, feature_width), nn.Linear(width, feature_width)

    def forward(self, decoded: Float[Tensor, "N S W"], index: Int64[Tensor, "N k"]) -> Float[Tensor, "N R H P"]:
        """Return logits over the patches: the class token's row, then those of the patches `index`, in their order.

        Queries are computed for these rows alone, keys for the patches alone.
        """
        y = self.norm(decoded)
        patches = y[:, 1:]
        rows = torch.cat([y[:, :1], patches.gather(1, index[..., None].expand(-1, -1, y.shape[-1]))], dim=1)
        query, key = (z.unflatten(-1, (self.heads, -1)) for z in (self.query(rows), self.key(patches)))
        return torch.einsum("nrhd,nphd->nrhp", query * self.scale, key)


class TargetDecoder(nn.Module):
    """A stem and a head for each target, and blocks that both share (TEC, section 8 of its specification).

    Both targets go through the blocks in one batch, which is what two passes give.

    Args:
        encoder_width: D of the visible tokens.
        width, depth, heads: of the trunk; width a multiple of 4 and of `heads`.
        feature_width, attention_heads: C and H of the base model; no attention is predicted without heads.
        scale: see `AttentionHead`.
        num_prefix: leading tokens; 1 for the class token, which attention needs, or 0.

    """

    def __init__(
        self,
        encoder_width: int,
        *,
        width: int,
        depth: int,
        heads: int,
        feature_width: int,
        attention_heads: int | None,
        scale: AttentionScale = "full",
        num_prefix: int = 1,
    ) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        check_decoder_width(width, heads)
        self.feature_stem = TargetStem(encoder_width, width, num_prefix)
        self.feature_head = FeatureHead(width, feature_width)
        self.attention_stem = self.attention_head = None
        if attention_heads is not None:
            self.attention_stem = TargetStem(encoder_width, width, num_prefix)
            self.attention_head = AttentionHead(width, feature_width, attention_heads, scale)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        visible: Float[Tensor, "N T D"],
        keep: Int64[Tensor, "N L"],
        grid: tuple[int, int],
        index: Int64[Tensor, "N k"] | None,
    ) -> tuple[Float[Tensor, "N P C"], Float[Tensor, "N R H P"] | None]:
        """Return the predicted features of every patch, and the logits of class token and patches `index` if any are given.

        Args: visible, the prefix and the patches `keep` in this order.
        """
        if index is None:
            decoded = self._trunk(self.feature_stem(visible, keep, grid))
            return self.feature_head(decoded[:, self.num_prefix :]), None
        assert self.attention_stem is not None and self.attention_head is not None
        stems = self.feature_stem(visible, keep, grid), self.attention_stem(visible, keep, grid)
        features, attention = self._trunk(torch.cat(stems)).chunk(2)
        return self.feature_head(features[:, self.num_prefix :]), self.attention_head(attention, index)

    def _trunk(self, y: Tensor) -> Tensor:
        for block in self.blocks:
            y = block(y)
        return y
