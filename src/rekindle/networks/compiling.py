# SPDX-License-Identifier: Apache-2.0
"""Blocks through torch.compile, where it works; where it does not, the same numbers come slower."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import run_block


def compile_blocks(module: nn.Module, device: torch.device) -> str | None:
    """Compile the blocks of every backbone in `module`, and try them forward and back.

    Block by block: the compiler's cache then serves all blocks, at every depth, and the next run.

    Returns: None, or one line that says why all run uncompiled.
    """
    backbones = [m for m in module.modules() if isinstance(m, Backbone)]
    try:
        for backbone in backbones:
            backbone.compiled = {b: torch.compile(partial(run_block, b)) for b in backbone.vit.blocks}
            side = 2 * backbone.patch_size
            probe = torch.zeros(2, 3, side, side, device=device)
            trained = [p for p in backbone.parameters() if p.requires_grad]
            found = backbone.to(device)(probe).patches.sum()
            if trained:
                torch.autograd.grad(found, trained, allow_unused=True)
    except Exception as error:  # the compiler calls other compilers: what can fail there has no common type
        for backbone in backbones:
            backbone.compiled = None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"torch.compile failed ({type(error).__name__}: {reason[:200]}); going on without it, with the same numbers"
        )
    return None
