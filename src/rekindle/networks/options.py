# SPDX-License-Identifier: Apache-2.0
"""Options of the network that is read. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rekindle.core.options import Options


class NetworkOptions(Options):
    """How a model name or a checkpoint file becomes a backbone."""

    arch: str | None = None
    """Architecture of a file that does not tell: a timm name, or `vit:width=384,depth=12,heads=6`."""
    pos_interp: Literal["dino", "size", "antialias"] = "dino"
    """How positions follow the image size: as DINO trains (plus 0.1), to a target size, or as timm does."""
    positions: Literal["learnt", "sincos"] = "learnt"
    """Position table of a network that is drawn at random: learnt, or the fixed sines and cosines of rows and columns (MAE,
    MoCo v3, FLSL). A checkpoint brings its own, and a network with rotary positions has no table."""
    drop_path: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Stochastic depth of the student: rate of the last block, rising linearly from 0 at the first."""
    patch_norm: Literal["final", "udi_norm1"] = "final"
    """Norm of the patch tokens: the final one, or the frozen `norm1` that UDI trained for its patches."""
    flsl_cls: Literal["new", "meanpool"] = "new"
    """FLSL files hold no trained class token: add a fresh one, or let the mean patch token play its part."""
    add_register: bool = False
    """Add a fresh register after the class token, which trains (UDI's second class token, where a backbone has none)."""
    allow_partial: bool = False
    """Accept a checkpoint in which tensors are missing, unexpected or of another shape."""
    checkpoint_key: str | None = None
    """Entry of the checkpoint file to read (`teacher`, `student`, ...); None: the teacher, if present."""
