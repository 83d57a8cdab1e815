# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks in parts, so that an adapter can put them together in another order.

Every function keeps the operations and their order of timm's own `forward`: a block re-composed from its
branches equals the block bit for bit. Stochastic depth alone is ours (`networks.stochastic_depth`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from rekindle.core.errors import RequestError
from rekindle.networks.attention import attend
from rekindle.networks.stochastic_depth import BranchPath, Paths, add_branch

TimmBlock = Any
"""A block of timm, whose parts timm types as plain modules."""


@dataclass(frozen=True)
class BlockPass:
    """How a block is run.

    Attributes:
        rope: the rotary table, if there is one; of four dimensions where every image has its own.
        rows: return only the first tokens of each image (prefix tokens); the others are still read, so that the result is
            the same at a fraction of the work. In a last block that only feeds a loss on the class token, this saves most
            of it.
        paths: stochastic depth; None keeps every branch, whatever the mode.
        unread: [N, T], True for tokens whose keys and values nobody reads; they still read the others. Not with `rows`.
        one_graph: record every operation in the caller's graph, as checkpointing wants it.

    """

    rope: Tensor | None = None
    rows: int | None = None
    paths: Paths | None = None
    unread: Tensor | None = None
    one_graph: bool = False

    def computed(self, path: BranchPath | None) -> BlockPass:
        """The same for the images alone that keep a branch; what is given per image follows."""
        if path is None or path.kept is None:
            return self
        rope = self.rope[path.kept] if self.rope is not None and self.rope.ndim == 4 else self.rope
        return replace(self, rope=rope, unread=None if self.unread is None else self.unread[path.kept])


PLAIN = BlockPass()


class ComposedBlock(nn.Module, ABC):
    """A block around a timm block: what `Backbone` runs in place of the plain one."""

    block: TimmBlock
    enabled: bool
    """False runs the plain block."""

    @abstractmethod
    def forward(self, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
        """Return the tokens after the block: arguments as in `run_block`."""

    def first_row_attention(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """What the function of this name returns; overridden where queries or keys change."""
        return first_row_attention(self.block, x, rope)


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


def run_block(block: TimmBlock, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
    """Return the tokens [N, T, D] after `block`, plain or composed."""
    if isinstance(block, ComposedBlock):
        out: Tensor = block(x, how)
        return out
    check_block(block)
    kept, (attention_path, mlp_path) = x if how.rows is None else x[:, : how.rows], how.paths or (None, None)
    y = add_branch(kept, x, lambda x: attention_output(block, x, how.computed(attention_path)), attention_path)
    return add_branch(y, y, lambda y: mlp_output(block, y), mlp_path)


def recompute_block(block: TimmBlock, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
    """What `run_block` returns, keeping the block's input alone: its activations are computed again on the way back.

    They are computed with the weights in force now, also if these are bfloat16 copies that are gone by then.
    """
    runner = _Runner(block)
    names, tensors = zip(*runner.named_parameters(), strict=True)

    def run(x: Tensor, *tensors: Tensor) -> Tensor:
        out: Tensor = functional_call(runner, dict(zip(names, tensors, strict=True)), (x, how))
        return out

    out: Tensor = checkpoint(run, x, *tensors, use_reentrant=False)
    return out


class _Runner(nn.Module):
    """`run_block` as a module, so that its weights can be handed in."""

    def __init__(self, block: TimmBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, how: BlockPass) -> Tensor:
        return run_block(self.block, x, how)


def attention_output(block: TimmBlock, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
    """Return LayerScale(Attention(norm1(x))): the attention branch before stochastic depth, of all or the first rows."""
    y, mask = block.norm1(x), None
    if how.unread is not None:
        if how.rows is not None:
            raise ValueError("tokens that nobody reads are not supported where only the first rows are computed")
        hidden = torch.zeros_like(how.unread, dtype=y.dtype).masked_fill_(how.unread, torch.finfo(y.dtype).min)
        mask = hidden[:, None, None]
    attended: Tensor
    if how.rows is not None:
        attended = _attend_first(block.attn, y, how.rope, how.rows)
    elif isinstance(block, EvaBlock):
        attended = block.attn(y, rope=how.rope, attn_mask=mask)
    else:
        attended = attend(block.attn, y, mask)
    if isinstance(block, EvaBlock):
        return attended if block.gamma_1 is None else block.gamma_1 * attended
    check_block(block)
    out: Tensor = block.ls1(attended)
    return out


def mlp_output(block: TimmBlock, x: Tensor) -> Tensor:
    """Return LayerScale(MLP(norm2(x))): the MLP branch before stochastic depth."""
    if isinstance(block, EvaBlock):
        out: Tensor = block.mlp(block.norm2(x))
        return out if block.gamma_2 is None else block.gamma_2 * out
    check_block(block)
    out = block.ls2(block.mlp(block.norm2(x)))
    return out


@torch.no_grad()
def first_row_attention(
    block: TimmBlock, x: Float[Tensor, "N T D"], rope: Tensor | None = None
) -> Float[Tensor, "N heads T"]:
    """Return the first token's attention to all tokens, from the block's input; no gradient passes.

    One row is computed beside the block, so the block itself keeps its fused kernel.
    """
    if isinstance(block, ComposedBlock):
        return block.first_row_attention(x, rope)
    check_block(block)
    attn = block.attn
    q, k = queries_and_keys(attn, block.norm1(x), rope, 1)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    row: Tensor = scores.float().softmax(dim=-1)[:, :, 0]
    return row


def _attend_first(attn: Any, y: Tensor, rope: Tensor | None, rows: int) -> Tensor:
    """What `attn(y)` gives for the first `rows` tokens: their queries alone, all keys and values."""
    q, k = queries_and_keys(attn, y, rope, rows)
    v = by_head(project(attn, "v", y), q.shape[-1])
    v = v.repeat_interleave(attn.num_heads // v.shape[1], dim=1)
    if attn.fused_attn:
        read = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    else:
        read = attn.attn_drop(((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
    read = attn.norm(read.transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)  # older releases of timm have none
    if gate is not None:
        read = read * gate(y[:, :rows]).sigmoid()
    out: Tensor = attn.proj_drop(attn.proj(read))
    return out


def queries_and_keys(attn: Any, y: Tensor, rope: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Return the queries of the first `rows` tokens and all keys, [N, heads, ., D / heads], normed and rotated.

    The first tokens are prefix tokens, whose queries never turn.
    """
    heads = attn.num_heads
    q = project(attn, "q", y[:, :rows])
    q, k = by_head(q, q.shape[-1] // heads), by_head(project(attn, "k", y), q.shape[-1] // heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        prefix = attn.num_prefix_tokens
        rotated = apply_rot_embed_cat(k[:, :, prefix:], rope, half=attn.rotate_half).to(k.dtype)
        k = torch.cat([k[:, :, :prefix], rotated], dim=2)
    return q, k.repeat_interleave(heads // k.shape[1], dim=1)


def by_head(values: Tensor, width: int) -> Tensor:
    """Cut the numbers of the heads apart: [N, T, heads * width] -> [N, heads, T, width]."""
    return values.reshape(*values.shape[:2], -1, width).transpose(1, 2)


def project(attn: Any, part: Literal["q", "k", "v"], y: Tensor) -> Tensor:
    """Return the queries, keys or values [N, T, .] of the normed tokens y, whether the network holds three maps or one."""
    if isinstance(attn, EvaAttention | AttentionRope) and attn.qkv is None:
        out: Tensor = getattr(attn, f"{part}_proj")(y)
        return out
    place = "qkv".index(part)
    weight = attn.qkv.weight.chunk(3)[place].to(y.dtype)  # of a packed map, which has no type of its own
    if isinstance(attn, EvaAttention) and attn.q_bias is not None:  # EVA's keys have no bias
        return F.linear(y, weight, (attn.q_bias, attn.k_bias, attn.v_bias)[place])
    return F.linear(y, weight, None if attn.qkv.bias is None else attn.qkv.bias.chunk(3)[place].to(y.dtype))
