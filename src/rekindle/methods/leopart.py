# SPDX-License-Identifier: Apache-2.0
"""Leopart: object parts by clustering dense tokens of the foreground (Ziegler and Asano, 2022, arXiv:2204.13101)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rekindle.core.distributed import all_rows, all_sum, rank, world_size
from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import row_uniform
from rekindle.methods.base import LossBreakdown, Method, MicroBatch, PictureRows
from rekindle.methods.papers import leopart as leopart_paper
from rekindle.methods.shared.distillation import Distillation, StudentWithHead, new_head
from rekindle.methods.shared.distillation_options import DistillationOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.objectives.assignment import sinkhorn_shift
from rekindle.objectives.foreground import attended_patches
from rekindle.objectives.pairs import count_per_part
from rekindle.views.batch import Crops, ViewBatch, by_view
from rekindle.views.cells import ROUNDING, CellWeights, cell_weights, over_cells
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

    def observe(self, rows: Tensor, order: Tensor) -> None:
        """Take note of rows [V, R, C], in the order [V, R] in which they shall stand; where it is infinite they do not enter."""
        self._observed.append((rows.detach().float(), order))

    def forget(self) -> None:
        """Drop what was observed since the last update."""
        self._observed = []

    @torch.no_grad()
    def update(self) -> None:
        """Put what all processes observed in front; the oldest rows leave."""
        for rows, order in self._observed:
            for view in range(len(rows)):
                new, place = all_rows(rows[view])[0], all_rows(order[view])[0]
                new = new[place.argsort()[: int(place.isfinite().sum())]]
                kept = torch.cat([new, self.rows[view]])[: self.rows.shape[1]]
                self.rows[view].copy_(kept)
                self.filled[view] += len(new)
        self.forget()


@dataclass(frozen=True)
class Pair:
    """A student's view, its crops and grid of patches, and the teacher's large view that it is compared with."""

    number: int
    crops: Crops
    grid: tuple[int, int]
    place: int


@dataclass(frozen=True)
class Seen:
    """What a micro-batch is before any loss.

    Attributes:
        batch: its views, and progress.
        rows: [2, B, P, C] the teacher's unit rows of the large views' patches.
        mask: [2, B, gh, gw] patches that count.
        counts: [pairs] cells that are compared, of each pair of a student's and a teacher's view.
    """

    batch: ViewBatch
    progress: Progress
    rows: Tensor
    mask: Tensor
    counts: Tensor


class Leopart(Method):
    """The teacher puts the patches of a large view into clusters, balanced over all images; every other view predicts them.

    Both are compared in the cells of the rectangle that the two views share, and only where the teacher's class token looks.

    Deviations: prototypes are kept at unit length by their parametrisation and not by a projection after each step; a small view
    need not share anything with both large ones, and counts where it does; a cell is foreground up to rounding; the teacher runs
    in evaluation mode; the queue takes fewer rows from a step that has too little foreground.
    """

    Config = LeopartOptions
    STATED = leopart_paper.STATED
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
        self._mass: list[Tensor] = []  # of the targets of a step's parts
        self.upkeep = Distillation(config, self.student, self.teacher)

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the cross-entropy of predicted clusters to the teacher's, mean over cells, other views and both large views.

        Equals the mean of `objectives.plain.row_cross_entropy` over the cells that count, whose scores and targets are
        `objectives.plain.roi_aligned`.
        """
        return self.only_part(batch, progress)

    def parts(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Callable[[], LossBreakdown]]:
        """The teacher's rows of the whole step are balanced together, and cells that count are counted over the step."""
        with torch.no_grad():
            seen = [self._see(batch, progress) for batch, progress in micro_batches]
            shifts = [self._balance(seen, view) for view in range(2)]
            if self.config.queue_length and self.training:
                self._observe(seen)
        counts = count_per_part([own.counts for own in seen])
        for own in seen:
            yield partial(self._part, own, shifts, counts)

    def _see(self, batch: ViewBatch, progress: Progress) -> Seen:
        teacher = self.teacher.network
        target: Tokens = teacher.backbone(
            batch.global_views.pixels.flatten(0, 1), cls_attention=self.config.mask != "all"
        )
        mask = by_view(self._mask(target), 2)
        rows = by_view(teacher.head.project(target.patches.flatten(1, 2)).float(), 2)
        given = batch.global_views.crops.to(mask.device)
        counts = [
            self._counted(pair, given[pair.place], mask[pair.place])[0].sum()
            for pair in self._pairs(batch, mask.device)
        ]
        return Seen(batch, progress, rows, mask, torch.stack(counts))

    def _part(self, seen: Seen, shifts: Sequence[Tensor], counts: Tensor) -> LossBreakdown:
        """A micro-batch's part of the loss. Args: shifts, that balance; counts, its share of the cells of each pair of views."""
        config, batch, mask = self.config, seen.batch, seen.mask
        balanced = [
            (self._scores(rows, seen.progress) + shift).softmax(dim=-1)
            for rows, shift in zip(seen.rows, shifts, strict=True)
        ]
        found = torch.stack(balanced).view(*mask.shape, -1)  # [2, B, gh, gw, K]
        given = batch.global_views.crops.to(mask.device)
        logits = [own for views in self._logits(batch) for own in views]
        losses = []
        for pair in self._pairs(batch, mask.device):
            counted, weights, own = self._counted(pair, given[pair.place], mask[pair.place])
            log_p = F.log_softmax(over_cells(logits[pair.number], own) / config.student_temperature, dim=-1)
            error = -(over_cells(found[pair.place], weights) * log_p).sum(dim=-1)
            losses.append((error * counted).sum())
        total = (torch.stack(losses) / counts).sum() / len(losses)
        rows = found.flatten(0, 3)
        self._mass.append(rows.sum(dim=0))
        stats = {
            "foreground": mask.float().mean(),
            "matched": seen.counts.float().mean() / (len(batch) * config.cells**2),
            "entropy_patch": -torch.special.xlogy(rows, rows).sum(dim=-1).mean(),
            "queued": self.queue.filled.float().mean().clamp_max(config.queue_length),
        }
        return LossBreakdown.weigh(
            {"parts": total}, {"parts": 1.0}, stats | self.upkeep.stats(seen.progress, {}, total)
        )

    def _mask(self, target: Tokens) -> Tensor:
        """Patches [2B, gh, gw] of the teacher's views that count."""
        config = self.config
        if config.mask == "all":
            return torch.ones(target.patches.shape[:3], dtype=torch.bool, device=target.patches.device)
        assert target.cls_attention is not None
        front = attended_patches(target.cls_attention, mass=config.attention_mass, blur_sigma=config.attention_blur)
        return front if config.mask == "foreground" else ~front

    def _scores(self, rows: Tensor, progress: Progress) -> Tensor:
        """The teacher's scores of unit rows, divided by its temperature."""
        return rows @ self.teacher.network.head.prototypes().float().T / self.upkeep.temperature(progress)

    def _balance(self, seen: Sequence[Seen], view: int) -> Tensor:
        """The shift that balances a large view's rows over the images of the step, with the queue of that view.

        Queued rows are scored by the student's prototypes, as in the code.
        """
        earlier = self.queue.share(view).float() @ self.student.head.prototypes().float().T

        def blocks() -> Iterator[Tensor]:
            yield earlier / self.upkeep.temperature(seen[0].progress)
            for own in seen:
                yield self._scores(own.rows[view].flatten(0, 1), own.progress)

        return sinkhorn_shift(blocks, earlier.new_zeros(earlier.shape[1]), self.config.sinkhorn_iterations)

    def _observe(self, seen: Sequence[Seen]) -> None:
        """Draw rows of the step for the queue, among those that count: [2, B, P, C] and [2, B, P] of each micro-batch."""
        orders = []
        for own in seen:
            _, images, patches, _ = own.rows.shape
            drawn = row_uniform("queue", own.progress, images, 2, patches).transpose(0, 1).to(own.rows.device)
            orders.append(drawn.masked_fill(~own.mask.flatten(2), torch.inf).flatten(1))
        rows = torch.cat([own.rows.flatten(1, 2) for own in seen], dim=1)
        order = torch.cat(orders, dim=1)
        number = self.config.queue_per_image * sum(len(own.batch) for own in seen) * world_size()
        everywhere = all_rows(order.T)[0].T  # [2, patches of the step]
        number = min(number, everywhere.shape[1])
        last = everywhere.kthvalue(number, dim=1, keepdim=True).values
        first = order.topk(min(number, order.shape[1]), dim=1, largest=False)
        chosen = rows.gather(1, first.indices[..., None].expand(-1, -1, rows.shape[-1]))
        self.queue.observe(chosen, first.values.masked_fill(first.values > last, torch.inf))

    def _logits(self, batch: ViewBatch) -> Iterator[Sequence[Tensor]]:
        """Scores [B, gh, gw, K] of the student's views, large ones first."""
        for views in (batch.global_views, batch.local_views):
            if views is not None:
                tokens: Tokens = self.student.backbone(views.pixels.flatten(0, 1))
                yield self.student.head(tokens.patches).float().chunk(len(views.pixels))

    def _pairs(self, batch: ViewBatch, device: torch.device) -> Iterator[Pair]:
        """Every student view with each large view of the teacher other than itself."""
        number = 0
        for views in (batch.global_views, batch.local_views):
            if views is None:
                continue
            side = self.student.backbone.patch_size
            grid = (views.pixels.shape[-2] // side, views.pixels.shape[-1] // side)
            for own in range(len(views.pixels)):
                for place in range(2):
                    if number != place:
                        yield Pair(number, views.crops[own].to(device), grid, place)
                number += 1

    def _counted(self, pair: Pair, given: Crops, mask: Tensor) -> tuple[Tensor, CellWeights, CellWeights]:
        """Cells [B, c, c] that a student view and a teacher view share and that count, and how cells read both."""
        region, area = shared_region(pair.crops, given)
        weights = cell_weights(region, given, (mask.shape[1], mask.shape[2]), self.config.cells)
        own = cell_weights(region, pair.crops, pair.grid, self.config.cells)
        counted = over_cells(mask[..., None].to(weights[0].dtype), weights)[..., 0] > 1 - ROUNDING
        return counted & (area > 0)[:, None, None], weights, own

    def after_step(self, progress: Progress) -> None:
        """Move teacher and queue."""
        self.upkeep.after_step(progress)
        self.queue.update()

    def abandon_step(self) -> None:
        """Forget the rows that wait for the queue, and the targets of the step."""
        self.upkeep.abandon_step()
        self.queue.forget()
        self._mass.clear()

    def step_stats(self) -> dict[str, Tensor]:
        """Prototypes that had a tenth of an equal share of the step's patches."""
        mass = all_sum(torch.stack(self._mass).sum(dim=0))
        self._mass.clear()
        used = (mass / mass.sum() > 0.1 / self.config.num_prototypes).sum().float()
        return {"used_prototypes": used} | self.upkeep.step_stats()

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
