# SPDX-License-Identifier: Apache-2.0
"""Options of self-distillation: head, temperatures, teacher; without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rekindle.core.options import Options


class DistillationOptions(Options):
    """Head and teacher of a self-distilling method; defaults as continual pre-training uses them (GLARE, appendix)."""

    num_prototypes: int = Field(8192, ge=2)
    """Outputs K of the head. GLARE: 8192; DINO's script: 65536."""
    head_hidden: int = Field(2048, ge=1)
    """Width of the head's hidden layers."""
    head_bottleneck: int = Field(256, ge=1)
    """Width before the prototypes."""
    norm_last_layer: bool = False
    """Keep the prototypes' gain at 1, so that logits are cosines."""
    student_temperature: float = Field(0.1, gt=0)
    """Softmax temperature of the student."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Softmax temperature of the teacher, before and after its warm-up."""
    teacher_temperature_epochs: int = Field(30, ge=0)
    """Epochs of that warm-up; at most 0.3 of the run."""
    momentum: tuple[float, float] = (0.996, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    freeze_last_layer_epochs: int = Field(1, ge=0)
    """Epochs in which the prototypes do not move."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated."""


class CentredOptions(DistillationOptions):
    """The same for a method whose targets are centred."""

    centre_momentum: float = Field(0.9, ge=0, le=1)
    """Weight of a centre's old value."""
