# SPDX-License-Identifier: Apache-2.0
"""InfoNCE between images: each query has to find its own key among those of all images."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rekindle.core.precision import full_precision
from rekindle.objectives.pairs import count_per_process

PatchNegatives = Literal["other_images_all", "other_images_same_position"]
BLOCK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 29}
"""Logits of a block of `patch_nce`: what the outer caches of a CPU still hold, and enough to fill a GPU."""


@full_precision
def info_nce(
    queries: Float[Tensor, "B C"], keys: Float[Tensor, "G C"], *, temperature: float, first: int = 0
) -> Float[Tensor, ""]:
    """InfoNCE with cosines: -log softmax(q k / temperature) at each query's own key, mean over queries, in nats.

    MoCo v3 (Chen et al., arXiv:2104.02057), eq. 1 and algorithm 1, without its factor 2 * temperature.

    Args: queries; keys of all processes, without gradient; temperature > 0; first, row of the first query's own key.
    Raises: ValueError if temperature <= 0 or the own keys are not among the keys.
    """
    if temperature <= 0 or not 0 <= first <= len(keys) - len(queries):
        raise ValueError(f"need temperature > 0 and own keys among the {len(keys)}; got {temperature}, first={first}")
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys.detach(), dim=-1).T / temperature
    return F.cross_entropy(logits, first + torch.arange(len(queries), device=queries.device))


@full_precision
def cross_view_nce(
    queries: Float[Tensor, "S B C"], keys: Float[Tensor, "T G C"], *, temperature: float, first: int = 0
) -> tuple[Float[Tensor, "S T"], Float[Tensor, "S T"]]:
    """InfoNCE of every query view against every key view, and the share of queries whose own key is the nearest.

    `info_nce` for each pair of views: the negatives of a query are the keys of the other images in that view (MMC, L_CLS).

    Args: queries; keys of all processes, without gradient; temperature > 0; first, the image at which this process's begin.
    Raises: ValueError if temperature <= 0 or the own keys are not among the keys.
    """
    images = queries.shape[1]
    if temperature <= 0 or not 0 <= first <= keys.shape[1] - images:
        raise ValueError(
            f"need temperature > 0 and own keys among the {keys.shape[1]}; got {temperature}, first={first}"
        )
    unit, others = F.normalize(queries, dim=-1), F.normalize(keys.detach(), dim=-1)
    logits = torch.einsum("sbc,tgc->stbg", unit, others) / temperature
    target = (first + torch.arange(images, device=queries.device)).expand(logits.shape[:3])
    losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
    hits = (logits.argmax(dim=-1) == target).float()
    return losses.mean(dim=-1), hits.mean(dim=-1)


def patch_nce(
    queries: Float[Tensor, "B P C"],
    keys: Float[Tensor, "G P C"],
    *,
    temperature: float,
    first: int = 0,
    negatives: PatchNegatives = "other_images_all",
    positions: Int[Tensor, "G n"] | None = None,
    weight: Float[Tensor, "B P"] | None = None,
    block_bytes: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE of each patch against the key at its own place, and the share of patches whose own key is the nearest.

    MMC, L_PAT. The negatives are keys of other images: all of their patches, or those at the query's position. Patches of the
    query's own image are no negatives. Logits exist a block of images at a time and are never kept: the gradient with
    respect to the queries is known as soon as they are.

    Args:
        queries: before normalisation; in bfloat16 the products are, the rest is float32.
        keys: of the same crops, without gradient; image `first + i` is the queries' image i.
        temperature: > 0.
        first: see keys.
        negatives: which patches of other images.
        positions: patches of each image that serve as negatives (all); of no use with "other_images_same_position".
        weight: of each query in the mean, >= 0, which is normalised over all processes; None: all alike.
        block_bytes: what the logits of a block may take (at least one image's); None: as suits the device.

    Raises: ValueError if temperature <= 0, the own keys are not among the keys, or there is no other image.
    """
    images, others = len(queries), len(keys)
    if temperature <= 0 or others < 2 or not 0 <= first <= others - images:
        raise ValueError(
            f"need temperature > 0 and own keys among those of at least two images; got temperature={temperature}, "
            f"{others} images, first={first}"
        )
    unit, key = unit_rows(queries), unit_rows(keys.detach())
    if weight is None:
        weight = torch.ones(queries.shape[:2], device=queries.device)
    weight = weight / count_per_process(weight.sum())
    with torch.autocast(device_type=queries.device.type, enabled=False):
        if negatives == "other_images_same_position":
            return _same_position(unit, key, weight, temperature, first)
        owner = torch.arange(others, device=keys.device)[:, None]
        if positions is None:
            rows, owner = key.flatten(0, 1), owner.expand(-1, keys.shape[1])
        else:
            rows, owner = key[owner, positions].flatten(0, 1), owner.expand_as(positions)
        size = BLOCK_BYTES.get(queries.device.type, 1 << 26) if block_bytes is None else block_bytes
        step = max(1, size // (4 * queries.shape[1] * len(rows)))
        own = key[first : first + images]
        loss, hits = _PatchNce.apply(unit, own, rows, owner.flatten(), weight, first, temperature, step)
    return loss, hits


def _same_position(unit: Tensor, keys: Tensor, weight: Tensor, temperature: float, first: int) -> tuple[Tensor, Tensor]:
    logits = torch.einsum("bpc,gpc->bgp", wide(unit), wide(keys)) / temperature
    target = (first + torch.arange(len(unit), device=unit.device))[:, None].expand_as(weight)
    losses = F.cross_entropy(logits, target, reduction="none")
    hits = (logits.argmax(dim=1) == target).float()
    return (losses * weight).sum(), hits.mean()


class _PatchNce(torch.autograd.Function):
    """Value and, with it, the gradient: dL/dq = w / tau * (sum_n p_n k_n + (p_own - 1) k_own)."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        own_keys: Tensor,
        negatives: Tensor,
        owner: Tensor,
        weight: Tensor,
        first: int,
        temperature: float,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        value, hits = (torch.zeros((), dtype=wide(queries).dtype, device=queries.device) for _ in range(2))
        gradient = torch.zeros_like(queries)
        image = first + torch.arange(len(queries), device=queries.device)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            q, k, w = queries[part], own_keys[part], weight[part]
            own = (wide(q) * wide(k)).sum(dim=-1) / temperature
            logits = wide(q.flatten(0, 1) @ negatives.T).view(*own.shape, -1).div_(temperature)
            logits.masked_fill_((owner == image[part, None])[:, None], -torch.inf)
            nearest = logits.amax(dim=-1)
            top = torch.maximum(nearest, own)
            probs = logits.sub_(top[..., None]).exp_()
            own_prob = (own - top).exp()
            total = probs.sum(dim=-1) + own_prob
            value += ((top + total.log() - own) * w).sum()
            hits += (own >= nearest).sum()
            if ctx.needs_input_grad[0]:
                probs.mul_((w / (total * temperature))[..., None])
                pushed = probs.flatten(0, 1).to(q.dtype) @ negatives
                pulled = ((own_prob / total - 1) * w / temperature)[..., None] * wide(k)
                gradient[part] = (wide(pushed).view_as(k) + pulled).to(q.dtype)
        ctx.save_for_backward(gradient)
        hits /= weight.numel()
        ctx.mark_non_differentiable(hits)
        return value, hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        return own * gradient.to(own.dtype), *[None] * 7


def unit_rows(values: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """Rows of length 1, computed in float32 at least and returned in the type of the argument."""
    return F.normalize(wide(values), dim=-1).to(values.dtype)


def wide(values: Tensor) -> Tensor:
    """The values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
