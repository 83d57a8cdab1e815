# SPDX-License-Identifier: Apache-2.0
"""Collectives that are the identity in one process, so the mathematics need not ask how many there are."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """True inside an initialised process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes (1 without a process group)."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Index of this process (0 without a process group)."""
    return dist.get_rank() if is_distributed() else 0


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, without gradient; the input is left as it is."""
    if not is_distributed():
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of `tensor` over all processes, without gradient."""
    if not is_distributed():
        return tensor.detach()
    largest = tensor.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def all_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes in order of rank, without gradient, and the row at which this process's own begin.

    Every process must have the same number of rows.
    """
    if not is_distributed():
        return tensor.detach(), 0
    own = tensor.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts), rank() * len(own)


def all_sum_with_gradient(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes; its gradient is the sum of the gradients of all processes."""
    if not is_distributed():
        return tensor
    total: Tensor = _AllSum.apply(tensor)
    return total


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)
