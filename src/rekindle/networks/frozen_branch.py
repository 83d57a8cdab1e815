# SPDX-License-Identifier: Apache-2.0
"""Residual branches whose weights stay still: on the way back, stream and branch join in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from rekindle.networks.stochastic_depth import BranchPath


def onto_stream(x: Tensor, branch: Callable[[Tensor], Tensor], path: BranchPath | None) -> Tensor:
    """Return x + path * branch(x) [N, T, D], where nothing trains in the branch.

    A branch is linear in its gradient, so its factors wait for the sum: dL/dx = g + path * J^T g is one operation, where
    autograd does two or three. The way back can be gone once.

    Args: branch, computes from the images that keep it and weights without gradient alone, and gives a tensor of its own;
    path, stochastic depth, or None.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _added(x, branch(_computed(x, path)), path)
    joined: Tensor = _OntoStream.apply(x, path, branch)
    return joined


class _OntoStream(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, path: BranchPath | None, branch: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            inner = _computed(x.detach(), path).requires_grad_()
            out = branch(inner.view_as(inner))  # hooks on modules expect no leaf
        # The edge is the graph without its result, which nobody needs again.
        ctx.graph, ctx.path = (get_gradient_edge(out), inner), path
        return _added(x, out.detach(), path)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.graph is None:
            raise RuntimeError("a frozen branch's graph is gone after one way back; compute the forward pass again")
        (end, inner), path = ctx.graph, ctx.path
        ctx.graph = None
        (own,) = torch.autograd.grad((end,), (inner,), (_computed(gradient, path),))
        del end
        return _added(gradient, own, path), None, None


def _computed(x: Tensor, path: BranchPath | None) -> Tensor:
    """The images that the branch is computed for."""
    return x if path is None or path.kept is None else x[path.kept]


def _added(stream: Tensor, branch: Tensor, path: BranchPath | None) -> Tensor:
    """Add path * branch to the stream, written over the branch where that loses no precision."""
    if path is not None and path.kept is not None:
        return torch.index_add(stream, 0, path.kept, branch.to(stream.dtype), alpha=path.scale)
    out = branch if branch.dtype == stream.dtype else None
    return torch.add(stream, branch, out=out) if path is None else torch.addcmul(stream, branch, path.factor, out=out)
