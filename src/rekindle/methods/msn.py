# SPDX-License-Identifier: Apache-2.0
"""MSN: masked siamese networks (Assran et al., 2022, arXiv:2204.07141)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rekindle.core.distributed import all_sum_with_gradient, world_size
from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.precision import full_precision
from rekindle.core.progress import Progress
from rekindle.core.schedules import linear
from rekindle.methods.base import LossBreakdown, Method, MicroBatch
from rekindle.methods.papers import msn as msn_paper
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.methods.shared.whole_step import Joined, Part, Stage, check_images, compared_in_parts
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.mlp_head import HeadNorm, MlpHead
from rekindle.objectives.assignment import sinkhorn
from rekindle.objectives.soft_clustering import volume
from rekindle.views.batch import ViewBatch, by_view
from rekindle.views.token_masks import draw_kept

STRETCH = 1.25  # the authors' schedules are made for so many times the run's steps


class MsnOptions(Options):
    """Options of MSN; defaults are the paper's."""

    num_prototypes: int = Field(1024, ge=2)
    """Number of prototypes K."""
    temperature: float = Field(0.1, gt=0)
    """Temperature tau of the softmax over prototypes."""
    sharpening: float = Field(0.25, gt=0, le=1)
    """Temperature T that sharpens the targets further: their softmax has temperature tau * T."""
    memax_weight: float = Field(1.0, ge=0)
    """Weight lambda of the mean-entropy maximisation."""
    sinkhorn: bool = True
    """Balance the targets over all images of the step, as the authors' configurations do."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Iterations of Sinkhorn-Knopp."""
    mask_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of the large anchor view's patches that is dropped; None: what suited the paper's networks, 0.15 up to the width of a
    ViT-S, 0.3 up to that of a ViT-B, 0.7 beyond."""
    head_hidden: int = Field(2048, ge=1)
    """Width of the two hidden layers of the projection head."""
    head_out: int = Field(256, ge=1)
    """Width of its output and of the prototypes."""
    head_norm: HeadNorm = "bn"
    """Norm in the head: over the batch of all processes, of each row, or none."""
    momentum: tuple[float, float] = (0.996, 1.0)
    """Weight of the teacher's old value: linear between the two over 1.25 times the run's steps, so that the last step is four
    fifths of the way, as the authors' code has it."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated."""


class MsnStudent(nn.Module):
    """A backbone and its projection head: what the teacher holds an average of."""

    def __init__(self, backbone: Backbone, head: MlpHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class Msn(Method):
    """Views of which patches are missing get the prototypes that the teacher gives to the whole other view (section 3).

    The first large view is the target. Anchors are the second, without a random share of its patches, and the small views
    ("focal" masks). The prototypes train and serve both sides.

    The head, with its batch statistics, runs once for the large anchors and once for the small ones, and prototypes are never
    decayed, as in the authors' code. Deviations: the share of dropped patches is chosen by the network's width unless the options
    name it; the prototypes' gradient counts in the norm that is clipped.
    """

    Config = MsnOptions
    STATED = msn_paper.STATED
    COMPARES_IMAGES: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, object]] = {
        "views.global_scale": (0.3, 1.0),
        "views.local_scale": (0.05, 0.3),
        "views.saturation": 0.4,
        "views.blur_p": (0.5, 0.5, 0.5),
        "views.solarize_p": (0.0, 0.0, 0.0),
    }
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 2.5e-4,
        "optim.warmup_epochs": 15.0,
        "optim.start_lr": 5e-5,
        "optim.stretch": STRETCH,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.4,
        "optim.clip_norm": 3.0,
        "optim.clip_over": "all",
        "network.drop_path": 0.0,
        "network.pos_interp": "size",
    }

    def __init__(self, config: MsnOptions, backbone: Backbone) -> None:
        super().__init__()
        if not backbone.has_class_token:
            raise RequestError("MSN compares class tokens, and this backbone has none; choose one with a class token")
        self.config = config
        hidden, out = config.head_hidden, config.head_out
        head = MlpHead(backbone.width, hidden, hidden, out, norm=config.head_norm, activation=nn.GELU, norm_last=False)
        self.student = MsnStudent(backbone, head)
        self.teacher = EmaTeacher(self.student)
        bound = 1 / math.sqrt(out)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, out).uniform_(-bound, bound))
        self.mask_ratio = _ratio_for(backbone.width) if config.mask_ratio is None else config.mask_ratio

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Prototypes are compared by direction only, and are never decayed."""
        return name != "prototypes" and super().decays(name, parameter)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the cross-entropy of anchors to targets and lambda times the negative entropy of the mean anchor (eq. 1).

        They equal the mean of `objectives.plain.row_cross_entropy` of cosines to prototypes, and log K plus
        `objectives.plain.mean_negative_entropy` of the anchors' distributions.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """Targets are balanced, and anchors averaged and normalised, over the images of the step."""
        held = list(micro_batches)
        check_images("MSN", held)
        parts = [self._see(batch, progress) for batch, progress in held]
        stage = Stage("anchors", self._encode, partial(self._compare, held[0][1]))
        yield from compared_in_parts(parts, [stage], self.trained())

    @torch.no_grad()
    def _see(self, batch: ViewBatch, progress: Progress) -> Part:
        """The teacher's class tokens of the target view, [1, B, D]."""
        return Part(
            batch, progress, {"cls": self.teacher.network.backbone.class_token(batch.global_views.pixels[0])[None]}
        )

    def _encode(self, part: Part) -> Joined:
        """Class tokens of the anchors: the large one [1, B, D], from the patches that it keeps, and the small ones [A, B, D]."""
        batch, backbone, pixels = part.batch, self.student.backbone, part.batch.global_views.pixels[1]
        grid = pixels.shape[-2] // backbone.patch_size, pixels.shape[-1] // backbone.patch_size
        count = max(1, math.floor(grid[0] * grid[1] * (1 - self.mask_ratio)))
        keep = draw_kept(part.progress, len(batch), grid, count, purpose="anchor patches")
        found = {"large": backbone.visible_tokens(pixels, keep.to(pixels.device))[None, :, 0]}
        if batch.local_views is not None:
            found["small"] = by_view(backbone.class_token(batch.local_views.pixels.flatten(0, 1)), batch.num_local)
        return found

    def _compare(self, progress: Progress, student: Joined, teacher: Joined) -> LossBreakdown:
        """The terms; each size of anchors has batch statistics of its own."""
        config, head = self.config, self.student.head
        with torch.no_grad():
            rows = self.teacher.network.head(teacher["cls"][0])
            sharp = prototype_scores(rows, self.prototypes, config.temperature * config.sharpening)
            targets = sharp.exp()
            if config.sinkhorn:
                targets = sinkhorn(sharp, temperature=1.0, iterations=config.sinkhorn_iterations)
        anchors = torch.cat([head(cls.flatten(0, 1)) for cls in student.values()])
        scores = prototype_scores(anchors, self.prototypes, config.temperature)
        scores = scores.view(-1, len(targets), scores.shape[-1])
        terms = {"msn": -(targets * scores).sum(dim=-1).mean()}
        weights = {"msn": 1.0}
        probs = scores.exp().flatten(0, 1)
        mean = all_sum_with_gradient(probs.mean(dim=0)) / world_size()
        if config.memax_weight:
            terms["memax"], weights["memax"] = volume(mean), config.memax_weight
        with torch.no_grad():
            stats = {
                "prediction_entropy": -torch.special.xlogy(mean, mean).sum(),
                "target_entropy": -torch.special.xlogy(targets, targets).sum(dim=-1).mean(),
                "agreement": (scores.argmax(dim=-1) == targets.argmax(dim=-1)).float().mean(),
                "momentum": mean.new_tensor(self._momentum(progress)),
            }
        return LossBreakdown.weigh(terms, weights, stats)

    def _momentum(self, progress: Progress) -> float:
        return linear(progress, *self.config.momentum, stretch=STRETCH)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, self._momentum(progress))

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        return self.teacher.network.backbone if self.config.export == "teacher" else self.student.backbone


@full_precision
def prototype_scores(
    rows: Float[Tensor, "R C"], prototypes: Float[Tensor, "K C"], temperature: float
) -> Float[Tensor, "R K"]:
    """Log-probabilities of prototypes: log softmax of cosines / temperature (section 3, eq. for p_i)."""
    unit, ways = (torch.nn.functional.normalize(values, dim=-1) for values in (rows, prototypes))
    scores: Tensor = (unit @ ways.T / temperature).log_softmax(dim=-1)
    return scores


def _ratio_for(width: int) -> float:
    """Larger networks did best with fewer patches (section 5, ablation of the ratio)."""
    return 0.15 if width <= 384 else 0.3 if width <= 768 else 0.7
