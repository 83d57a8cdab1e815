# SPDX-License-Identifier: Apache-2.0
"""MoCo v3: momentum contrast for vision transformers (Chen, Xie and He, 2021, arXiv:2104.02057)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from rekindle.core.distributed import all_rows
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.papers import mocov3 as mocov3_paper
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, check_images, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.mlp_head import MlpHead
from rekindle.objectives.contrast import info_nce
from rekindle.views.batch import ViewBatch, by_view


class Mocov3Options(Options):
    """Options of MoCo v3; defaults are those of its ViT-S."""

    temperature: float = Field(0.2, gt=0)
    """Temperature of the softmax over keys."""
    projector_hidden: int = Field(4096, ge=1)
    """Width of the hidden layers of projector (three layers) and predictor (two)."""
    projector_out: int = Field(256, ge=1)
    """Width of queries and keys."""
    momentum: tuple[float, float] = (0.99, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    freeze_patch_projection: bool = True
    """Never train the patch projection, which made their training unstable (section 4.2)."""
    export: Literal["teacher", "student"] = "student"
    """Which network is saved and evaluated."""


class StudentWithProjector(nn.Module):
    """A backbone and its projector: what the teacher holds an average of."""

    def __init__(self, backbone: Backbone, projector: MlpHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector


class Mocov3(Method):
    """A view's query finds the key of the other view of its image among the keys of all images (algorithm 1).

    Negatives are the images of the step, and batch statistics are those of its rows, in all processes. Two large crops, no small
    ones. Deviations: GLARE's colour changes.
    """

    Config = Mocov3Options
    STATED = mocov3_paper.STATED
    COMPARES_IMAGES: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, object]] = {"views.num_local": 0, "views.global_scale": (0.08, 1.0)}
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 1.5e-4,
        "optim.warmup_epochs": 40.0,
        "optim.final_lr": 0.0,
        "optim.weight_decay": 0.1,
        "optim.decay_vectors": True,
        "optim.clip_norm": 0.0,
        "network.drop_path": 0.0,
        "network.positions": "sincos",
    }

    def __init__(self, config: Mocov3Options, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        if config.freeze_patch_projection:
            backbone.vit.patch_embed.requires_grad_(False)
        hidden, out = config.projector_hidden, config.projector_out
        self.student = StudentWithProjector(backbone, MlpHead(backbone.width, hidden, hidden, out))
        self.predictor = MlpHead(out, hidden, out)
        self.teacher = EmaTeacher(self.student)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return ctr(q1, k2) + ctr(q2, k1), with the factor 2 * temperature of algorithm 1.

        ctr equals `objectives.plain.info_nce`, with the keys of all processes.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """The teacher encodes all views of the step first: its class tokens become the keys of every part."""
        held = list(micro_batches)
        check_images("MoCo v3", held)
        parts = [self._see(batch, progress) for batch, progress in held]
        compare = partial(self._compare, parts[0].progress)
        yield from compared_in_parts(parts, [Stage("views", self._encode, compare)], self.trained())

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress) -> Part:
        """The teacher's class tokens, [2, B, D]."""
        cls = [self.teacher.network.backbone.class_token(view) for view in batch.global_views.pixels]
        return Part(batch, progress, {"cls": torch.stack(cls)})

    def _encode(self, part: Part) -> Joined:
        """The student's class tokens, [2, B, D]."""
        views = part.batch.global_views.pixels
        return {"cls": by_view(self.student.backbone.class_token(views.flatten(0, 1)), 2)}

    def _compare(self, progress: Progress, student: Joined, teacher: Joined) -> LossBreakdown:
        """Queries against keys; the heads see all images of the step, one view at a time."""
        temperature = self.config.temperature
        with torch.no_grad():
            keys = [all_rows(self.teacher.network.projector(cls)) for cls in teacher["cls"]]
        queries = [self.predictor(self.student.projector(cls)) for cls in student["cls"]]
        terms = {
            f"ctr{place + 1}": info_nce(queries[place], keys[1 - place][0], temperature=temperature, first=keys[0][1])
            for place in range(2)
        }
        own = torch.nn.functional.cosine_similarity(queries[0].detach().float(), queries[1].detach().float())
        stats = {"own_similarity": own.mean()}
        stats["momentum"] = own.new_tensor(cosine(progress, *self.config.momentum))
        return LossBreakdown.weigh(terms, dict.fromkeys(terms, 2 * temperature), stats)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, cosine(progress, *self.config.momentum))

    def exported(self) -> Backbone:
        """The student's backbone unless the options ask for the teacher's."""
        return self.teacher.network.backbone if self.config.export == "teacher" else self.student.backbone
