# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth, drawn for all blocks at once: a branch that an image drops is not computed for it, where that pays.

Huang et al., arXiv:1603.09382, with timm's scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.rng import view_uniform


@dataclass(frozen=True)
class BranchPath:
    """What a branch of a block counts for each image.

    Attributes:
        factor: [N, 1, 1]; 0 drops the branch, 1 / p keeps it.
        kept: [n] the images to compute, for the others drop it; None computes all of them.
        scale: the factor of those, 1 / p.
    """

    factor: Tensor
    kept: Tensor | None = None
    scale: float = 1.0


Paths = tuple[BranchPath, BranchPath]
"""Of a block's attention branch and of its MLP branch."""


def draw_paths(keep: Float[Tensor, " branches"], images: int, *, skip: bool = False) -> list[Paths]:
    """Stochastic depth of all blocks: per image and branch 0, or 1 / p with the branch's probability p to be kept.

    Args: keep, p of each block's attention and MLP branch in turn; skip, name the images that keep a branch, so that it is
    computed for them alone. A branch that all images drop is computed: what trains in it has a gradient, which is zero.
    """
    kept_at = keep[:, None]
    drawn = (view_uniform(images, len(keep)).T.to(keep.device) < kept_at).to(keep.dtype).div_(kept_at)
    paths = [BranchPath(factor) for factor in drawn[:, :, None, None].unbind()]
    if skip:
        for branch, factors in enumerate(drawn.tolist()):
            kept = [image for image, factor in enumerate(factors) if factor]
            if 0 < len(kept) < images:
                index = torch.tensor(kept, device=drawn.device)
                paths[branch] = BranchPath(paths[branch].factor, index, factors[kept[0]])
    return list(zip(paths[::2], paths[1::2], strict=True))


def add_branch(stream: Tensor, x: Tensor, branch: Callable[[Tensor], Tensor], path: BranchPath | None) -> Tensor:
    """Return stream + path * branch(x) [N, T, D]; `branch` gets the images that keep it, in their order."""
    if path is None:
        return stream + branch(x)
    if path.kept is not None:
        own = branch(x[path.kept]).to(stream.dtype)  # autocast may have lowered it
        return stream.index_add(0, path.kept, own, alpha=path.scale)
    out: Tensor = _AddScaled.apply(stream, branch(x), path.factor)
    return out


class _AddScaled(torch.autograd.Function):
    """x + factor * branch in one pass; `addcmul` would also keep the branch for a gradient that nobody wants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return torch.addcmul(x, branch, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient, gradient * factor, None
