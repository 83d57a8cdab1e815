# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.shared.distillation import CentredOptions, Distillation, StudentWithHead, new_centres, new_head
from rekindle.methods.shared.heads import HeadPair, class_comparison
from rekindle.methods.shared.shares import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.objectives.prototypes import TargetRows, WeighedTerms
from rekindle.views.batch import ViewBatch, Views


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
        views = {range(2): batch.global_views}
        if batch.local_views is not None:
            views = {range(2, 2 + batch.num_local): batch.local_views, **views}
        shares = [partial(self._share, batch, heads, targets, own, number) for number, own in views.items()]
        found = gradient_in_advance(shares, [*self.student.backbone.parameters(), *heads.inputs])
        return LossBreakdown.join([found], self.upkeep.stats(progress, {"cls": targets}, found.total))

    def _share(self, batch: ViewBatch, heads: HeadPair, targets: TargetRows, own: Views, number: range) -> WeighedTerms:
        """What views of one size, of these numbers, add to the loss."""
        cls = self.student.backbone.class_token(own.pixels.flatten(0, 1))
        return heads.losses([class_comparison("glob", cls, targets, views=number, batch=batch, weight=1.0)])
