# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.distillation import CentredOptions, Distillation, StudentWithHead, new_centres, new_head
from rekindle.methods.heads import HeadPair, class_comparison
from rekindle.methods.shares import gradient_in_advance
from rekindle.methods.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.objectives.prototypes import TargetRows, WeighedTerms
from rekindle.views.batch import ViewBatch


class DinoOptions(CentredOptions):
    """Options of DINO; defaults as continual pre-training uses them (GLARE, section 8.1 of the specification)."""


class Dino(Method):
    """Class tokens of all crops match the teacher's class tokens of the other global crop (eq. 1-4).

    Deviations: none in the loss. The defaults are those of continual pre-training with adapters; training from scratch
    takes DINO's own through `optim`.
    """

    Config = DinoOptions
    upkeep: Distillation
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
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.centres = new_centres(("cls",), config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Cross-entropy over all pairs of a student view and another global view of the teacher (eq. 3)."""
        teacher = self.teacher.network
        heads = self.upkeep.head_pair(progress)
        with torch.no_grad():
            cls = teacher.backbone.class_token(batch.global_views.pixels.flatten(0, 1))
            targets = heads.targets(cls, self.upkeep.centre("cls"))
        parts = self._shares(batch, heads, targets)
        return LossBreakdown.join(parts, self.upkeep.stats(progress, {"cls": targets}, parts[0].total))

    def _shares(self, batch: ViewBatch, heads: HeadPair, targets: TargetRows) -> list[WeighedTerms]:
        """The local views' share of the loss, with its gradient in advance, then the global views'."""
        backbone, num_local = self.student.backbone, batch.num_local
        inputs = [*backbone.parameters(), *heads.inputs]

        def share(pixels: Tensor, views: range) -> WeighedTerms:
            cls = backbone.class_token(pixels.flatten(0, 1))
            return heads.losses([class_comparison("glob", cls, targets, views=views, batch=batch, weight=1.0)])[0]

        parts = []
        if batch.local_views is not None:
            small = batch.local_views.pixels
            parts.append(gradient_in_advance(lambda: share(small, range(2, 2 + num_local)), inputs))
        return [*parts, share(batch.global_views.pixels, range(2))]
