# SPDX-License-Identifier: Apache-2.0
"""Bfloat16 computation with float32 weights.

Autocast keeps layer norms and the residual stream in float32 and rounds frozen weights again at each use. Here a step
computes with bfloat16 copies of the weights, so activations are bfloat16 from the pixels to the last block: half the bytes,
as mixed precision under FSDP does it. What must not be rounded stays: weights, their averages, optimizer state and centres
are float32, softmaxes and cross-entropies widen their arguments (`core.precision.full_precision`), and a weight that is
computed from others (weight norm) is computed from float32 ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from rekindle.core.precision import ExactParameters
from rekindle.methods.base import Method

Result = TypeVar("Result")


class _Work(nn.Module):
    """A method as the module in which weights are replaced while something is computed with it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, work: Callable[[], Result]) -> Result:
        return work()


class ComputeCopies:
    """The copies of a method's parameters that a step computes with.

    What never changes is copied once; what trains is copied at each call, with the gradient going back to the float32
    weight; the teacher's averages are copied at each call without.
    """

    def __init__(self, method: Method, dtype: torch.dtype) -> None:
        self._dtype = dtype
        exact = {
            id(p)
            for module in method.modules()
            if is_parametrized(module) or isinstance(module, ExactParameters)
            for p in module.parameters(recurse=True)
        }
        constant = method.frozen_names()
        self._names: dict[int, list[str]] = {}
        self._kept: dict[int, Tensor] = {}
        self._averages: list[tuple[Tensor, Tensor]] = []
        self._trained: list[nn.Parameter] = []
        for name, parameter in method.named_parameters(remove_duplicate=False):
            key = id(parameter)
            if key in exact or not parameter.is_floating_point():
                continue
            is_new = key not in self._names
            self._names.setdefault(key, []).append(name)
            if not is_new:
                continue
            if parameter.requires_grad:
                self._trained.append(parameter)
                continue
            self._kept[key] = parameter.detach().to(dtype)
            if name not in constant:
                self._averages.append((self._kept[key], parameter))

    @property
    def standing(self) -> list[Tensor]:
        """Copies that are there from the first step to the last: of what is frozen, and of the averages."""
        return list(self._kept.values())

    def call(self, method: Method, work: Callable[[], Result]) -> Result:
        """Return what `work` returns where the method computes with the copies."""
        if self._averages:
            torch._foreach_copy_([copy for copy, _ in self._averages], [p.detach() for _, p in self._averages])
        tensors = dict(self._kept)
        tensors.update({id(p): p.to(self._dtype) for p in self._trained})
        named = {f"method.{name}": tensors[key] for key, names in self._names.items() for name in names}
        found: Result = functional_call(_Work(method), named, (work,))
        return found
