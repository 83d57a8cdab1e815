# SPDX-License-Identifier: Apache-2.0
"""Float32 where low precision would change the mathematics (softmax, cross-entropy, centres, geometry)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


class ExactParameters(nn.Module):
    """A module whose parameters keep their type where a step computes in low precision: weights are computed from them."""


def _widen(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside autocast, with bfloat16 and float16 tensor arguments widened to float32.

    float64 stays float64, so gradient checks keep their precision.
    """

    @functools.wraps(function)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device_type=device, enabled=False):
            return function(*map(_widen, args), **{k: _widen(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return wide
