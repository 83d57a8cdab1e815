# SPDX-License-Identifier: Apache-2.0
"""Counting without computing: products, convolutions and attention give noise of the right shape, stride and type.

What is counted of a step (operations, FLOPs, bytes kept) does not depend on what its products are, and computing them takes
minutes on a processor without instructions for bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from rekindle.bench.counting import FLOP_FORMULAS

_COUNTED = frozenset([*flop_registry, *FLOP_FORMULAS])


class Uncomputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives noise for every operation whose FLOPs are counted; enter it before `counting`, which then still sees it.

    Noise and not zeros: the gradient of a norm, for one, is not finite at zero, and a step that is not finite stops.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noise = torch.empty(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._overloadpacket not in _COUNTED:
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:  # mm(a, b, out=c)
            return self._fill((kwargs or {})["out"])
        device = next(a.device for a in args if isinstance(a, Tensor))
        shapes, named = tree_map_only(Tensor, lambda t: _like(t, torch.device("meta")), (args, kwargs or {}))
        return tree_map_only(Tensor, lambda t: self._fill(_like(t, device)), func(*shapes, **named))

    def _fill(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.zero_()
        if tensor.numel() > len(self._noise):
            self._noise = torch.rand(tensor.numel(), generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
        return tensor.copy_(self._noise[: tensor.numel()].view(tensor.shape))


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
