# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.distillation import Distillation, DistillationOptions, StudentWithHead
from rekindle.methods.heads import Comparison, HeadPair
from rekindle.methods.shares import gradient_in_advance
from rekindle.methods.teacher import Centre, EmaTeacher, collapse_alarms
from rekindle.networks.backbone import Backbone
from rekindle.networks.heads import DinoHead
from rekindle.objectives.pairs import cross_view_pairs
from rekindle.objectives.prototypes import TargetRows, WeighedTerms
from rekindle.views.batch import ViewBatch


class DinoOptions(DistillationOptions):
    """Options of DINO; defaults as continual pre-training uses them (GLARE, section 8.1 of the specification)."""


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
        self.distillation = Distillation(config)
        self.student = StudentWithHead(backbone, self.distillation.build_head(backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.centre = Centre(config.num_prototypes, config.centre_momentum)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Cross-entropy over all pairs of a student view and another global view of the teacher (eq. 3)."""
        teacher = self.teacher.network
        heads = self.distillation.heads(self.student.head, teacher.head, progress)
        with torch.no_grad():
            targets = heads.targets(teacher.backbone.class_token(batch.global_views.pixels.flatten(0, 1)), self.centre)
        parts = self._shares(batch, heads, targets)
        stats = {"entropy_cls": targets.entropy(), "divergence_cls": targets.divergence()}
        stats.update(self.distillation.scheduled(progress, parts[0].total))
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
        """Hold the prototypes still in the first epochs."""
        self.distillation.hold_prototypes(self.student.head, progress)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher and the centre."""
        self.distillation.move(self.teacher, self.student, [self.centre], progress)

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Tell when the teacher has collapsed."""
        return collapse_alarms(stats, self.config.num_prototypes)

    def heads(self) -> tuple[DinoHead, DinoHead]:
        """The heads that a full checkpoint brings along."""
        return self.student.head, self.teacher.network.head

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return self.distillation.exported(self.student.backbone, self.teacher.network.backbone)
