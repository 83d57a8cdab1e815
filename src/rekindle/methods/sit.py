# SPDX-License-Identifier: Apache-2.0
"""SiT: self-supervised vision transformer, reconstruction and contrast of images (Atito et al., 2021, arXiv:2104.03602)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, PictureRows
from rekindle.methods.shared.class_contrast import (
    ContrastOptions,
    ContrastStudent,
    NormViews,
    by_view,
    check_images,
    class_contrast,
    class_keys,
    exported,
    momentum,
    small_views_part,
)
from rekindle.methods.shared.corruption import (
    CorruptionOptions,
    corrupt_views,
    corruption_pictures,
    new_pixel_head,
    reconstruction,
)
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.views.batch import ViewBatch


class SitOptions(ContrastOptions, CorruptionOptions):
    """Options of SiT, read as MMC without its contrast of patches (MMC, table 4)."""

    norm_views: NormViews = "together"
    """Batch statistics of the heads are of one view at a time, or of all views that are encoded together (its code)."""
    replace_p: float = Field(0.5, ge=0, le=1)
    """Probability that a view is corrupted with pixels of another image instead (as in its code)."""
    rec_weight: float = Field(1.0, gt=0)
    """Weight of the reconstruction."""
    cls_weight: float = Field(1.0, gt=0)
    """Weight of the contrast of class tokens."""


class Sit(Method):
    """The student restores corrupted pixels, and its class token finds the clean other view of its image among all images.

    The reading is the row REC + CLS of MMC's table 4, with the momentum teacher of SiT's code: MMC with pat_weight = 0,
    replace_p = 0.5 and norm_views = together. Training from scratch has the settings of that code (zeros over half of a view, of
    groups off the patch grid; no small views). Missing from the original: the prediction of rotations and the learnt uncertainty
    weights of its first version, and the colour distortions it counts among corruptions. Deviations: the error of corrupted
    pixels is the mean of both views' means; the second activation of the contrast's head is a ReLU (GELU in its code).
    """

    Config = SitOptions
    COMPARES_IMAGES: ClassVar[bool] = True
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.1,
        "optim.clip_norm": 3.0,
        "views.num_local": 0,
        "views.global_scale": (0.2, 1.0),
        "sit.fill": "zeros",
        "sit.noise_area": (0.5, 0.5),
        "sit.align_px": 1,
        "sit.pixel_hidden": None,
        "sit.pixel_layers": 4,
        "sit.scale_2tau": True,
        "sit.cls_weight": 2.0,  # the sum of both directions, of which the term is the mean
    }

    def __init__(self, config: SitOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = ContrastStudent(backbone, config, levels=["cls"])
        self.teacher = EmaTeacher(self.student)
        self.pixel_head = new_pixel_head(config, backbone)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the reconstruction's and the contrast's weighted sum.

        They equal `objectives.plain.corrupted_pixel_error`, mean over both large views, and `objectives.plain.info_nce`, mean
        over the pairs of views.
        """
        config, student, clean = self.config, self.student, batch.global_views.pixels
        check_images("SiT", batch)
        patch_size = student.backbone.patch_size
        corrupted = corrupt_views(config, clean, patch_size, progress)
        with torch.no_grad():
            teacher = self.teacher.network
            keys = class_keys(config, teacher, batch, teacher.backbone.class_token(clean.flatten(0, 1)))
        parts = small_views_part(config, student, batch, keys, config.cls_weight)
        tokens: Tokens = student.backbone(corrupted.pixels.flatten(0, 1))
        patches = by_view(tokens.patches.flatten(1, 2), 2)
        queries = student.rows("cls", by_view(tokens.class_token, 2))
        contrast, hits = class_contrast(config, queries, keys, num_local=batch.num_local, start=0)
        error = reconstruction(config, self.pixel_head, patches, clean, corrupted, patch_size)
        parts.append(
            LossBreakdown.weigh({"rec": error, "cls": contrast}, {"rec": config.rec_weight, "cls": config.cls_weight})
        )
        stats = {
            "accuracy_cls": hits,
            "coverage": corrupted.cells.float().mean().to(clean.device, non_blocking=True),
            "momentum": hits.new_tensor(momentum(config, progress)),
        }
        return LossBreakdown.join(parts, stats)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, momentum(self.config, progress))

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """Clean views, corrupted ones, and what is restored."""
        return corruption_pictures(self.config, self.pixel_head, self.student.backbone, batch, progress)

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return exported(self.config, self.student, self.teacher)
