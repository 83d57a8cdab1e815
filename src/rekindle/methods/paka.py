# SPDX-License-Identifier: Apache-2.0
"""PaKA: patch-level kernel alignment, a post-training of dense features (Yeo et al., 2025, arXiv:2509.05606)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.papers import paka as paka_paper
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.alignment import kernel_alignment
from rekindle.objectives.pairs import count_per_part
from rekindle.views.batch import Crops, ViewBatch
from rekindle.views.geometry import bilinear_rows, places_in, shared_region


class PakaOptions(Options):
    """Options of PaKA. Defaults follow the paper and NeCo's code, which it builds on."""

    sample_grid: int = Field(7, ge=2)
    """Places per side at which the region that two views share is compared."""
    min_shared_area: float = Field(0.01, gt=0, le=1)
    """Area that two views share at least, as a share of the image, to be compared."""
    momentum: tuple[float, float] = (0.9995, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated."""


class Paka(Method):
    """The similarities among the student's tokens of a region agree with those among the teacher's of the same region.

    Deviations: the teacher's crops have the colour changes of all methods here (the paper leaves its teacher's crops alone;
    --views.jitter-p 0 and so on does that for all crops); tokens are interpolated at the centres of a grid over the shared
    region, which is RoI alignment with one sample per cell.
    """

    Config = PakaOptions
    STATED = paka_paper.STATED
    NEEDS: ClassVar[Mapping[str, object]] = {"views.num_local": 4, "views.overlap": "reject"}

    def __init__(self, config: PakaOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = backbone  # no head
        self.teacher = EmaTeacher(self.student)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return 1 - CKA, mean over the pairs of a student view and a teacher view that share a region.

        CKA equals `objectives.plain.kernel_alignment` of the tokens of one image at the places of one pair of views.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Pairs of views that share enough are counted over the step."""
        held = list(micro_batches)
        count = count_per_part([self._num_usable(batch) for batch, _ in held])
        for batch, progress in held:
            yield partial(self._part, batch, progress, count)

    def _num_usable(self, batch: ViewBatch) -> Tensor:
        """Pairs of a view and a large view of the same image that share enough of it."""
        groups = [batch.global_views] + ([] if batch.local_views is None else [batch.local_views])
        teacher, found = batch.global_views.crops, []
        for group, views in enumerate(groups):
            for place in range(2):
                for number in range(len(views.pixels)):
                    if group or number != place:
                        _, area = shared_region(views.crops[number], teacher[place])
                        found.append((area >= self.config.min_shared_area).sum())
        return torch.stack(found).sum()

    def _part(self, batch: ViewBatch, progress: Progress, count: Tensor) -> LossBreakdown:
        """A micro-batch's part of the loss. Args: count, its share of the pairs that the mean runs over."""
        large = batch.global_views.pixels.flatten(0, 1)
        with torch.no_grad():
            target: Tokens = self.teacher.network(large)
        losses, counted = zip(*self._pairs(batch, target), strict=True)
        loss, usable = torch.cat(losses), torch.cat(counted)
        alignment = (loss * usable).sum() / count.to(loss.device)
        stats = {"usable": usable.float().mean()}
        stats["momentum"] = alignment.new_tensor(cosine(progress, *self.config.momentum)).detach()
        return LossBreakdown.weigh({"paka": alignment}, {"paka": 1.0}, stats)

    def _pairs(self, batch: ViewBatch, target: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
        """1 - CKA [N] of student views against the teacher's views of the same images, and which of them count."""
        images = len(batch)
        groups = [batch.global_views] + ([] if batch.local_views is None else [batch.local_views])
        teacher_crops = batch.global_views.crops
        for group, views in enumerate(groups):
            tokens: Tokens = self.student(views.pixels.flatten(0, 1))
            for place in range(2):  # the teacher's view
                rows = slice(place * images, (place + 1) * images)
                for number in range(len(views.pixels)):
                    if group == 0 and number == place:
                        continue  # a view with itself
                    own = slice(number * images, (number + 1) * images)
                    yield self._alignment(
                        tokens.patches[own], views.crops[number], target.patches[rows], teacher_crops[place]
                    )

    def _alignment(self, own: Tensor, crops: Crops, given: Tensor, given_crops: Crops) -> tuple[Tensor, Tensor]:
        crops, given_crops = crops.to(own.device), given_crops.to(own.device)
        region, area = shared_region(crops, given_crops)
        points = grid_points(region, self.config.sample_grid)
        at = [_tokens_at(t, c, points) for t, c in ((own, crops), (given, given_crops))]
        return 1 - kernel_alignment(at[0], at[1]), area >= self.config.min_shared_area

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, cosine(progress, *self.config.momentum))

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return self.teacher.network if self.config.export == "teacher" else self.student


def grid_points(region: Float[Tensor, "N 4"], side: int) -> Float[Tensor, "N M 2"]:
    """Centres (y, x) of side * side equal cells of a rectangle (top, left, height, width)."""
    place = (torch.arange(side, device=region.device) + 0.5) / side
    y = region[:, 0, None] + region[:, 2, None] * place
    x = region[:, 1, None] + region[:, 3, None] * place
    return torch.stack([y[:, :, None].expand(-1, -1, side), x[:, None, :].expand(-1, side, -1)], dim=-1).flatten(1, 2)


def _tokens_at(patches: Tensor, crops: Crops, points: Tensor) -> Tensor:
    """Tokens [N, gh, gw, D] interpolated at points of the image [N, M, 2]."""
    weights = bilinear_rows(places_in(crops, points), (patches.shape[1], patches.shape[2]))
    return weights.to(patches.dtype) @ patches.flatten(1, 2)
