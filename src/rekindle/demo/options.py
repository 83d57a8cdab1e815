# SPDX-License-Identifier: Apache-2.0
"""Options of the demo. Torch-free."""

from __future__ import annotations

from pydantic import Field

from rekindle.core.options import Options


class DemoOptions(Options):
    """The whole story, nothing downloaded: draw scenes, adapt the built-in base to them, compare, look."""

    out: str = "demo-out"
    """Folder of the demo: new, empty, or an earlier demo's, which is then replaced."""
    seed: int = Field(0, ge=0)
    """Seed of the scenes and of the training."""
    steps: int = Field(240, ge=1)
    """Optimizer steps of the adaptation."""
    images: int = Field(360, ge=16)
    """Scenes without labels to adapt on."""
    labelled: int = Field(80, ge=8)
    """Scenes with masks that heads learn from."""
    val: int = Field(100, ge=8)
    """Scenes with masks that the verdict is of."""
    seeds: int = Field(3, ge=1)
    """Seeds of every evaluation."""
