# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.papers import dino as dino_paper
from rekindle.methods.shared.distillation import Distillation, StudentWithHead, class_comparison, new_centres, new_head
from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Stem
from rekindle.views.batch import ViewBatch


class DinoOptions(CentredOptions):
    """Options of DINO; defaults as continual pre-training uses them (GLARE, section 8.1 of the specification)."""


class Dino(Method):
    """Class tokens of all crops match the teacher's class tokens of the other large crop.

    With g_s and g_t the logits that student and teacher (backbone and head) give the class token of a view, over K prototypes:

        P_s(x) = softmax(g_s(x) / tau_s)                                                  eq. 1
        P_t(x) = softmax((g_t(x) - C) / tau_t), without gradient                          section 3.1
        L = mean of H(P_t(x), P_s(x')) over large views x and all views x' other than x   eq. 3
        g_t <- m g_t + (1 - m) g_s, for every weight that trains, after each step         section 3.1
        C <- m_C C + (1 - m_C) mean of g_t(x), after each step                            eq. 4

    Deviations: none in the loss. The defaults are those of continual pre-training with adapters; training from scratch
    takes DINO's own through `optim`.
    """

    Config = DinoOptions
    STATED = dino_paper.STATED
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
        "dino.num_prototypes": 65536,
    }

    def __init__(self, config: DinoOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.centres = new_centres(("cls",), config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)  # moves teacher and centre

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the mean cross-entropy over all pairs of a student view and another, large view of the teacher (eq. 3).

        Equals `objectives.plain.cross_view_entropy` of the student's logits [V, B, K] and of what
        `objectives.plain.centred_softmax` makes of the teacher's [2, B, K]. The graph keeps neither (in methods that compare
        patches, too, there are hundreds of such rows per image): a pair is a student row, a teacher row and a weight, and
        `HeadPair.losses` adds up weight * H a block of rows at a time, with its gradient, from the rows before the prototypes.

        The sum falls into two parts, over the small student views and over the large ones. `gradient_in_advance` takes the
        gradient of one before the activations of the other exist.
        """
        heads = self.upkeep.head_pair(progress)  # with the temperatures of this step
        with torch.no_grad():
            large = self.student.backbone.shared(batch.global_views.pixels.flatten(0, 1))  # [2B, 3, S, S], views first
            cls = self.teacher.network.backbone.class_token(large)  # [2B, D]
            targets = heads.targets(cls, self.upkeep.centre("cls"))  # P_t, [2B, K] once asked for; noted for eq. 4

        def part(views: Tensor | Stem, numbers: range) -> LossBreakdown:
            """The pairs of the student's views of one size [v*B, 3, s, s], which have these numbers among all V."""
            cls = self.student.backbone.class_token(views)
            return heads.losses([class_comparison("glob", cls, targets, views=numbers, batch=batch, weight=1.0)])

        parts = [lambda: part(large, range(2))]
        if (small := batch.local_views) is not None:
            parts.insert(0, lambda: part(small.pixels.flatten(0, 1), range(2, 2 + batch.num_local)))
        found = gradient_in_advance(parts, [*self.student.backbone.parameters(), *heads.inputs])
        return LossBreakdown.join([found], self.upkeep.stats(progress, {"cls": targets}, found.total))
