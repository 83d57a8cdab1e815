# SPDX-License-Identifier: Apache-2.0
"""MMC: masked momentum contrast (Wu et al., Masked momentum contrastive learning for zero-shot semantic understanding)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from rekindle.core.distributed import all_rows
from rekindle.core.progress import Progress
from rekindle.core.rng import generator
from rekindle.methods.base import LossBreakdown, Method, PictureRows
from rekindle.methods.shared.class_contrast import (
    ClassKeys,
    ContrastOptions,
    ContrastStudent,
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
    hidden_patches,
    new_pixel_head,
    reconstruction,
)
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.contrast import PatchNegatives, patch_nce
from rekindle.views.batch import ViewBatch
from rekindle.views.group_masks import CorruptedViews


class MmcOptions(ContrastOptions, CorruptionOptions):
    """Options of MMC; defaults are the paper's."""

    rec_weight: float = Field(1.0, ge=0)
    """Weight of L_REC; 0: nothing is reconstructed."""
    cls_weight: float = Field(1.0, ge=0)
    """Weight of L_CLS; 0: class tokens and small views take no part."""
    pat_weight: float = Field(1.0, ge=0)
    """Weight of L_PAT; 0: patches are not contrasted."""
    patch_negatives: PatchNegatives = "other_images_all"
    """What a patch is told from: all patches of other images, or those at its own position."""
    max_negatives: int | None = Field(None, ge=1)
    """Negatives of a patch at most: patches drawn anew at each step, equally many of each other image; None: all."""
    masked_only: bool = False
    """Contrast only patches that have corrupted pixels, and not all of them."""
    gather_patches: bool = False
    """Patches of the images of all processes are negatives, and not only those of this one."""

    @model_validator(mode="after")
    def _consistent(self) -> MmcOptions:
        if not (self.rec_weight or self.cls_weight or self.pat_weight):
            raise ValueError("rec_weight, cls_weight and pat_weight are all 0, so there is no loss; raise one of them")
        if self.max_negatives is not None and self.patch_negatives == "other_images_same_position":
            raise ValueError(
                "max_negatives draws among all patches of other images; with patch_negatives = other_images_same_position there "
                "is one per image, so leave it out"
            )
        return self


class Mmc(Method):
    """The student sees corrupted views: it restores pixels, and finds its clean image and patches among those of others.

    L = L_REC + L_CLS + L_PAT. L_REC is the absolute error of the corrupted pixels; L_CLS compares the student's class token with
    the teacher's of the other clean view; L_PAT compares each patch with the teacher's same patch of the same clean view, against
    patches of other images. Small views are never corrupted and take part in L_CLS alone.

    L_CLS is the plain mean over all pairs of views, as DINO and iBOT weigh small ones: with ten of them, the pairs of corrupted
    views that eq. 3 speaks of weigh 2/22 (eq. 3 has no small views; `views.num_local = 0` leaves it alone).

    Deviations, where the paper is silent or at odds with itself: noise and another image's pixels are alternatives per view;
    groups of pixels are aligned to the backbone's patches; the student and not the teacher sees the small views; no factor
    2 * tau, no predictor; heads normalise by the batch's own statistics, in the teacher as well, without running ones; the
    image that lends its pixels is one of the same micro-batch (a process's batch, unless `engine.micro_batch_size` cuts it).
    """

    Config = MmcOptions
    COMPARES_IMAGES: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, object]] = {"views.saturation": 0.4, "views.hue": 0.0}
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.clip_norm": 3.0,
    }

    def __init__(self, config: MmcOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        weights: dict[Literal["cls", "patch"], float] = {"cls": config.cls_weight, "patch": config.pat_weight}
        self.student = ContrastStudent(backbone, config, levels=[level for level, w in weights.items() if w])
        self.teacher = EmaTeacher(self.student)
        self.pixel_head = new_pixel_head(config, backbone) if config.rec_weight else None

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return L_REC + L_CLS + L_PAT (eqs. 1 to 4), each with its weight.

        They equal `objectives.plain.corrupted_pixel_error`, mean over both large views; `objectives.plain.info_nce`, mean over
        the pairs of views; and `objectives.plain.patch_nce`, mean over patches and both large views.
        """
        config, student, clean = self.config, self.student, batch.global_views.pixels
        if config.cls_weight or config.pat_weight:
            check_images("MMC", batch)
        corrupted = corrupt_views(config, clean, student.backbone.patch_size, progress)
        class_key, patch_key, first = self._keys(batch)
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        stats = {
            "coverage": corrupted.cells.float().mean(),
            "replaced": corrupted.replaced.float().mean(),
            "momentum": torch.tensor(momentum(config, progress)),
        }
        stats = {name: value.to(clean.device, non_blocking=True) for name, value in stats.items()}
        parts = []
        if class_key is not None:  # before the large views' graph is there
            parts = small_views_part(config, student, batch, class_key, config.cls_weight)
        cls, patches = self._tokens(corrupted.pixels)
        if self.pixel_head is not None and patches is not None:
            terms["rec"] = reconstruction(
                config, self.pixel_head, patches, clean, corrupted, student.backbone.patch_size
            )
            weights["rec"] = config.rec_weight
        if class_key is not None and cls is not None:
            terms["cls"], stats["accuracy_cls"] = class_contrast(
                config, student.rows("cls", cls), class_key, num_local=batch.num_local, start=0
            )
            weights["cls"] = config.cls_weight
        if patch_key is not None and patches is not None:
            queries = student.rows("patch", patches)
            terms["pat"], stats["accuracy_pat"] = self._patches(queries, patch_key, first, corrupted, progress)
            weights["pat"] = config.pat_weight
        return LossBreakdown.join([*parts, LossBreakdown.weigh(terms, weights)], stats)

    @torch.no_grad()
    def _keys(self, batch: ViewBatch) -> tuple[ClassKeys | None, Tensor | None, int]:
        """The teacher's keys of clean views: of classes; of patches [V, G, P, C], and the first image of this process there."""
        config, teacher = self.config, self.teacher.network
        pixels = batch.global_views.pixels.flatten(0, 1)
        if not config.pat_weight:
            if not config.cls_weight:
                return None, None, 0
            return class_keys(config, teacher, batch, teacher.backbone.class_token(pixels)), None, 0
        tokens: Tokens = teacher.backbone(pixels)
        keys, first = teacher.rows("patch", by_view(tokens.patches.flatten(1, 2), 2)), 0
        if config.gather_patches:
            gathered, first = all_rows(keys.transpose(0, 1))
            keys = gathered.transpose(0, 1)
        classes = class_keys(config, teacher, batch, tokens.class_token) if config.cls_weight else None
        return classes, keys, first

    def _tokens(self, pixels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The student's class tokens [V, B, D] and patches [V, B, P, D], as far as a term wants them."""
        config, backbone, views = self.config, self.student.backbone, pixels.flatten(0, 1)
        if not (config.rec_weight or config.pat_weight):
            return by_view(backbone.class_token(views), 2), None
        tokens: Tokens = backbone(views)
        cls = by_view(tokens.class_token, 2) if config.cls_weight else None
        return cls, by_view(tokens.patches.flatten(1, 2), 2)

    def _patches(
        self, queries: Tensor, keys: Tensor, first: int, corrupted: CorruptedViews, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """L_PAT, mean over both views, and the fraction of patches whose own key is the nearest."""
        config, positions, weight = self.config, None, None
        if config.max_negatives is not None:
            positions = drawn_positions(progress, keys.shape[1], keys.shape[2], config.max_negatives).to(keys.device)
        if config.masked_only:
            weight = hidden_patches(corrupted, self.student.backbone.patch_size).float().to(keys.device)
        found = [
            patch_nce(
                queries[view],
                keys[view],
                temperature=config.temperature,
                first=first,
                negatives=config.patch_negatives,
                positions=positions,
                weight=None if weight is None else weight[view],
            )
            for view in range(2)
        ]
        losses, hits = (torch.stack(column).mean() for column in zip(*found, strict=True))
        return (2 * config.temperature if config.scale_2tau else 1.0) * losses, hits

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, momentum(self.config, progress))

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """Clean views, corrupted ones, and what is restored."""
        return corruption_pictures(self.config, self.pixel_head, self.student.backbone, batch, progress)

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return exported(self.config, self.student, self.teacher)


def drawn_positions(progress: Progress, images: int, patches: int, max_negatives: int) -> Int64[Tensor, "G n"]:
    """Draw which patches of each image are negatives at this step, so that a patch of another image has at most `max_negatives`.

    Equally many of each image (at least one), the same for all queries and processes; all of them once max_negatives reaches
    (images - 1) * patches. Returns: on the CPU.
    """
    count = min(max(1, max_negatives // (images - 1)), patches)
    source = generator(progress.seed, "patch negatives", progress.step)
    return torch.rand(images, patches, generator=source).argsort(dim=1)[:, :count]
