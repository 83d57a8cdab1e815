# SPDX-License-Identifier: Apache-2.0
"""Options of label propagation in videos. Torch-free."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rekindle.evaluation.options import Presets, ProtocolOptions


class VideoOptions(ProtocolOptions):
    """Label propagation in videos."""

    size_px: int = Field(default=240, ge=1)
    """Short side of the resized frames (papers: 480); the long one is cut to a multiple of 64 px."""
    num_context: int = Field(default=7, ge=0)
    """Last frames whose labels are used, beside the first frame."""
    num_neighbours: int = Field(default=5, ge=1)
    """Patches of all those frames that a patch takes its label from."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Of the weights exp(cosine / temperature)."""
    radius: int = Field(default=6, ge=0)
    """Rows and columns of patches around its own place in which a patch looks (papers: 12, at twice the size)."""
    masks: str = ""
    """Folder to write the masks of every frame to, as indexed PNG; nothing is written without it."""

    PRESETS: ClassVar[Presets] = {"paper": {"size_px": 480, "radius": 12}}
