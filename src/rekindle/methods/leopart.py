# SPDX-License-Identifier: Apache-2.0
"""Leopart: object parts by clustering dense tokens of the foreground (Ziegler and Asano, 2022, arXiv:2204.13101)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rekindle.core.distributed import all_rows, rank, world_size
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import row_uniform
from rekindle.methods.base import LossBreakdown, Method, PictureRows
from rekindle.methods.papers import leopart as leopart_paper
from rekindle.methods.shared.distillation import Distillation, StudentWithHead, new_head
from rekindle.methods.shared.distillation_options import DistillationOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.assignment import sinkhorn
from rekindle.objectives.foreground import attended_patches
from rekindle.objectives.pairs import count_per_process
from rekindle.views.batch import Crops, ViewBatch
from rekindle.views.cells import ROUNDING, cell_weights, over_cells
from rekindle.views.geometry import shared_region
from rekindle.views.marking import as_bytes, faded


class LeopartOptions(DistillationOptions):
    """Options of Leopart; defaults are those of its code. The head's rows have unit length and so have the prototypes."""

    num_prototypes: int = Field(300, ge=2)
    """Clusters K, the outputs of the head."""
    norm_last_layer: bool = True
    """Prototypes have unit length, so that scores are cosines."""
    teacher_temperature: tuple[float, float] = (0.05, 0.05)
    """Sharpening of the teacher's scores before they are balanced: epsilon of the paper."""
    teacher_temperature_epochs: int = Field(0, ge=0)
    """Epochs between the two."""
    momentum: tuple[float, float] = (0.9995, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    freeze_last_layer_epochs: int = Field(0, ge=0)
    """Epochs in which the prototypes do not move."""
    export: Literal["teacher", "student"] = "student"
    """Which network is saved and evaluated."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Iterations of Sinkhorn-Knopp over the patches of one large view of all images of a step, and the queue."""
    queue_length: int = Field(8192, ge=0)
    """Rows of earlier steps that are balanced with those of a step, once there are so many; 0: none."""
    queue_per_image: int = Field(10, ge=1)
    """Rows of an image, on average, that a step puts into the queue."""
    mask: Literal["foreground", "all", "background"] = "foreground"
    """Which cells are compared: those that the teacher's class token attends to, all, or the others."""
    attention_mass: float = Field(0.6, gt=0, le=1)
    """Share of the attention that the foreground holds."""
    attention_blur: float = Field(0.6, gt=0)
    """Standard deviation, in patches, of the blur of the attention before that."""
    cells: int = Field(7, ge=1)
    """Cells per side of the rectangle that two views share."""

    @model_validator(mode="after")
    def _consistent(self) -> LeopartOptions:
        if self.attention_mass == 1.0 and self.mask == "background":
            raise ValueError("attention_mass = 1 leaves no background to learn from; lower it, or use mask = all")
        return self


class RowQueue(nn.Module):
    """Rows of earlier steps, newest first. Observed rows enter when the step ends.

    Args: views, queues side by side; length of each; width of a row.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(views, length, width))
        self.register_buffer("filled", torch.zeros(views, dtype=torch.int64))
        self._observed: list[tuple[Tensor, Tensor]] = []

    def share(self, view: int) -> Tensor:
        """This process's part of a queue; empty until the queue is full."""
        is_full = int(self.filled[view]) >= self.rows.shape[1]
        return self.rows[view, rank() :: world_size()] if is_full else self.rows[view, :0]

    def observe(self, rows: Tensor, valid: Tensor) -> None:
        """Take note of rows [V, R, C], of which `valid` [V, R] may enter."""
        self._observed.append((rows.detach().float(), valid))

    def forget(self) -> None:
        """Drop what was observed since the last update."""
        self._observed = []

    @torch.no_grad()
    def update(self) -> None:
        """Put what all processes observed in front; the oldest rows leave."""
        for rows, valid in self._observed:
            for view in range(len(rows)):
                new = all_rows(rows[view])[0][all_rows(valid[view])[0]]
                kept = torch.cat([new, self.rows[view]])[: self.rows.shape[1]]
                self.rows[view].copy_(kept)
                self.filled[view] += len(new)
        self.forget()


class Leopart(Method):
    """The teacher puts the patches of a large view into clusters, balanced over all images; every other view predicts them.

    Both are compared in the cells of the rectangle that the two views share, and only where the teacher's class token looks.

    Deviations: prototypes are kept at unit length by their parametrisation and not by a projection after each step; a small view
    need not share anything with both large ones, and counts where it does; a cell is foreground up to rounding; the teacher runs
    in evaluation mode; the queue takes fewer rows from a step that has too little foreground.
    """

    Config = LeopartOptions
    STATED = leopart_paper.STATED
    COMPARES_IMAGES: ClassVar[bool] = True
    upkeep: Distillation
    NEEDS: ClassVar[Mapping[str, object]] = {
        "views.num_local": 4,
        "views.overlap": "reject",
        "views.hflip_p": 0.0,
        "views.brightness": 0.8,
        "views.contrast": 0.8,
        "views.saturation": 0.8,
        "views.hue": 0.2,
        "views.blur_p": (0.5, 0.5, 0.5),
        "views.solarize_p": (0.0, 0.0, 0.0),
    }
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 1e-4,
        "optim.lr_is_peak": True,
        "optim.backbone_lr_factor": 0.1,
        "optim.warmup_epochs": 0.0,
        "optim.final_lr": 0.0,
        "optim.weight_decay": 0.04,
        "optim.final_weight_decay": 0.5,
        "optim.clip_norm": 0.0,
        "leopart.mask": "all",
    }

    def __init__(self, config: LeopartOptions, backbone: Backbone) -> None:
        super().__init__()
        if config.mask != "all" and not backbone.has_class_token:
            raise RequestError(
                "Leopart's foreground is what the class token attends to, and this backbone has none; use --leopart.mask all"
            )
        self.config = config
        self.student = StudentWithHead(backbone, new_head(config, backbone.width))
        self.teacher = EmaTeacher(self.student)
        self.queue = RowQueue(2, config.queue_length, config.head_bottleneck)
        self.upkeep = Distillation(config, self.student, self.teacher)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the cross-entropy of predicted clusters to the teacher's, mean over cells, other views and both large views.

        Equals the mean of `objectives.plain.row_cross_entropy` over the cells that count, whose scores and targets are
        `objectives.plain.roi_aligned`.
        """
        config, images = self.config, len(batch)
        large = batch.global_views.pixels.flatten(0, 1)
        with torch.no_grad():
            target: Tokens = self.teacher.network.backbone(large, cls_attention=config.mask != "all")
            mask = self._mask(target)  # [2B, gh, gw]
            found = self._assign(target, mask, progress)  # [2B, gh, gw, K]
        targets, masks = found.chunk(2), mask.chunk(2)
        losses, counts = [], []
        for crops, view, logits in self._views(batch):
            for place in range(2):
                if view != place:
                    given = batch.global_views.crops[place].to(logits.device)
                    loss, count = self._pair(logits, crops, targets[place], given, masks[place])
                    losses.append(loss)
                    counts.append(count)
        others = 1 + batch.num_local
        total = torch.stack(losses).sum() / (2 * others)
        rows = found.flatten(0, 2)
        mean = rows.mean(dim=0)
        stats = {
            "foreground": mask.float().mean(),
            "matched": torch.stack(counts).float().mean() / (images * config.cells**2),
            "entropy_patch": -torch.special.xlogy(rows, rows).sum(dim=-1).mean(),
            "used_prototypes": (mean > 0.1 / config.num_prototypes).sum().float(),
            "queued": self.queue.filled.float().mean().clamp_max(config.queue_length),
        }
        return LossBreakdown.weigh({"parts": total}, {"parts": 1.0}, stats | self.upkeep.stats(progress, {}, total))

    def _mask(self, target: Tokens) -> Tensor:
        """Patches [2B, gh, gw] of the teacher's views that count."""
        config = self.config
        if config.mask == "all":
            return torch.ones(target.patches.shape[:3], dtype=torch.bool, device=target.patches.device)
        assert target.cls_attention is not None
        front = attended_patches(target.cls_attention, mass=config.attention_mass, blur_sigma=config.attention_blur)
        return front if config.mask == "foreground" else ~front

    def _assign(self, target: Tokens, mask: Tensor, progress: Progress) -> Tensor:
        """The teacher's clusters [2B, gh, gw, K], balanced over each large view of all images and the queue of that view.

        Queued rows are scored by the student's prototypes, as in the code.
        """
        config, head = self.config, self.teacher.network.head
        rows = torch.stack(head.project(target.patches.flatten(1, 2)).float().chunk(2))  # [2, B, P, C]
        found = []
        for view in range(2):
            scores = rows[view].flatten(0, 1) @ head.prototypes().float().T
            earlier = self.queue.share(view).float() @ self.student.head.prototypes().float().T
            balanced = sinkhorn(
                torch.cat([earlier, scores]),
                temperature=self.upkeep.temperature(progress),
                iterations=config.sinkhorn_iterations,
            )
            found.append(balanced[len(earlier) :])
        if config.queue_length and self.training:
            self._observe(rows, torch.stack(mask.flatten(1).chunk(2)), progress)
        return torch.stack(found).view(*target.patches.shape[:3], -1)

    def _observe(self, rows: Tensor, mask: Tensor, progress: Progress) -> None:
        """Draw rows of this micro-batch for the queue, among those that count: [2, B, P, C] and [2, B, P]."""
        _, images, patches, _ = rows.shape
        order = row_uniform("queue", progress, images, 2, patches).transpose(0, 1).to(rows.device)
        order = order.masked_fill(~mask, 2.0).flatten(1)
        count = min(self.config.queue_per_image * images, order.shape[1])
        first = order.topk(count, dim=1, largest=False)
        chosen = rows.flatten(1, 2).gather(1, first.indices[..., None].expand(-1, -1, rows.shape[-1]))
        self.queue.observe(chosen, first.values < 2.0)

    def _views(self, batch: ViewBatch) -> Iterator[tuple[Crops, int, Tensor]]:
        """Crops, number and scores [B, gh, gw, K] of every student view."""
        first = 0
        for views in (batch.global_views, batch.local_views):
            if views is None:
                continue
            tokens: Tokens = self.student.backbone(views.pixels.flatten(0, 1))
            scores: Tensor = self.student.head(tokens.patches).float()
            for number, logits in enumerate(scores.chunk(len(views.pixels))):
                yield views.crops[number].to(logits.device), first + number, logits
            first += len(views.pixels)

    def _pair(self, logits: Tensor, crops: Crops, target: Tensor, given: Crops, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the cells that a student view and a teacher view share and that count, and their number."""
        region, area = shared_region(crops, given)
        weights = cell_weights(region, given, (target.shape[1], target.shape[2]), self.config.cells)
        own = cell_weights(region, crops, (logits.shape[1], logits.shape[2]), self.config.cells)
        log_p = F.log_softmax(over_cells(logits, own) / self.config.student_temperature, dim=-1)
        with torch.no_grad():
            wanted = over_cells(target, weights)
            counted = over_cells(mask[..., None].to(logits.dtype), weights)[..., 0] > 1 - ROUNDING
            counted = counted & (area > 0)[:, None, None]
        rows = -(wanted * log_p).sum(dim=-1)
        return (rows * counted).sum() / count_per_process(counted.sum()), counted.sum()

    def after_step(self, progress: Progress) -> None:
        """Move teacher and queue."""
        self.upkeep.after_step(progress)
        self.queue.update()

    def abandon_step(self) -> None:
        """Forget the rows that wait for the queue."""
        self.upkeep.abandon_step()
        self.queue.forget()

    def pictures(self, batch: ViewBatch, progress: Progress) -> PictureRows:
        """A large view, and of it what the teacher's class token attends to."""
        backbone, pixels = self.student.backbone, batch.global_views.pixels[0]
        if self.config.mask == "all":
            return {}
        mask = self._mask(self.teacher.network.backbone(pixels, cls_attention=True)).cpu()
        shown = as_bytes(pixels, backbone.mean, backbone.std)
        return {
            "foreground": {
                "image": shown,
                self.config.mask: torch.stack([faded(v, m) for v, m in zip(shown, mask, strict=True)]),
            }
        }
