# SPDX-License-Identifier: Apache-2.0
"""Options of the network that is read. Torch-free."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from rekindle.core.options import Options


class NetworkOptions(Options):
    """How a model name or a checkpoint file becomes a backbone."""

    arch: str | None = None
    """Architecture of a file that does not tell: a timm name, or `vit:width=384,depth=12,heads=6`."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean of the pixels that the weights expect, per channel, levels in [0, 1]; None: as the source says, else ImageNet's."""
    pixel_std: tuple[float, float, float] | None = None
    """Their deviation; given together with the mean. A run folder keeps its own."""
    grid: str | None = None
    """Height and width of a file's position table in patches, as in 4x9; None: as the source says, else a square."""
    pos_interp: Literal["auto", "dino", "size", "antialias"] = "auto"
    """How positions follow the image size: as DINO and DINOv2 train (plus 0.1), to a target size as transformers does, or with
    a low-pass filter as timm and DINOv2 with registers do; auto: antialias where registers have no positions, else dino."""
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
    """Entry of the checkpoint file to read, or network inside it (`teacher`, `student`, ...); None: the teacher, if present."""

    @model_validator(mode="after")
    def _consistent(self) -> NetworkOptions:
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("pixel_mean and pixel_std are given together; give both")
        if self.pixel_mean is not None and self.pixel_std is not None:
            if not all(0.0 <= x <= 1.0 for x in self.pixel_mean) or not all(0.0 < x <= 1.0 for x in self.pixel_std):
                raise ValueError(
                    "pixel_mean and pixel_std are of levels in [0, 1]; divide those of levels 0 to 255 by 255"
                )
        if self.grid is not None and self.native_grid is None:
            raise ValueError(f"grid = {self.grid} is no height and width in patches; write 4x9")
        return self

    @property
    def native_grid(self) -> tuple[int, int] | None:
        """`grid` as numbers."""
        found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", self.grid or "")
        return None if found is None else (int(found[1]), int(found[2]))
