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
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
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
        return tree_map_only(Tensor, lambda t: self._fill(_like(t, device)), _shaped(func, args, kwargs or {}))

    def _fill(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.zero_()
        if tensor.numel() > len(self._noise):
            self._noise = torch.rand(tensor.numel(), generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
        return tensor.copy_(self._noise[: tensor.numel()].view(tensor.shape))


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes in float32 every counted operation that is asked for in bfloat16, and rounds what it gives.

    The step is computed, but not by the loops that stand in for instructions a processor does not have.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensors = [x for x in tree_flatten((args, given))[0] if isinstance(x, Tensor)]
        if func._overloadpacket not in _COUNTED or all(t.dtype != torch.bfloat16 for t in tensors):
            return func(*args, **given)
        wide, named = tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, (args, given))
        found = func(*wide, **named)
        if func._schema.is_mutable:
            return given["out"].copy_(found)
        leaves, spec = tree_flatten(_shaped(func, args, given))
        pairs = zip(leaves, tree_flatten(found)[0], strict=True)
        return tree_unflatten([_like(a, b.device).copy_(b) if isinstance(a, Tensor) else b for a, b in pairs], spec)


def _shaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that computes nothing; most of a step repeats what another block has asked."""
    leaves, spec = tree_flatten((args, kwargs))
    asked = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else (type(x), x) for x in leaves]
    key = (func, str(spec), *asked)
    if key not in _SHAPED:
        shapes, named = tree_map_only(Tensor, lambda t: _like(t, torch.device("meta")), (args, kwargs))
        _SHAPED[key] = func(*shapes, **named)
    return _SHAPED[key]


_SHAPED: dict[Any, Any] = {}


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
