# SPDX-License-Identifier: Apache-2.0
"""Device and precision of a run, decided once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rekindle.pretraining.options import PretrainOptions


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and how.

    Attributes:
        is_gpu: on a GPU.
        precision: `fp32`, or `bf16` with float32 weights and losses.
    """

    is_gpu: bool
    precision: Literal["fp32", "bf16"]

    @property
    def is_bf16(self) -> bool:
        """Activations are bfloat16."""
        return self.precision == "bf16"


def machine_of(options: PretrainOptions) -> Machine:
    """The machine that the options ask for; `auto` takes a GPU where there is one, and bfloat16 where it has that."""
    is_gpu = options.accelerator == "gpu" or (options.accelerator == "auto" and torch.cuda.is_available())
    if options.precision != "auto":
        return Machine(is_gpu, options.precision)
    return Machine(is_gpu, "bf16" if is_gpu and torch.cuda.is_bf16_supported() else "fp32")
