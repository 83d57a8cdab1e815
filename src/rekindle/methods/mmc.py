# SPDX-License-Identifier: Apache-2.0
"""MMC: masked momentum contrast (Wu et al., Masked momentum contrastive learning for zero-shot semantic understanding)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from rekindle.core.distributed import all_rows, world_size
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import generator
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, PictureRows
from rekindle.methods.papers import mmc as mmc_paper
from rekindle.methods.shared.class_contrast import (
    ContrastOptions,
    ContrastStudent,
    class_contrast,
    class_keys,
    class_tokens,
    exported,
    momentum,
    small_views_stage,
)
from rekindle.methods.shared.corruption import (
    CorruptionOptions,
    corrupt_step,
    corrupted_pixels,
    corruption_pictures,
    hidden_patches,
    new_pixel_head,
    reconstruction,
    reconstruction_mean,
)
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, by_slot, check_images, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.contrast import PatchNegatives, patch_nce
from rekindle.objectives.pairs import count_per_process
from rekindle.views.batch import ViewBatch, by_view
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
    gather_patches: bool = True
    """Patches of the images of all processes are negatives; off: those of this one's alone, so that the loss depends on how many
    processes there are."""

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
    2 * tau, no predictor; heads normalise by the statistics of the step's images, in the teacher as well, without running ones.
    """

    Config = MmcOptions
    STATED = mmc_paper.STATED
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
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Views are corrupted and keys are made for the whole step; then its images and patches are told from each other."""
        config, teacher, held = self.config, self.teacher.network, list(micro_batches)
        if config.cls_weight or config.pat_weight:
            check_images("MMC", held)
        if config.pat_weight and not config.gather_patches and sum(len(batch) for batch, _ in held) < 2:
            raise RequestError(
                "with --mmc.gather-patches off, patches are told from those of their own process's images, and this process has "
                "one image; raise --batch-size, use fewer --devices, or leave gather_patches on"
            )
        views = corrupt_step(config, held, self.student.backbone.patch_size)
        parts = [self._see(*micro, corrupted) for micro, corrupted in zip(held, views, strict=True)]
        stages = []
        if config.cls_weight:  # before the large views' graph is there
            stages += small_views_stage(config, self.student, teacher, parts[0], config.cls_weight)
        encode, compare = partial(self._encode, by_slot(parts, views)), partial(self._compare, parts[0])
        yield from compared_in_parts(parts, [*stages, Stage("large views", encode, compare)], self.trained())

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress, corrupted: CorruptedViews) -> Part:
        """The teacher's tokens of clean views, as far as a term wants them, and what is corrupted."""
        config, teacher, clean = self.config, self.teacher.network, batch.global_views.pixels
        known: dict[str, Tensor] = {}
        if config.pat_weight:
            tokens: Tokens = teacher.backbone(clean.flatten(0, 1))
            known["patches"] = by_view(tokens.patches.flatten(1, 2), 2)
            if config.cls_weight:
                known |= class_tokens(config, teacher, batch, tokens.class_token)
        elif config.cls_weight:
            known |= class_tokens(config, teacher, batch, teacher.backbone.class_token(clean.flatten(0, 1)))
        of_views = {
            "pixels": corrupted_pixels(config, corrupted),
            "hidden": hidden_patches(corrupted, self.student.backbone.patch_size).float(),
            "coverage": corrupted.cells.float().mean(dim=(2, 3)),
            "replaced": corrupted.replaced.float(),
        }
        known |= {name: value.to(clean.device, non_blocking=True) for name, value in of_views.items()}
        return Part(batch, progress, known)

    def _encode(self, views: Mapping[int, CorruptedViews], part: Part) -> Joined:
        """The student's class tokens [2, B, D], patches [2, B, P, D] and errors of restored pixels [2, B], as terms want them."""
        config, backbone, corrupted = self.config, self.student.backbone, views[part.progress.slot]
        pixels, clean = corrupted.pixels.flatten(0, 1), part.batch.global_views.pixels
        if not (config.rec_weight or config.pat_weight):
            return {"cls": by_view(backbone.class_token(pixels), 2)}
        tokens: Tokens = backbone(pixels)
        patches = by_view(tokens.patches.flatten(1, 2), 2)
        found = {"cls": by_view(tokens.class_token, 2)} if config.cls_weight else {}
        if self.pixel_head is not None:
            errors = reconstruction(config, self.pixel_head, patches, clean, corrupted, backbone.patch_size)
            found["errors"] = errors
        return found | ({"patches": patches} if config.pat_weight else {})

    def _compare(self, part: Part, student: Joined, known: Joined) -> LossBreakdown:
        """The terms of the large views."""
        config, terms, weights = self.config, {}, {}
        stats = {name: known[name].mean() for name in ("coverage", "replaced")}
        stats["momentum"] = stats["coverage"].new_tensor(momentum(config, part.progress))
        if "errors" in student:
            terms["rec"] = reconstruction_mean(student["errors"], count_per_process(known["pixels"].sum(dim=1)))
            weights["rec"] = config.rec_weight
        if config.cls_weight:
            keys, queries = class_keys(self.teacher.network, known), self.student.rows("cls", student["cls"])
            terms["cls"], stats["accuracy_cls"] = class_contrast(
                config, queries, keys, num_local=part.batch.num_local, start=0
            )
            weights["cls"] = config.cls_weight
        if config.pat_weight:
            terms["pat"], stats["accuracy_pat"] = self._patches(student["patches"], known, part.progress)
            weights["pat"] = config.pat_weight
        return LossBreakdown.weigh(terms, weights, stats)

    def _patches(self, patches: Tensor, known: Joined, progress: Progress) -> tuple[Tensor, Tensor]:
        """L_PAT, mean over both views, and the fraction of patches whose own key is the nearest."""
        config, positions, first = self.config, None, 0
        queries = self.student.rows("patch", patches)
        with torch.no_grad():
            keys = self.teacher.network.rows("patch", known["patches"])
        if config.gather_patches:
            gathered, first = all_rows(keys.transpose(0, 1))
            keys = gathered.transpose(0, 1)
        if config.max_negatives is not None:
            positions = drawn_positions(progress, keys.shape[1], keys.shape[2], config.max_negatives)
            if config.gather_patches:
                positions = positions[places_in_step(progress, keys.shape[1])]
            positions = positions.to(keys.device)
        found = [
            patch_nce(
                queries[view],
                keys[view],
                temperature=config.temperature,
                first=first,
                negatives=config.patch_negatives,
                positions=positions,
                weight=known["hidden"][view] if config.masked_only else None,
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


def places_in_step(progress: Progress, images: int) -> Int64[Tensor, " G"]:
    """Where in the step the images stand that `all_rows` gathers, a process after the other; slots go round the processes."""
    size = images // progress.num_slots
    return torch.arange(images).view(-1, world_size(), size).transpose(0, 1).flatten()


def drawn_positions(progress: Progress, images: int, patches: int, max_negatives: int) -> Int64[Tensor, "G n"]:
    """Draw which patches of each image are negatives at this step, so that a patch of another image has at most `max_negatives`.

    Equally many of each image (at least one), the same for all queries and processes; all of them once max_negatives reaches
    (images - 1) * patches. Returns: on the CPU.
    """
    count = min(max(1, max_negatives // (images - 1)), patches)
    source = generator(progress.seed, "patch negatives", progress.step)
    return torch.rand(images, patches, generator=source).argsort(dim=1)[:, :count]
