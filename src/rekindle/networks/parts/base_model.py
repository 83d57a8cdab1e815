# SPDX-License-Identifier: Apache-2.0
"""Frozen base model that a new network learns from: its features, and rows of its last attention."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.block_outputs import BlockStep, walk_blocks
from rekindle.networks.blocks import by_head, plain_block, project, queries_and_keys
from rekindle.networks.position import rope_rows


class LastAttention:
    """Rows of the last block's attention before the softmax: q . k / sqrt(head width), float32, no gradient.

    Of queries, those of the class token and of the patches that somebody asks for are computed, never the whole [T, T].

    Attributes:
        class_logits: [N, H, T], the class token's row over all tokens, prefix first.
    """

    class_logits: Tensor

    def __init__(self, last: BlockStep, num_prefix: int) -> None:
        block = plain_block(last.block)
        self._attn, self._rope, self._num_prefix = block.attn, last.rope, num_prefix
        self._tokens = block.norm1(last.before)
        query, keys = queries_and_keys(self._attn, self._tokens, self._rope, 1)
        self._keys = keys.float().transpose(-2, -1)
        self._scale = float(self._attn.scale)
        self.class_logits = (query.float() * self._scale @ self._keys)[:, :, 0]

    @torch.no_grad()
    def rows(self, index: Int64[Tensor, "N k"]) -> Float[Tensor, "N R H P"]:
        """Return R = 1 + k rows over the P patches: the class token's, then those of the patches `index` in their order."""
        first = self.class_logits[:, :, None, self._num_prefix :]
        if not index.shape[1]:
            return first.transpose(1, 2)
        attn, heads = self._attn, self.class_logits.shape[1]
        patches = self._tokens[:, self._num_prefix :]
        chosen = patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))
        queries = project(attn, "q", chosen)
        queries = attn.q_norm(by_head(queries, queries.shape[-1] // heads))
        if self._rope is not None:
            queries = apply_rot_embed_cat(queries, rope_rows(self._rope, index), half=attn.rotate_half)
        rows = queries.float() * self._scale @ self._keys[..., self._num_prefix :]
        return torch.cat([first, rows], dim=2).transpose(1, 2)


@dataclass(frozen=True)
class BaseView:
    """What the base model makes of N images.

    Attributes:
        features: [N, P, C], float32.
        attention: of the last block.
    """

    features: Tensor
    attention: LastAttention


class BaseModel(nn.Module):
    """A frozen backbone, always in evaluation mode and without gradient (TEC, section 3).

    Args:
        backbone: frozen here, in place.
        last_layers: how many of the last blocks' outputs are averaged into the features, before the final norm.

    Raises: RequestError for more layers than there are.
    """

    def __init__(self, backbone: Backbone, *, last_layers: int) -> None:
        super().__init__()
        if last_layers > backbone.depth:
            raise RequestError(
                f"--tec.last-layers {last_layers}: the base model has {backbone.depth} blocks; use at most as many"
            )
        self.backbone = backbone.requires_grad_(False).eval()
        self.last_layers = last_layers

    def train(self, mode: bool = True) -> BaseModel:
        """Stay in evaluation mode whatever the mode of the method."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "N 3 height width"]) -> BaseView:
        """Return features and attention of whole images."""
        last = deque(walk_blocks(self.backbone, pixels), maxlen=self.last_layers)
        num_prefix = self.backbone.num_prefix
        total = torch.stack([step.after[:, num_prefix:].float() for step in last]).mean(dim=0)
        return BaseView(total, LastAttention(last[-1], num_prefix))
