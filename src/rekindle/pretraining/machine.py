# SPDX-License-Identifier: Apache-2.0
"""Device and precision of a run, decided once."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from rekindle.core.devices import has_gpu
from rekindle.core.processor import instruction_sets, native_bf16
from rekindle.pretraining.options import PretrainOptions, Resolved

ROWS, WIDTH, HIDDEN = 512, 384, 1536
"""Of the product whose time is taken: what a ViT-S block multiplies for two images."""


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and how.

    Attributes:
        is_gpu: on a GPU.
        precision: `fp32`, or `bf16` with float32 weights and losses.
        why: it is that, where nobody asked.
    """

    is_gpu: bool
    precision: Literal["fp32", "bf16"]
    why: str = "asked for"

    @property
    def is_bf16(self) -> bool:
        """Activations are bfloat16."""
        return self.precision == "bf16"


def machine_of(options: PretrainOptions) -> Machine:
    """The machine that the options ask for; `auto` takes a GPU where there is one, and bfloat16 where it is native."""
    is_gpu = has_gpu(options.accelerator)
    if options.precision != "auto":
        return Machine(is_gpu, options.precision)
    if is_gpu:
        has = torch.cuda.is_bf16_supported()
        return Machine(is_gpu, "bf16" if has else "fp32", f"this GPU has {'' if has else 'no '}bfloat16")
    native = native_bf16()
    if native is not None:
        return Machine(is_gpu, "bf16", f"this processor has {native}")
    return Machine(is_gpu, "fp32", f"this processor, {_sets()}, does not multiply bfloat16 by itself")


def with_precision(resolved: Resolved, machine: Machine) -> Resolved:
    """Write what `auto` came to into the options, so that a resumed run computes alike wherever it goes on."""
    if resolved.options.precision != "auto":
        return resolved
    return replace(
        resolved,
        options=resolved.options.model_copy(update={"precision": machine.precision}),
        sources=resolved.sources | {"precision": "machine"},
        reasons=resolved.reasons | {"precision": machine.why},
    )


def precision_line(machine: Machine) -> str:
    """What the run computes in and why, in one line; a warning where that is slower here than float32 would be."""
    if machine.is_bf16 and not machine.is_gpu and native_bf16() is None:
        return (
            f"warning: --precision bf16 takes {bf16_factor():.1f} times as long as fp32 here (a block's product, timed just "
            f"now): this processor, {_sets()}, does not multiply bfloat16 by itself; --precision fp32 or auto is faster"
        )
    return f"precision: {machine.precision} ({machine.why})"


def bf16_factor() -> float:
    """Time of a block's matrix product in bfloat16 over that in float32, on this CPU now: medians of five in turn."""
    left, right = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, HIDDEN)
    pairs = {dtype: (left.to(dtype), right.to(dtype)) for dtype in (torch.bfloat16, torch.float32)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    for _ in range(6):  # the first of each prepares the product
        for dtype, factors in pairs.items():
            began = time.perf_counter()
            torch.mm(*factors)
            seconds[dtype].append(time.perf_counter() - began)
    low, full = (statistics.median(times[1:]) for times in seconds.values())
    return low / full


def _sets() -> str:
    return "with " + ", ".join(instruction_sets()) if instruction_sets() else "whose instruction sets are not known"
