# SPDX-License-Identifier: Apache-2.0
"""The parts of a transformer block, so that an adapter can put them together in another order.

Every function keeps the operations and their order of timm's own `forward`: a block re-composed from its
branches equals the block bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rekindle.core.errors import RequestError

TimmBlock = Any
"""A block of timm, whose parts timm types as plain modules."""


class ComposedBlock(nn.Module, ABC):
    """A block around a timm block: what `Backbone` runs in place of the plain one."""

    block: TimmBlock
    enabled: bool
    """False runs the plain block."""

    @abstractmethod
    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """Return the tokens after the block; `rope` is the rotary table, if the model has one."""


def check_block(block: TimmBlock) -> None:
    """Raise RequestError, naming the type, for a block that this module cannot take apart."""
    plain = plain_block(block)
    if not isinstance(plain, Block | EvaBlock):
        raise RequestError(
            f"blocks of type {type(plain).__name__} are not supported; "
            "use a pre-norm ViT whose blocks are timm's Block or EvaBlock (DINO, DINOv2, DINOv3, MAE)"
        )


def plain_block(block: TimmBlock) -> TimmBlock:
    """Return the timm block itself, whatever was put around it."""
    return block.block if isinstance(block, ComposedBlock) else block


def run_block(block: TimmBlock, x: Tensor, rope: Tensor | None = None) -> Tensor:
    """Return the tokens after `block`, plain or composed."""
    if isinstance(block, ComposedBlock | EvaBlock):
        out: Tensor = block(x, rope=rope)
    else:
        check_block(block)
        out = block(x)
    return out


def attention_output(block: TimmBlock, x: Tensor, rope: Tensor | None = None) -> Tensor:
    """Return LayerScale(Attention(norm1(x))): the attention branch before stochastic depth."""
    if isinstance(block, EvaBlock):
        out: Tensor = block.attn(block.norm1(x), rope=rope)
        return out if block.gamma_1 is None else block.gamma_1 * out
    check_block(block)
    out = block.ls1(block.attn(block.norm1(x)))
    return out


def attention_branch(block: TimmBlock, x: Tensor, rope: Tensor | None = None) -> Tensor:
    """Return what the attention adds to the stream, layer scale and stochastic depth included."""
    return drop_attention_path(block, attention_output(block, x, rope))


def drop_attention_path(block: TimmBlock, branch: Tensor) -> Tensor:
    """Apply the stochastic depth of the attention branch: the identity in evaluation mode."""
    out: Tensor = block.drop_path1(branch)
    return out


def mlp_branch(block: TimmBlock, x: Tensor) -> Tensor:
    """Return what the MLP adds to the stream, layer scale and stochastic depth included."""
    if isinstance(block, EvaBlock):
        out: Tensor = block.mlp(block.norm2(x))
        out = out if block.gamma_2 is None else block.gamma_2 * out
    else:
        check_block(block)
        out = block.ls2(block.mlp(block.norm2(x)))
    branch: Tensor = block.drop_path2(out)
    return branch


@torch.no_grad()
def first_row_attention(
    block: TimmBlock, x: Float[Tensor, "N T D"], rope: Tensor | None = None
) -> Float[Tensor, "N heads T"]:
    """Return the first token's attention to all tokens, from the block's input; no gradient passes.

    One row is computed beside the block, so the block itself keeps its fused kernel.
    """
    plain = plain_block(block)
    check_block(plain)
    attn = plain.attn
    q, k = _queries_and_keys(attn, plain.norm1(x))
    if rope is not None:
        prefix = attn.num_prefix_tokens
        rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=attn.rotate_half)
        k = torch.cat([k[:, :, :prefix], rotated], dim=2)  # the first token is a prefix token: its query never turns
    scores = (q[:, :, :1] * attn.scale) @ k.transpose(-2, -1)
    row: Tensor = scores.float().softmax(dim=-1)[:, :, 0]
    return row


def _queries_and_keys(attn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys [N, heads, T, D / heads], after their norms, before any rotation."""
    heads = attn.num_heads
    is_split = isinstance(attn, EvaAttention | AttentionRope) and attn.qkv is None
    is_biased_apart = isinstance(attn, EvaAttention) and attn.q_bias is not None  # EVA's keys have no bias
    if is_split:
        q = attn.q_proj(y).unflatten(-1, (heads, -1)).transpose(1, 2)
        k = attn.k_proj(y).unflatten(-1, (-1, q.shape[-1])).transpose(1, 2)
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
    else:
        qkv = attn.qkv(y)
        if is_biased_apart:
            qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        q, k, _ = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k)
