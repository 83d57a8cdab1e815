# SPDX-License-Identifier: Apache-2.0
"""The parts of a transformer block, so that an adapter can put them together in another order.

Every function keeps the operations and their order of timm's own `forward`: a block re-composed from its
branches equals the block bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
    def forward(self, x: Tensor, rope: Tensor | None = None, rows: int | None = None) -> Tensor:
        """Return the tokens after the block: all, or only the first `rows`; `rope` is the rotary table, if there is one."""


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


def run_block(block: TimmBlock, x: Tensor, rope: Tensor | None = None, rows: int | None = None) -> Tensor:
    """Return the tokens after `block`, plain or composed.

    Args: rows, return only the first tokens of each image (prefix tokens); the others are still read, so that the result is
    the same at a fraction of the work. In a last block that only feeds a loss on the class token, this saves most of it.
    """
    if isinstance(block, ComposedBlock):
        out: Tensor = block(x, rope=rope, rows=rows)
    elif rows is not None:
        y = x[:, :rows] + attention_branch(block, x, rope, rows)
        out = y + mlp_branch(block, y)
    elif isinstance(block, EvaBlock):
        out = block(x, rope=rope)
    else:
        check_block(block)
        out = block(x)
    return out


def attention_output(block: TimmBlock, x: Tensor, rope: Tensor | None = None, rows: int | None = None) -> Tensor:
    """Return LayerScale(Attention(norm1(x))): the attention branch before stochastic depth, of all or the first `rows`."""
    y = block.norm1(x)
    if isinstance(block, EvaBlock):
        out: Tensor = block.attn(y, rope=rope) if rows is None else _attend_first(block.attn, y, rope, rows)
        return out if block.gamma_1 is None else block.gamma_1 * out
    check_block(block)
    out = block.ls1(block.attn(y) if rows is None else _attend_first(block.attn, y, rope, rows))
    return out


def attention_branch(block: TimmBlock, x: Tensor, rope: Tensor | None = None, rows: int | None = None) -> Tensor:
    """Return what the attention adds to the stream, layer scale and stochastic depth included."""
    return drop_attention_path(block, attention_output(block, x, rope, rows))


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
    q, k = _queries_and_keys(attn, plain.norm1(x), rope, 1)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    row: Tensor = scores.float().softmax(dim=-1)[:, :, 0]
    return row


def _attend_first(attn: Any, y: Tensor, rope: Tensor | None, rows: int) -> Tensor:
    """What `attn(y)` gives for the first `rows` tokens: their queries alone, all keys and values."""
    q, k = _queries_and_keys(attn, y, rope, rows)
    v = _by_head(_project(attn, "v", y), q.shape[-1])
    v = v.repeat_interleave(attn.num_heads // v.shape[1], dim=1)
    dropout = attn.attn_drop.p if attn.training else 0.0
    read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    read = attn.norm(read.transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)  # older releases of timm have none
    if gate is not None:
        read = read * gate(y[:, :rows]).sigmoid()
    out: Tensor = attn.proj_drop(attn.proj(read))
    return out


def _queries_and_keys(attn: Any, y: Tensor, rope: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Return the queries of the first `rows` tokens and all keys, [N, heads, ., D / heads], normed and rotated.

    The first tokens are prefix tokens, whose queries never turn.
    """
    heads = attn.num_heads
    q = _project(attn, "q", y[:, :rows])
    q, k = _by_head(q, q.shape[-1] // heads), _by_head(_project(attn, "k", y), q.shape[-1] // heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        prefix = attn.num_prefix_tokens
        rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=attn.rotate_half).to(k.dtype)
        k = torch.cat([k[:, :, :prefix], rotated], dim=2)
    return q, k.repeat_interleave(heads // k.shape[1], dim=1)


def _by_head(values: Tensor, width: int) -> Tensor:
    """[N, T, heads * width] -> [N, heads, T, width]."""
    return values.reshape(*values.shape[:2], -1, width).transpose(1, 2)


def _project(attn: Any, part: Literal["q", "k", "v"], y: Tensor) -> Tensor:
    """Queries, keys or values of y, whether the network holds three maps or one."""
    if isinstance(attn, EvaAttention | AttentionRope) and attn.qkv is None:
        out: Tensor = getattr(attn, f"{part}_proj")(y)
        return out
    place = "qkv".index(part)
    weight = attn.qkv.weight.chunk(3)[place]
    if isinstance(attn, EvaAttention) and attn.q_bias is not None:  # EVA's keys have no bias
        return F.linear(y, weight, (attn.q_bias, attn.k_bias, attn.v_bias)[place])
    return F.linear(y, weight, None if attn.qkv.bias is None else attn.qkv.bias.chunk(3)[place])
