# SPDX-License-Identifier: Apache-2.0
"""Devices: whether a run computes on a GPU."""

from __future__ import annotations

from rekindle.core.options import Accelerator


def has_gpu(accelerator: Accelerator) -> bool:
    """Whether `accelerator` means a GPU here; `auto` takes one where there is one. Loads torch for `auto` alone."""
    if accelerator != "auto":
        return accelerator == "gpu"
    import torch  # a second that no answer about options alone has to wait for

    return torch.cuda.is_available()
