# SPDX-License-Identifier: Apache-2.0
"""Attention of timm's plain blocks with a cheaper way back: the same numbers as timm's own `forward`, in both directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from torch import Tensor, nn


def attend(attn: Any, y: Float[Tensor, "N T D"], mask: Tensor | None = None) -> Float[Tensor, "N T D"]:
    """Return `attn(y, attn_mask=mask)`.

    Done here is the usual case of training: one map for q, k and v, no norms of q and k, no mask, no dropout. The rest is
    timm's, and so is everything that wants no gradient.
    """
    is_wanted = torch.is_grad_enabled() and y.requires_grad and not torch.compiler.is_compiling()
    if not is_wanted or mask is not None or not _is_usual(attn):
        out: Tensor = attn(y, attn_mask=mask)
        return out
    qkv = attn.qkv(y)
    if attn.fused_attn:
        q, k, v = _Heads.apply(qkv, attn.num_heads)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    else:
        read = _PlainAttention.apply(qkv, attn.num_heads, attn.scale)
    out = attn.proj(attn.norm(read))
    return out


def _is_usual(attn: Any) -> bool:
    gate = attn._modules.get("gate")  # older releases of timm have none
    return (
        type(attn) is Attention
        and gate is None
        and isinstance(attn.q_norm, nn.Identity)
        and isinstance(attn.k_norm, nn.Identity)
        and not (attn.training and (attn.attn_drop.p or attn.proj_drop.p))
        and not any(
            m._forward_hooks or m._forward_pre_hooks for m in (attn, attn.attn_drop)
        )  # who watches sees timm's own
    )


class _Heads(torch.autograd.Function):
    """q, k and v by head as views of [N, T, 3 D]; their gradients are put together in one pass instead of two."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _by_part(qkv, heads).unbind()
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.cat([g.transpose(1, 2).flatten(2) for g in gradients], dim=-1), None


class _PlainAttention(torch.autograd.Function):
    """Attention as products and a softmax; the way back computes the weights [N, heads, T, T] again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float) -> Tensor:
        split = _by_part(qkv, heads).contiguous()
        ctx.save_for_backward(split)
        ctx.scale = scale
        q, k, v = split.flatten(1, 2)
        return _joined(torch.bmm(_weights(q, k, scale), v), split[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (split,) = ctx.saved_tensors
        q, k, v = split.flatten(1, 2)
        weights = _weights(q, k, ctx.scale)
        pull = gradient.view(*gradient.shape[:2], split.shape[2], -1).transpose(1, 2).reshape(v.shape)
        back = torch.empty_like(split)
        to_q, to_k, to_v = back.flatten(1, 2)
        torch.bmm(weights.transpose(1, 2), pull, out=to_v)
        to_scores = torch._softmax_backward_data(torch.bmm(pull, v.transpose(1, 2)), weights, -1, weights.dtype)
        torch.baddbmm(to_q, to_scores, k, beta=0, alpha=ctx.scale, out=to_q)
        torch.baddbmm(to_k, to_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=to_k)
        return back.permute(1, 3, 0, 2, 4).flatten(2), None, None


def _by_part(qkv: Tensor, heads: int) -> Tensor:
    """[N, T, 3 D] -> [3, N, heads, T, D / heads], a view."""
    return qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    return scores.softmax(dim=-1)


def _joined(read: Tensor, like: Tensor) -> Tensor:
    """[N * heads, T, d] -> [N, T, heads * d], with the sizes of `like` [N, heads, T, d]."""
    return read.view(like.shape).transpose(1, 2).flatten(2)
