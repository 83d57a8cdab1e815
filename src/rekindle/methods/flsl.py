# SPDX-License-Identifier: Apache-2.0
"""FLSL: feature-level self-supervised learning, clustering within and between views (Su et al., 2023, arXiv:2306.06203)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from rekindle.core.distributed import all_sum, all_sum_with_gradient, world_size
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.papers import flsl as flsl_paper
from rekindle.methods.shared.distillation import Distillation, StudentWithHead, new_head
from rekindle.methods.shared.distillation_options import DistillationOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.soft_clustering import mean_shift_error, soft_read, volume
from rekindle.views.batch import ViewBatch
from rekindle.views.windows import check_windows, sample_windows


class FlslOptions(DistillationOptions):
    """Options of FLSL; defaults are the original's (GLARE, section 8.4 of the specification)."""

    shift_weight: float = Field(0.03, ge=0)
    """Weight upsilon of the mean shift within a view, L_ms."""
    cluster_weight: float = Field(1.0, ge=0)
    """Weight eta of the clustering between views, L_km."""
    volume_weight: float = Field(5.0, ge=0)
    """Weight gamma of the volume maximisation, L_vmr."""
    shift_temperature: float = Field(0.1, gt=0)
    """tau_sa times sqrt(D): how sharply a token reads its own view."""
    cluster_temperature: float = Field(0.2, gt=0)
    """tau_ca times sqrt(D): how sharply it reads the teacher's view; not below `shift_temperature`, or tokens collapse."""
    window: int = Field(3, ge=1)
    """Side, in patches, of the windows of the large student view; one patch of each is a query."""
    local_window: int = Field(2, ge=1)
    """The same for small views."""
    random_windows: bool = False
    """Draw the patch of each window; off: the window's first, of windows that begin in a corner of the view drawn each time."""
    norm_last_layer: bool = True
    """Keep the prototypes' gain at 1, so that logits are cosines."""

    @model_validator(mode="after")
    def _consistent(self) -> FlslOptions:
        if self.cluster_temperature < self.shift_temperature:
            raise ValueError(
                f"cluster_temperature = {self.cluster_temperature} is below shift_temperature = {self.shift_temperature}, "
                "which collapses the tokens; raise it to at least that"
            )
        if not (self.shift_weight or self.cluster_weight or self.volume_weight):
            raise ValueError("all weights are 0, so there is no loss; give one of them a value above 0")
        return self


class Flsl(Method):
    """Tokens shift towards the means of their view, and those means fall into the clusters of the teacher's view.

    Views: the teacher's crop, and the student's crops cut out of it, unmirrored. Tokens are patches alone; class token and
    registers of a backbone stay in its sequence. Means run over the step. Deviations: these train along where all weights do (the
    code's network has none); the multi-stage mixing of attentions is left out.
    """

    Config = FlslOptions
    STATED = flsl_paper.STATED
    upkeep: Distillation
    COMPARES_IMAGES: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, object]] = {
        "views.nested": True,
        "views.global_scale": (0.8, 1.0),
        "views.second_scale": (0.5, 1.0),
        "views.local_scale": (0.05, 0.4),
        "views.num_local": 2,
        "views.hflip_p": 0.0,
    }
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 5e-4,
        "optim.warmup_epochs": 30.0,  # of the published 300
        "optim.warmup_limit": 0.1,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.4,
        "views.blur_p": (0.3, 0.3, 0.3),  # half of the views at 0.5, the others at 0.1
        "views.solarize_p": (0.1, 0.1, 0.1),
        "network.positions": "sincos",
        "flsl.num_prototypes": 4096,
    }

    @classmethod
    def check_grids(cls, config: Options, large: int, small: int | None) -> None:
        """Windows fit into their views."""
        assert isinstance(config, FlslOptions)
        check_windows("flsl", config.window, config.local_window, large, small)

    def __init__(self, config: FlslOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.upkeep = Distillation(config, self.student, self.teacher)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return upsilon L_ms + eta L_km + gamma L_vmr.

        Means over all queries of `objectives.plain.mean_shift_error` to where `objectives.plain.mean_shift` leads, and of
        `objectives.plain.row_cross_entropy`; and log K plus `objectives.plain.mean_negative_entropy`.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """The mean assignment of L_vmr is that of all queries of the step."""
        parts = [self._see(batch, progress) for batch, progress in micro_batches]
        stage = Stage("queries", self._encode, partial(self._compare, parts[0].progress))
        yield from compared_in_parts(parts, [stage], self.trained())

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress) -> Part:
        """Z', the teacher's tokens of the outer view, [1, B, P, D]."""
        target: Tokens = self.teacher.network.backbone(batch.global_views.pixels[0])
        return Part(batch, progress, {"memory": target.patches.flatten(1, 2)[None]})

    def _encode(self, part: Part) -> Joined:
        """Sums over each image's queries: of both errors, of the student's and the teacher's distributions; [1, B, ...]."""
        config, batch, memory = self.config, part.batch, part.known["memory"][0]
        shifts, means, found = [], [], []
        views = [(batch.global_views.pixels[1], 1, config.window)]
        if batch.local_views is not None:
            views.append((batch.local_views.pixels.flatten(0, 1), batch.num_local, config.local_window))
        for pixels, count, window in views:
            tokens: Tokens = self.student.backbone(pixels)
            z = tokens.patches.flatten(1, 2)
            query = self._queries(z, tokens.grid, count, window, part.progress)  # z_i, [count * B, M, D]
            mean = soft_read(query, z, temperature=config.shift_temperature)  # z^_i
            shifts.append(of_images(mean_shift_error(query, mean), len(batch)))
            means.append(of_images(mean.to(z.dtype), len(batch)))
            with torch.no_grad():
                there = soft_read(query, memory.repeat(count, 1, 1), temperature=config.cluster_temperature)  # z^+_i
                found.append(of_images(there.to(z.dtype), len(batch)))
        log_p = self._log_probs(torch.cat(means, dim=1).flatten(0, 1))
        log_p = log_p.view(len(batch), -1, log_p.shape[-1])  # [B, M of all, K]
        targets = self._targets(torch.cat(found, dim=1).flatten(0, 1), part.progress).view_as(log_p)
        sums = {
            "ms": torch.cat(shifts, dim=1).sum(dim=1),
            "km": -(targets * log_p).sum(dim=(1, 2)),
            "assigned": log_p.exp().sum(dim=1),
            "targets": targets.sum(dim=1),
            "entropy": -torch.special.xlogy(targets, targets).sum(dim=(1, 2)),
            "queries": torch.full((len(batch),), float(log_p.shape[1]), device=log_p.device),
        }
        return {name: value[None] for name, value in sums.items()}

    def _compare(self, progress: Progress, student: Joined, teacher: Joined) -> LossBreakdown:
        """The terms, from the sums over all images of the step."""
        config, sums = self.config, {name: value.sum(dim=(0, 1)) for name, value in student.items()}
        count = sums["queries"]
        assigned = all_sum_with_gradient(sums["assigned"]) / (count * world_size())  # mean assignment
        terms = {"ms": sums["ms"] / count, "km": sums["km"] / count, "vmr": volume(assigned)}
        weights = {"ms": config.shift_weight, "km": config.cluster_weight, "vmr": config.volume_weight}
        mean_target = all_sum(sums["targets"]) / (count * world_size())
        stats = {
            "entropy_patch": sums["entropy"] / count,
            "divergence_patch": torch.special.xlogy(mean_target, mean_target * len(mean_target)).sum(),
        }
        return LossBreakdown.weigh(terms, weights, stats | self.upkeep.stats(progress, {}, count))

    def _queries(self, z: Tensor, grid: tuple[int, int], views: int, window: int, progress: Progress) -> Tensor:
        """One token of each window, [views * B, M, D]."""
        index = sample_windows(
            progress,
            len(z) // views,
            views,
            grid,
            window,
            is_random=self.config.random_windows,
            purpose=f"windows {views}",
        )
        return z.gather(1, index.flatten(0, 1).to(z.device)[..., None].expand(-1, -1, z.shape[-1]))

    def _log_probs(self, means: Tensor) -> Tensor:
        """Return log softmax(g(z^_i) / tau_s), in float32."""
        return F.log_softmax(self.student.head(means).float() / self.config.student_temperature, dim=-1)

    @torch.no_grad()
    def _targets(self, found: Tensor, progress: Progress) -> Tensor:
        """softmax(g'(z^+_i) / tau_t), without centre."""
        logits = self.teacher.network.head(found).float()
        return F.softmax(logits / self.upkeep.temperature(progress), dim=-1)


def of_images(rows: Tensor, images: int) -> Tensor:
    """Rows of queries [V * B, M, ...] beside each other for each image: [B, V * M, ...]."""
    return rows.view(-1, images, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)
