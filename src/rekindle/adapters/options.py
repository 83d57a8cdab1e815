# SPDX-License-Identifier: Apache-2.0
"""Options of the adapters. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rekindle.core.options import Options


class AdapterOptions(Options):
    """Which adapter goes where, and its size. Defaults: GLARE with UniAdapter."""

    kind: str = "uniadapter"
    """Kind of adapter (`uniadapter`)."""
    position: Literal["after_attn", "after_block", "parallel_mlp", "attn_branch"] = "after_attn"
    """Place: after the attention residual, after the block, beside the MLP, or in the attention branch."""
    rank: int = Field(default=512, ge=1)
    """Width of the bottleneck; 512 is the only one that gives the paper's two parameter counts."""
    scale: float = Field(default=0.1, gt=0.0)
    """Factor s on the adapter's output (UniAdapter's default)."""
    learn_scale: bool = False
    """Train s, starting from `scale`."""
    in_full_training: bool = False
    """Put adapters in with train=all or norm as well; GLARE's 34 M parameters of HPT count them."""
    layernorm: bool | None = None
    """LayerNorm before the down-projection; None: only for `parallel_mlp`, as in UniAdapter's code."""
