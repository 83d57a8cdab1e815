# SPDX-License-Identifier: Apache-2.0
"""SiT: self-supervised vision transformer, reconstruction and contrast of images (Atito et al., 2021, arXiv:2104.03602)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field

from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, PictureRows
from rekindle.methods.papers import sit as sit_paper
from rekindle.methods.shared.class_contrast import (
    ContrastOptions,
    ContrastStudent,
    NormViews,
    class_contrast,
    class_keys,
    class_tokens,
    exported,
    momentum,
    small_views_stage,
)
from rekindle.methods.shared.corruption import (
    CorruptionOptions,
    RecNorm,
    corrupt_step,
    corrupted_pixels,
    corruption_pictures,
    new_pixel_head,
    reconstruction,
    reconstruction_mean,
)
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, by_slot, check_images, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.pairs import count_per_process
from rekindle.views.batch import ViewBatch, by_view
from rekindle.views.group_masks import CorruptedViews


class SitOptions(ContrastOptions, CorruptionOptions):
    """Options of SiT, read as MMC without its contrast of patches (MMC, table 4)."""

    norm_views: NormViews = "together"
    """Batch statistics of the heads are of one view at a time, or of all views that are encoded together (its code)."""
    rec_norm: RecNorm = "together"
    """The mean of the reconstruction error runs over the corrupted pixels of each view, over those of both views together (its
    code), or over all pixels."""
    replace_p: float = Field(0.5, ge=0, le=1)
    """Probability that a view is corrupted with pixels of another image instead (as in its code)."""
    rec_weight: float = Field(1.0, gt=0)
    """Weight of the reconstruction."""
    cls_weight: float = Field(1.0, gt=0)
    """Weight of the contrast of class tokens."""


class Sit(Method):
    """The student restores corrupted pixels, and its class token finds the clean other view of its image among all images.

    The reading is the row REC + CLS of MMC's table 4, with the momentum teacher of SiT's code: MMC with pat_weight = 0,
    replace_p = 0.5, norm_views = together and rec_norm = together. Training from scratch has the settings of that code (zeros
    over half of a view, of groups off the patch grid; no small views). Missing from the original: the prediction of rotations
    and the learnt uncertainty weights of its first version, and the colour distortions it counts among corruptions. Deviation:
    the second activation of the contrast's head is a ReLU (GELU in its code).
    """

    Config = SitOptions
    STATED = sit_paper.STATED
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
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Views are corrupted and keys are made for the whole step; then its images are told from each other."""
        config, teacher, held = self.config, self.teacher.network, list(micro_batches)
        check_images("SiT", held)
        views = corrupt_step(config, held, self.student.backbone.patch_size)
        parts = [self._see(*micro, corrupted) for micro, corrupted in zip(held, views, strict=True)]
        stages = [
            *small_views_stage(config, self.student, teacher, parts[0], config.cls_weight),
            Stage("large views", partial(self._encode, by_slot(parts, views)), partial(self._compare, parts[0])),
        ]
        yield from compared_in_parts(parts, stages, self.trained())

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress, corrupted: CorruptedViews) -> Part:
        """The teacher's class tokens of the clean views, and how many pixels are corrupted."""
        teacher, clean = self.teacher.network, batch.global_views.pixels
        known = class_tokens(self.config, teacher, batch, teacher.backbone.class_token(clean.flatten(0, 1)))
        known["pixels"] = corrupted_pixels(self.config, corrupted).to(clean.device)
        known["coverage"] = corrupted.cells.float().mean(dim=(2, 3)).to(clean.device)
        return Part(batch, progress, known)

    def _encode(self, views: Mapping[int, CorruptedViews], part: Part) -> Joined:
        """The student's class tokens [2, B, D], and the error of the pixels that it restores [2, B]."""
        backbone, corrupted = self.student.backbone, views[part.progress.slot]
        tokens: Tokens = backbone(corrupted.pixels.flatten(0, 1))
        patches, clean = by_view(tokens.patches.flatten(1, 2), 2), part.batch.global_views.pixels
        errors = reconstruction(self.config, self.pixel_head, patches, clean, corrupted, backbone.patch_size)
        return {"cls": by_view(tokens.class_token, 2), "errors": errors}

    def _compare(self, part: Part, student: Joined, known: Joined) -> LossBreakdown:
        config = self.config
        queries, keys = self.student.rows("cls", student["cls"]), class_keys(self.teacher.network, known)
        contrast, hits = class_contrast(config, queries, keys, num_local=part.batch.num_local, start=0)
        error = reconstruction_mean(student["errors"], count_per_process(known["pixels"].sum(dim=1)))
        stats = {
            "accuracy_cls": hits,
            "coverage": known["coverage"].mean(),
            "momentum": hits.new_tensor(momentum(config, part.progress)),
        }
        terms, weights = {"rec": error, "cls": contrast}, {"rec": config.rec_weight, "cls": config.cls_weight}
        return LossBreakdown.weigh(terms, weights, stats)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, momentum(self.config, progress))

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """Clean views, corrupted ones, and what is restored."""
        return corruption_pictures(self.config, self.pixel_head, self.student.backbone, batch, progress)

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return exported(self.config, self.student, self.teacher)
