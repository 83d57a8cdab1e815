# SPDX-License-Identifier: Apache-2.0
"""MC-SSL: pixels and pseudo-concepts of patches, multi-concept learning (Atito et al., 2021, arXiv:2111.15340)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, PictureRows
from rekindle.methods.papers import mcssl as mcssl_paper
from rekindle.methods.shared.corruption import (
    CorruptionOptions,
    corrupt_step,
    corrupted_pixels,
    corruption_pictures,
    new_pixel_head,
    reconstruction,
    reconstruction_mean,
)
from rekindle.methods.shared.distillation import Distillation, StudentWithHead, new_centres, new_head
from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.pairs import count_per_part, same_patch_pairs
from rekindle.objectives.prototypes import Compared
from rekindle.views.batch import ViewBatch
from rekindle.views.group_masks import CorruptedViews


class McsslOptions(CentredOptions, CorruptionOptions):
    """Options of MC-SSL, with a head over pseudo-concepts as DINO's."""

    replace_p: float = Field(0.5, ge=0, le=1)
    """Probability that a view is corrupted with pixels of another image instead (as in its code)."""
    rec_weight: float = Field(1.0, gt=0)
    """Weight of the reconstruction."""
    concept_weight: float = Field(1.0, gt=0)
    """Weight of the concepts of patches."""


class Mcssl(Method):
    """The student restores corrupted pixels, and each of its patches has the teacher's pseudo-concept of that clean patch.

    The reading of MC-SSL 0.0: group-masked views and their reconstruction as in MMC, and the cross-entropy between the softmax of
    the teacher's centred and sharpened logits and the student's, for every patch, corrupted or not, of the same view. No
    class token is compared, and small views are not made. Missing from the original: groups of pixels not aligned to
    patches (align_px = 1 brings these back), and its own schedule of weight decay and temperature where it differs from DINO's.
    MMC, which reports numbers of MC-SSL, calls it masked image modelling and masked contrast of patches.
    """

    Config = McsslOptions
    STATED = mcssl_paper.STATED
    upkeep: Distillation
    NEEDS: ClassVar[Mapping[str, object]] = {"views.num_local": 0, "views.global_scale": (0.2, 1.0)}
    # No code of the authors was found: these are the settings of DINO, whose schedules the methods of its kind share.
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.4,
    }

    def __init__(self, config: McsslOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.pixel_head = new_pixel_head(config, backbone)
        self.centres = new_centres(("patch",), config)
        self.upkeep = Distillation(config, self.student, self.teacher, self.centres)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the weighted sum of the reconstruction and of the concepts' cross-entropy.

        They equal `objectives.plain.corrupted_pixel_error`, mean over both views, and the mean over all patches of
        `objectives.plain.row_cross_entropy` to `objectives.plain.centred_softmax`.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Any image of the step lends its pixels, and corrupted pixels are counted over the step."""
        held = list(micro_batches)
        views = corrupt_step(self.config, held, self.student.backbone.patch_size)
        counts = count_per_part([corrupted_pixels(self.config, corrupted).sum(dim=1) for corrupted in views])
        for (batch, progress), corrupted in zip(held, views, strict=True):
            yield partial(self._part, batch, progress, corrupted, counts)

    def _part(self, batch: ViewBatch, progress: Progress, corrupted: CorruptedViews, counts: Tensor) -> LossBreakdown:
        config, clean, backbone = self.config, batch.global_views.pixels, self.student.backbone
        heads = self.upkeep.head_pair(progress)
        with torch.no_grad():
            target: Tokens = self.teacher.network.backbone(clean.flatten(0, 1))
        targets = heads.targets(target.patches.flatten(0, 2), self.upkeep.centre("patch"))
        tokens: Tokens = backbone(corrupted.pixels.flatten(0, 1))
        patches = tokens.patches.flatten(1, 2)
        everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        image = self._image_of_rows(patches, len(batch))
        concepts = Compared(
            patches.flatten(0, 1),
            targets,
            {"concept": same_patch_pairs(everywhere, num_views=len(patches))},
            {"concept": config.concept_weight},
            student_image=image,
            teacher_image=image,
        )
        parts = [heads.losses([concepts])]
        by_image = patches.view(2, -1, *patches.shape[1:])
        errors = reconstruction(config, self.pixel_head, by_image, clean, corrupted, backbone.patch_size)
        error = reconstruction_mean(errors, counts.to(errors.device))
        parts.append(LossBreakdown.weigh({"rec": error}, {"rec": config.rec_weight}))
        stats = self.upkeep.stats(progress, {"patch": targets}, error)
        coverage = corrupted.cells.float().mean().to(clean.device, non_blocking=True)
        return LossBreakdown.join(parts, stats | {"coverage": coverage})

    @staticmethod
    def _image_of_rows(patches: Tensor, images: int) -> Tensor:
        """The image of each row of the flattened patches [V * B, P]."""
        view = torch.arange(len(patches), device=patches.device) % images
        return view.repeat_interleave(patches.shape[1])

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """Clean views, corrupted ones, and what is restored."""
        return corruption_pictures(self.config, self.pixel_head, self.student.backbone, batch, progress)
