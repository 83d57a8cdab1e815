# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.heads import Comparison, HeadPair
from rekindle.methods.shares import gradient_in_advance
from rekindle.methods.teacher import Centre, EmaTeacher, cancel_gradients, collapse_alarms, teacher_temperature
from rekindle.networks.backbone import Backbone
from rekindle.networks.heads import DinoHead
from rekindle.objectives.pairs import cross_view_pairs
from rekindle.objectives.prototypes import TargetRows, WeighedTerms
from rekindle.views.batch import ViewBatch


class DinoOptions(Options):
    """Options of DINO; defaults as continual pre-training uses them (GLARE, section 8.1 of the specification)."""

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
    centre_momentum: float = Field(0.9, ge=0, le=1)
    """Weight of the centre's old value."""
    freeze_last_layer_epochs: int = Field(1, ge=0)
    """Epochs in which the prototypes do not move."""
    export: str = Field("teacher", pattern="^(teacher|student)$")
    """Which network is saved and evaluated."""


class StudentWithHead(nn.Module):
    """A backbone and its projection head: what the teacher holds an average of."""

    def __init__(self, backbone: Backbone, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class Dino(Method):
    """Class tokens of all crops match the teacher's class tokens of the other global crop (eq. 1-4).

    Deviations: none in the loss. The defaults are those of continual pre-training with adapters; training from scratch
    takes DINO's own through `optim`.
    """

    Config = DinoOptions
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.4,
        "views.global_scale": (0.4, 1.0),
        "views.local_scale": (0.05, 0.4),
        "views.num_local": 8,
    }

    def __init__(self, config: DinoOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        head = DinoHead(
            backbone.width,
            config.num_prototypes,
            hidden=config.head_hidden,
            bottleneck=config.head_bottleneck,
            norm_last_layer=config.norm_last_layer,
        )
        self.student = StudentWithHead(backbone, head)
        self.teacher = EmaTeacher(self.student)
        self.centre = Centre(config.num_prototypes, config.centre_momentum)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Cross-entropy over all pairs of a student view and another global view of the teacher (eq. 3)."""
        config, teacher = self.config, self.teacher.network
        temperature = teacher_temperature(progress, config.teacher_temperature, config.teacher_temperature_epochs)
        heads = HeadPair(
            self.student.head,
            teacher.head,
            student_temperature=config.student_temperature,
            teacher_temperature=temperature,
        )
        with torch.no_grad():
            targets = heads.targets(teacher.backbone.class_token(batch.global_views.pixels.flatten(0, 1)), self.centre)
        parts = self._shares(batch, heads, targets)
        stats = {"entropy_cls": targets.entropy(), "divergence_cls": targets.divergence()}
        stats["teacher_temperature"] = parts[0].total.new_tensor(temperature)
        stats["momentum"] = parts[0].total.new_tensor(cosine(progress, *config.momentum))
        return LossBreakdown.join(parts, stats)

    def _shares(self, batch: ViewBatch, heads: HeadPair, targets: TargetRows) -> list[WeighedTerms]:
        """The local views' share of the loss, with its gradient in advance, then the global views'."""
        backbone, num_local = self.student.backbone, batch.num_local
        inputs = [*backbone.parameters(), *heads.inputs]

        def share(pixels: Tensor, views: range) -> WeighedTerms:
            pairs = cross_view_pairs(
                len(batch),
                student_views=views,
                num_student_views=2 + num_local,
                num_teacher_views=2,
                device=pixels.device,
            )
            tokens = backbone.class_token(pixels.flatten(0, 1))
            return heads.losses([Comparison(tokens, targets, {"glob": pairs}, {"glob": 1.0})])[0]

        parts = []
        if batch.local_views is not None:
            small = batch.local_views.pixels
            parts.append(gradient_in_advance(lambda: share(small, range(2, 2 + num_local)), inputs))
        return [*parts, share(batch.global_views.pixels, range(2))]

    def before_step(self, progress: Progress) -> None:
        """Hold the prototypes still in the first epochs: without a gradient AdamW skips them, decay included."""
        if progress.epoch < self.config.freeze_last_layer_epochs:
            cancel_gradients(self.student.head.last_layer)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher and the centre."""
        self.teacher.update(self.student, cosine(progress, *self.config.momentum))
        self.centre.update()

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Tell when the teacher has collapsed."""
        return collapse_alarms(stats, self.config.num_prototypes)

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return self.teacher.network.backbone if self.config.export == "teacher" else self.student.backbone
