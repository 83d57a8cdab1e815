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
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import LossBreakdown
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.mlp_head import HeadNorm, MlpHead
from rekindle.objectives.contrast import cross_view_nce
from rekindle.views.batch import ViewBatch, by_view

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


def class_tokens(
    config: ContrastOptions, teacher: ContrastStudent, batch: ViewBatch, cls: Float[Tensor, "N D"]
) -> dict[str, Tensor]:
    """The teacher's class tokens [V, B, D] of the clean large views, and of small views if the teacher sees them."""
    found = {"cls": by_view(cls, 2)}
    if config.multicrop_role == "teacher" and batch.local_views is not None:
        small = teacher.backbone.class_token(batch.local_views.pixels.flatten(0, 1))
        found["small"] = by_view(small, batch.num_local)
    return found


@torch.no_grad()
def class_keys(teacher: ContrastStudent, tokens: Joined) -> ClassKeys:
    """Keys from the class tokens of all images of the step, as `class_tokens` gives them."""
    rows = torch.cat([teacher.rows("cls", tokens[name]) for name in ("cls", "small") if name in tokens])
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


def small_views_stage(
    config: ContrastOptions, student: ContrastStudent, teacher: ContrastStudent, part: Part, weight: float
) -> list[Stage]:
    """What the small views, which are never corrupted, add to L_CLS, if the student sees any. Args: part, one of the step's."""
    if part.batch.local_views is None or config.multicrop_role == "teacher":
        return []
    num_local = part.batch.num_local

    def encode(part: Part) -> Joined:
        assert part.batch.local_views is not None
        return {"cls": by_view(student.backbone.class_token(part.batch.local_views.pixels.flatten(0, 1)), num_local)}

    def compare(own: Joined, known: Joined) -> LossBreakdown:
        queries = student.rows("cls", own["cls"])
        value, _ = class_contrast(config, queries, class_keys(teacher, known), num_local=num_local, start=2)
        return LossBreakdown.weigh({"cls": value}, {"cls": weight})

    return [Stage("small views", encode, compare)]


def momentum(config: ContrastOptions, progress: Progress) -> float:
    """Weight of the teacher's old value at this step."""
    return cosine(progress, *config.momentum)


def exported(config: ContrastOptions, student: ContrastStudent, teacher: EmaTeacher[ContrastStudent]) -> Backbone:
    """The teacher's backbone unless the options ask for the student's."""
    return teacher.network.backbone if config.export == "teacher" else student.backbone
