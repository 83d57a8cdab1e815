# SPDX-License-Identifier: Apache-2.0
"""Self-distillation (DINO, arXiv:2104.14294, section 3.1): both heads during a step, centre, temperatures, upkeep of the teacher.

`HeadPair` makes the teacher's targets and the student's losses; `Distillation` is what happens around a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rekindle.core.distributed import all_sum, is_distributed
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine, epoch_ramp
from rekindle.methods.base import LossBreakdown, Upkeep
from rekindle.methods.shared.distillation_options import CentredOptions, DistillationOptions
from rekindle.methods.shared.teacher import EmaTeacher
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.objectives.assignment import sinkhorn_shift
from rekindle.objectives.pairs import cross_view_pairs
from rekindle.objectives.prototypes import Compared, TargetRows, prototype_cross_entropy
from rekindle.objectives.row_blocks import HEAD_STEP, whole_steps
from rekindle.views.batch import ViewBatch

BALANCED_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that are balanced at a time: what the caches of a CPU hold, and enough to fill a GPU."""


class StudentWithHead(nn.Module):
    """A backbone and its projection head: what the teacher holds an average of."""

    def __init__(self, backbone: Backbone, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


@runtime_checkable
class Distilled(Protocol):
    """A student's network, and the teacher's."""

    backbone: Backbone
    head: DinoHead


def new_head(config: DistillationOptions, width: int) -> DinoHead:
    """Return a fresh head for features of this width."""
    return DinoHead(
        width,
        config.num_prototypes,
        hidden=config.head_hidden,
        bottleneck=config.head_bottleneck,
        norm_last_layer=config.norm_last_layer,
    )


def new_centres(levels: Sequence[str], config: CentredOptions) -> nn.ModuleDict:
    """One running centre per level."""
    return nn.ModuleDict({level: Centre(config.num_prototypes, config.centre_momentum) for level in levels})


def teacher_temperature(progress: Progress, values: tuple[float, float], ramp_epochs: int) -> float:
    """Temperature of the teacher: linear per epoch between `values`, over at most 0.3 of the run's epochs."""
    return epoch_ramp(progress, *values, ramp_epochs=min(ramp_epochs, int(0.3 * progress.num_epochs)))


class Centre(nn.Module):
    """The running mean C of the teacher's logits on one level (DINO, eq. 4).

    C <- m*C + (1-m) * mean, the mean over all rows that were observed since the last update, in all micro-batches and
    all processes. Without a row the centre stays as it is.
    """

    value: Tensor
    _sum: Tensor

    def __init__(self, num_prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_prototypes))
        self.register_buffer("_sum", torch.zeros(num_prototypes), persistent=False)
        self.num_observed = 0

    @torch.no_grad()
    def observe_rows(self, rows: Tensor, prototypes: Tensor) -> None:
        """Take note of the logits of rows [R, C] against prototypes [K, C]; nothing moves before `update`.

        The sum of the logits is the product with the sum of the rows.
        """
        total = rows.sum(dim=0, dtype=self._sum.dtype)
        self._sum.addmv_(prototypes.to(self._sum.dtype), total)
        self.num_observed += rows.shape[0]

    @torch.no_grad()
    def forget(self) -> None:
        """Drop what was observed since the last update."""
        self._sum.zero_()
        self.num_observed = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre by what was observed, and forget it."""
        count = (
            float(all_sum(torch.tensor(float(self.num_observed), device=self._sum.device)))
            if is_distributed()
            else self.num_observed
        )
        if count:
            self.value.mul_(self.momentum).add_(all_sum(self._sum), alpha=(1.0 - self.momentum) / count)
        self.forget()


class HeadPair:
    """The heads of student and teacher in one step: prototypes once, the teacher's targets once, rows only where a loss is.

    A head is an MLP whose rows z have unit length, and prototypes W: its logits are W z. They are never a tensor of all rows:
    what is handed on are rows and prototypes, and `objectives.prototypes` multiplies them a block at a time.

    Args: student and teacher heads; student_temperature and teacher_temperature of their softmax.
    """

    def __init__(
        self, student: DinoHead, teacher: DinoHead, *, student_temperature: float, teacher_temperature: float
    ) -> None:
        self._student, self._teacher = student, teacher
        self._student_temperature, self._teacher_temperature = student_temperature, teacher_temperature

    @cached_property
    def _prototypes(self) -> Tensor:
        return self._student.prototypes()

    @cached_property
    def _teacher_prototypes(self) -> Tensor:
        with torch.no_grad():
            return self._teacher.prototypes()

    @property
    def inputs(self) -> list[Tensor]:
        """What trains in the student's head, as `gradient_in_advance` wants it."""
        return [*self._student.mlp.parameters(), self._prototypes]

    def targets(self, tokens: Tensor, centre: Centre, used: Tensor | None = None) -> TargetRows:
        """Centred and sharpened targets of the teacher's tokens [T, D], of all or of the `used` rows (indices).

        They equal `objectives.plain.centred_softmax` of the logits. The centre takes note of every row, used or not.
        """
        return self.targets_of(self.project(tokens), centre, used)

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        """The teacher's unit rows before the prototypes, [T, C]. Logits are linear in them: mixed rows give mixed logits."""
        return _project(self._teacher, [tokens])

    @torch.no_grad()
    def targets_of(self, rows: Tensor, centre: Centre, used: Tensor | None = None) -> TargetRows:
        """What `targets` gives, from rows that `project` returned or mixtures of them."""
        self.observe(rows, centre)
        return self.centred(rows if used is None else rows[used], centre)

    @torch.no_grad()
    def observe(self, rows: Tensor, centre: Centre) -> None:
        """Let the centre take note of rows that `project` returned."""
        centre.observe_rows(rows, self._teacher_prototypes)

    @torch.no_grad()
    def centred(self, rows: Tensor, centre: Centre) -> TargetRows:
        """Centred and sharpened targets of rows that `project` returned, of which the centre takes no note."""
        prototypes = self._teacher_prototypes.to(rows.dtype)
        return TargetRows.centred(rows, prototypes, centre.value, temperature=self._teacher_temperature)

    @torch.no_grad()
    def balance(self, parts: Sequence[Tensor], iterations: int) -> Tensor:
        """Return the shift [K] with which Sinkhorn-Knopp balances the rows of all parts and processes.

        Args: parts, rows [T, C] that `project` returned for each part of this process.
        """
        prototypes = self._teacher_prototypes
        size = max(128, BALANCED_NUMBERS.get(prototypes.device.type, 1 << 26) // len(prototypes))

        def blocks() -> Iterator[Tensor]:
            for part in parts:
                for rows in torch.split(part, size):
                    yield (rows.to(prototypes.dtype) @ prototypes.T).div_(self._teacher_temperature)

        return sinkhorn_shift(blocks, prototypes.new_zeros(len(prototypes)), iterations)

    @torch.no_grad()
    def balanced(self, rows: Tensor, shift: Tensor) -> TargetRows:
        """Targets of some of the rows that `balance` has seen, with the shift that it returned."""
        return TargetRows.balanced(rows, self._teacher_prototypes, shift, temperature=self._teacher_temperature)

    def losses(self, comparisons: Sequence[Compared]) -> LossBreakdown:
        """Cross-entropies of several comparisons, added up; all their tokens go through the student's head together."""
        rows = _project(self._student, [c.tokens for c in comparisons])
        found = prototype_cross_entropy(rows, self._prototypes, comparisons, temperature=self._student_temperature)
        return LossBreakdown(*found)


def _project(head: DinoHead, parts: Sequence[Tensor]) -> Tensor:
    """The head's unit rows of all parts, whose number differs from step to step: empty rows may make it one that comes again."""
    rows = sum(map(len, parts))
    empty = whole_steps(rows, HEAD_STEP, parts[0].dtype) - rows
    if empty:
        parts = [*parts, parts[0].new_zeros(empty, parts[0].shape[1])]
    unit = head.project(torch.cat(list(parts)) if len(parts) > 1 else parts[0])
    return unit[:rows] if empty else unit


def class_comparison(
    term: str, cls: Tensor, targets: TargetRows, *, views: Sequence[int], batch: ViewBatch, weight: float
) -> Compared:
    """The class tokens of some views against the teacher's of the other large view: these views' part of a mean over all pairs.

    DINO (arXiv:2104.14294), eq. 3; iBOT, eq. 3; GLARE, eq. 4. The mean runs over all views of the batch, so that the
    comparisons of large and small views add up.

    Args: term, its name; cls [len(views) * B, D], views first; targets of both large views.
    """
    pairs = cross_view_pairs(
        len(batch),
        student_views=views,
        num_student_views=2 + batch.num_local,
        num_teacher_views=2,
        device=cls.device,
    )
    return Compared(cls, targets, {term: pairs}, {term: weight})


class Distillation(Upkeep):
    """What a self-distilling method does besides its loss: temperatures, prototypes that wait, teacher and centres that follow.

    Args: config, of the method; student and teacher; centres by level.
    """

    def __init__(
        self,
        config: DistillationOptions,
        student: Distilled,
        teacher: EmaTeacher[Any],
        centres: nn.ModuleDict | None = None,
    ) -> None:
        self.config, self._student, self._teacher = config, student, teacher
        self._centres = {} if centres is None else dict(centres.items())
        self._mass: dict[str, Tensor] = {}

    def centre(self, level: str) -> Centre:
        """The centre of a level."""
        centre = self._centres[level]
        assert isinstance(centre, Centre)
        return centre

    def head_pair(self, progress: Progress) -> HeadPair:
        """Both heads of one step, at its temperatures."""
        return HeadPair(
            *self.heads(),
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.temperature(progress),
        )

    def temperature(self, progress: Progress) -> float:
        """The teacher's temperature."""
        return teacher_temperature(progress, self.config.teacher_temperature, self.config.teacher_temperature_epochs)

    def stats(self, progress: Progress, levels: Mapping[str, TargetRows], like: Tensor) -> dict[str, Tensor]:
        """The entropy of the targets on each level, and the schedules. Args: like, a tensor on the device."""
        found = {
            "teacher_temperature": like.new_tensor(self.temperature(progress)),
            "momentum": like.new_tensor(cosine(progress, *self.config.momentum)),
        }
        num = self.config.num_prototypes
        for level, targets in levels.items():
            found[f"entropy_{level}"] = targets.entropy()
            mass = targets.mass()
            mass = like.new_zeros(num) if mass is None else mass
            self._mass[level] = self._mass[level] + mass if level in self._mass else mass
        return found

    def step_stats(self) -> dict[str, Tensor]:
        """Divergence of each level's mean target from the uniform distribution, in nats; near log K it tells a collapse."""
        found = {f"divergence_{level}": divergence(all_sum(mass)) for level, mass in self._mass.items()}
        self._mass.clear()
        return found

    def before_step(self, progress: Progress) -> None:
        """Hold the prototypes still in the first epochs: without a gradient AdamW skips them, decay included."""
        if progress.epoch < self.config.freeze_last_layer_epochs:
            for parameter in self._student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the teacher and the centres."""
        student: Any = self._student
        self._teacher.update(student, cosine(progress, *self.config.momentum))
        for level in self._centres:
            self.centre(level).update()

    def abandon_step(self) -> None:
        """Forget what the centres have observed, and the targets of the step."""
        self._mass.clear()
        for level in self._centres:
            self.centre(level).forget()

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Levels on which the teacher's targets have collapsed."""
        return collapsed_targets(stats, self.config.num_prototypes)

    def heads(self) -> tuple[DinoHead, DinoHead]:
        """The heads of student and teacher, which a full checkpoint may bring along."""
        return self._student.head, self._teacher.network.head

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        teacher: Backbone = self._teacher.network.backbone
        return teacher if self.config.export == "teacher" else self._student.backbone


def divergence(mass: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a sum of distributions [K], made one, from the uniform one; 0 for a sum of none."""
    mean = mass / mass.sum().clamp_min(torch.finfo(mass.dtype).tiny)
    return torch.xlogy(mean, mean * len(mean)).sum()


def collapsed_targets(stats: Mapping[str, float], num_prototypes: int) -> list[str]:
    """Say on which level the teacher's targets have collapsed: all images on one prototype, or all prototypes alike."""
    found = []
    for name, value in stats.items():
        if not name.startswith("entropy_"):
            continue
        level, fraction = name.removeprefix("entropy_"), value / math.log(num_prototypes)
        spread = stats.get(f"divergence_{level}", 0.0) / math.log(num_prototypes)
        if spread > 0.98:
            found.append(f"{level}: nearly all rows fall on one prototype (collapse); lower the learning rate")
        elif fraction > 0.9999:
            found.append(f"{level}: the teacher's targets are uniform, so nothing is learnt; lower its temperature")
    return found
