# SPDX-License-Identifier: Apache-2.0
"""The machine's limit: how fast it multiplies matrices of the size that a ViT-S block does, in the case's precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rekindle.bench.stage import case_device, settle, taken
from rekindle.core.rng import generator

_CPU_ROWS, _GPU_ROWS = 2048, 131072
_IN, _OUT = 384, 1536


class MatrixProduct:
    """Products [rows, 384] x [384, 1536] in turn with the other sides, so that all meet the same neighbours.

    A step cannot be faster than its operations at this rate; norms, activations and memory traffic come on top.

    Args: case; times, products of a round.
    """

    def __init__(self, case: Mapping[str, object], times: int = 50) -> None:
        self._device = case_device(case)
        self._is_bf16 = taken(case, "precision", str) == "bf16"
        dtype = torch.bfloat16 if self._is_bf16 else torch.float32
        rows = _GPU_ROWS if self._device.type == "cuda" else _CPU_ROWS
        source = generator(taken(case, "seed", int), "bench limit")
        self._left = torch.randn(rows, _IN, generator=source).to(self._device, dtype)
        self._right = torch.randn(_IN, _OUT, generator=source).to(self._device, dtype)
        self._out = torch.empty(rows, _OUT, device=self._device, dtype=dtype)
        self._times = times

    def run(self) -> int:
        """Multiply so many times; no image is dealt with."""
        for _ in range(self._times):
            torch.mm(self._left, self._right, out=self._out)
        settle(self._device)
        return 0

    def facts(self) -> dict[str, object]:
        """FLOPs of a round."""
        return {"flops": 2 * self._times * self._left.shape[0] * _IN * _OUT, "torch": torch.__version__}
