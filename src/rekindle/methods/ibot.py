# SPDX-License-Identifier: Apache-2.0
"""iBOT: masked image modelling with an online tokenizer (Zhou et al., 2022, arXiv:2111.07832)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.papers import ibot as ibot_paper
from rekindle.methods.shared.distillation import (
    Distillation,
    HeadPair,
    StudentWithHead,
    class_comparison,
    new_centres,
    new_head,
)
from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.pairs import same_patch_pairs, used_rows
from rekindle.objectives.prototypes import Compared, TargetRows
from rekindle.views.batch import ViewBatch
from rekindle.views.distortion import draw_patch_mask


class IbotOptions(CentredOptions):
    """Options of iBOT; defaults as continual pre-training uses them (GLARE, section 8.2 of the specification)."""

    global_weight: float = Field(1.0, ge=0)
    """Weight lambda_1 of L_[CLS]."""
    patch_weight: float = Field(1.0, ge=0)
    """Weight lambda_2 of L_MIM."""
    mask_shape: Literal["block", "random"] = "block"
    """Which patches are hidden."""
    mask_ratio: Literal["ibot", "fixed"] = "ibot"
    """ibot: none with probability 1/2, else a share drawn from U(0.1, 0.5); fixed: 30 % of every view."""

    @model_validator(mode="after")
    def _consistent(self) -> IbotOptions:
        if not (self.global_weight or self.patch_weight):
            raise ValueError("both weights are 0, so there is no loss; give one of them a value above 0")
        return self


class Ibot(Method):
    """Hidden patches match what the teacher makes of them, and class tokens those of the other view (eqs. 2 and 3).

    Deviations: one centre per level but one head for both, as in the paper's shared setting; small crops have no hidden
    patches. A view without hidden patches contributes 0 to L_MIM and stays in its mean, as in iBOT's code.
    """

    Config = IbotOptions
    STATED = ibot_paper.STATED
    upkeep: Distillation
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.4,
    }

    def __init__(self, config: IbotOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.mask_token = nn.Parameter(torch.zeros(backbone.width))
        self.centres = new_centres(("cls", "patch"), config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return lambda_1 L_[CLS] + lambda_2 L_MIM.

        L_[CLS] equals `objectives.plain.cross_view_entropy` of the class tokens' logits, and L_MIM equals
        `objectives.plain.masked_patch_mean` of `objectives.plain.row_cross_entropy` at the hidden patches. Targets are
        `objectives.plain.centred_softmax`.
        """
        config, teacher = self.config, self.teacher.network
        clean = batch.global_views.pixels.flatten(0, 1)  # [2B, 3, S, S], views first
        with torch.no_grad():
            target: Tokens = teacher.backbone(clean)
        heads = self.upkeep.head_pair(progress)
        cls = heads.targets(target.class_token, self.upkeep.centre("cls"))
        parts = self._small_part(batch, heads, cls)

        hidden = draw_patch_mask(
            progress, len(batch), 2, target.grid, ratio_mode=config.mask_ratio, shape=config.mask_shape
        )
        hidden = hidden.flatten(0, 1).to(clean.device)
        tokens: Tokens = self.student.backbone(clean, patch_mask=hidden, mask_token=self.mask_token)
        patches = self._hidden(tokens, target, hidden, heads)
        parts.append(heads.losses([self._global(tokens.class_token, range(2), batch, cls), patches]))
        fraction = hidden.float().mean()
        stats = self.upkeep.stats(progress, {"cls": cls, "patch": patches.targets}, fraction)
        return LossBreakdown.join(parts, stats | {"hidden": fraction})

    def _global(self, cls: Tensor, views: range, batch: ViewBatch, targets: TargetRows) -> Compared:
        """L_[CLS], eq. 3."""
        return class_comparison("cls", cls, targets, views=views, batch=batch, weight=self.config.global_weight)

    def _small_part(self, batch: ViewBatch, heads: HeadPair, cls: TargetRows) -> list[LossBreakdown]:
        """What the small crops add to L_[CLS], with its gradient in advance."""
        if batch.local_views is None:
            return []
        backbone, pixels = self.student.backbone, batch.local_views.pixels.flatten(0, 1)

        def part() -> LossBreakdown:
            views = range(2, 2 + batch.num_local)
            return heads.losses([self._global(backbone.class_token(pixels), views, batch, cls)])

        return [gradient_in_advance([part], [*backbone.parameters(), *heads.inputs])]

    def _hidden(self, tokens: Tokens, target: Tokens, hidden: Tensor, heads: HeadPair) -> Compared:
        """L_MIM, eq. 2: a hidden patch against the teacher's same patch of the same view."""
        num_views = len(hidden)
        terms = {"mim": same_patch_pairs(hidden.flatten(1), num_views=num_views)}
        rows, count = target.patches.flatten(0, 2), tokens.grid[0] * tokens.grid[1]
        used, terms = used_rows(terms, "teacher", len(rows))
        _, terms = used_rows(terms, "student", len(rows))  # the same rows: a patch is compared with itself
        image = used // count % (num_views // 2)
        return Compared(
            tokens.patches.flatten(0, 2)[used],
            heads.targets(rows, self.upkeep.centre("patch"), used),
            terms,
            {"mim": self.config.patch_weight},
            student_image=image,
            teacher_image=image,
        )
