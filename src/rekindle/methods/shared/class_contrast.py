# SPDX-License-Identifier: Apache-2.0
"""Class-token contrast between corrupted and clean views, with small views: MMC's L_CLS, which is SiT's as well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from rekindle.core.distributed import all_rows
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown
from rekindle.methods.shared.parts import gradient_in_advance
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.mlp_head import HeadNorm, MlpHead
from rekindle.objectives.contrast import cross_view_nce
from rekindle.views.batch import ViewBatch

NormViews = Literal["each", "together"]


class ContrastOptions(Options):
    """Contrast with a momentum teacher; defaults are MMC's."""

    temperature: float = Field(0.2, gt=0)
    """Temperature tau of the softmax over keys."""
    scale_2tau: bool = False
    """Multiply contrastive losses by 2 * temperature, as MoCo v3 does."""
    cls_pairs: Literal["across", "same"] = "across"
    """A large view's class token is compared with the teacher's of the other large view, or of the same one."""
    multicrop_role: Literal["student", "teacher"] = "student"
    """Who encodes the small views: the student (as in the ancestors of MMC), or the teacher (as its text says)."""
    head_hidden: int = Field(4096, ge=1)
    """Width of the hidden layers of the heads whose outputs are compared."""
    head_layers: int = Field(3, ge=1)
    """Layers of these heads."""
    head_out: int = Field(256, ge=1)
    """Width of queries and keys."""
    head_norm: HeadNorm = "bn"
    """Norm in these heads: over the batch of all processes, of each row (for tiny batches), or none."""
    norm_views: NormViews = "each"
    """Batch statistics of the heads are of one view at a time, or of all views that are encoded together."""
    momentum: tuple[float, float] = (0.996, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated."""


class ContrastStudent(nn.Module):
    """A backbone and the heads whose outputs are compared: what the teacher holds an average of."""

    def __init__(
        self, backbone: Backbone, config: ContrastOptions, *, levels: Iterable[Literal["cls", "patch"]]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._apart = config.norm_views == "each"
        hidden = [config.head_hidden] * (config.head_layers - 1)
        self.heads = nn.ModuleDict(
            {level: MlpHead(backbone.width, *hidden, config.head_out, norm=config.head_norm) for level in levels}
        )

    def rows(self, level: Literal["cls", "patch"], tokens: Float[Tensor, "V *rows D"]) -> Float[Tensor, "V *rows C"]:
        """Queries or keys of several views; batch statistics are over images (and patches), of each view or of all together."""
        head = self.heads[level]
        if not self._apart:
            together: Tensor = head(tokens.flatten(0, -2)).view(*tokens.shape[:-1], -1)
            return together
        return torch.stack([head(view.flatten(0, -2)).view(*view.shape[:-1], -1) for view in tokens])


@dataclass(frozen=True)
class ClassKeys:
    """The teacher's class keys of all processes.

    Attributes:
        rows: [T, G, C], large views first.
        first: image at which this process's begin.
    """

    rows: Tensor
    first: int


def check_images(method: str, batch: ViewBatch) -> None:
    """Raise RequestError for a micro-batch of a single image, which has nothing to be told from."""
    if len(batch) < 2:
        raise RequestError(
            f"{method} contrasts images with each other and needs at least two at a time; raise --batch-size or "
            "--engine.micro-batch-size"
        )


def class_keys(
    config: ContrastOptions, teacher: ContrastStudent, batch: ViewBatch, cls: Float[Tensor, "N D"]
) -> ClassKeys:
    """Keys from the teacher's class tokens of the clean large views, and of small views if the teacher sees them."""
    rows = teacher.rows("cls", by_view(cls, 2))
    if config.multicrop_role == "teacher" and batch.local_views is not None:
        small = teacher.backbone.class_token(batch.local_views.pixels.flatten(0, 1))
        rows = torch.cat([rows, teacher.rows("cls", by_view(small, batch.num_local))])
    gathered, first = all_rows(rows.transpose(0, 1))
    return ClassKeys(gathered.transpose(0, 1), first)


def compared_views(config: ContrastOptions, num_local: int) -> Bool[Tensor, "S T"]:
    """Which views of the student (two large ones, then the small ones it sees) are compared with which of the teacher."""
    extra = {config.multicrop_role: num_local}
    pairs = torch.ones(2 + extra.get("student", 0), 2 + extra.get("teacher", 0), dtype=torch.bool)
    pairs[:2, :2] = torch.eye(2, dtype=torch.bool) == (config.cls_pairs == "same")
    return pairs


def class_contrast(
    config: ContrastOptions, queries: Float[Tensor, "s B C"], keys: ClassKeys, *, num_local: int, start: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What some views of the student add to L_CLS, the plain mean over all pairs of views; and the fraction of right matches.

    Args: queries of the student's views `start` and following.
    """
    pairs = compared_views(config, num_local).to(queries.device)
    used = pairs[start : start + len(queries)]
    losses, hits = cross_view_nce(queries, keys.rows, temperature=config.temperature, first=keys.first)
    scale = 2 * config.temperature if config.scale_2tau else 1.0
    return scale * (losses * used).sum() / pairs.sum(), (hits * used).sum() / used.sum().clamp_min(1)


def small_views_part(
    config: ContrastOptions, student: ContrastStudent, batch: ViewBatch, keys: ClassKeys, weight: float
) -> list[LossBreakdown]:
    """What the small views, which are never corrupted, add to L_CLS, with its gradient in advance."""
    if batch.local_views is None or config.multicrop_role == "teacher":
        return []
    pixels, num_local = batch.local_views.pixels.flatten(0, 1), batch.num_local

    def part() -> LossBreakdown:
        tokens = by_view(student.backbone.class_token(pixels), num_local)
        value, _ = class_contrast(config, student.rows("cls", tokens), keys, num_local=num_local, start=2)
        return LossBreakdown.weigh({"cls": value}, {"cls": weight})

    return [gradient_in_advance([part], [*student.backbone.parameters(), *student.heads["cls"].parameters()])]


def by_view(rows: Float[Tensor, "N ..."], views: int) -> Float[Tensor, "V B ..."]:
    """Rows of several views, views first, apart."""
    return rows.view(views, -1, *rows.shape[1:])


def momentum(config: ContrastOptions, progress: Progress) -> float:
    """Weight of the teacher's old value at this step."""
    return cosine(progress, *config.momentum)


def exported(config: ContrastOptions, student: ContrastStudent, teacher: EmaTeacher[ContrastStudent]) -> Backbone:
    """The teacher's backbone unless the options ask for the student's."""
    return teacher.network.backbone if config.export == "teacher" else student.backbone
