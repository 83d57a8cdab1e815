# SPDX-License-Identifier: Apache-2.0
"""What the self-distilling methods share: the head over prototypes, its teacher, their temperatures and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor, nn

from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.methods.base import Upkeep
from rekindle.methods.shared.heads import HeadPair
from rekindle.methods.shared.teacher import Centre, EmaTeacher, cancel_gradients, collapse_alarms, teacher_temperature
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.heads import DinoHead
from rekindle.objectives.prototypes import TargetRows


class DistillationOptions(Options):
    """Head and teacher of a self-distilling method; defaults as continual pre-training uses them (GLARE, appendix)."""

    num_prototypes: int = Field(8192, ge=2)
    """Outputs K of the head. GLARE: 8192; DINO's script: 65536."""
    head_hidden: int = Field(2048, ge=1)
    """Width of the head's hidden layers."""
    head_bottleneck: int = Field(256, ge=1)
    """Width before the prototypes."""
    norm_last_layer: bool = False
    """Keep the prototypes' gain at 1, so that logits are cosines."""
    student_temperature: float = Field(0.1, gt=0)
    """Softmax temperature of the student."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Softmax temperature of the teacher, before and after its warm-up."""
    teacher_temperature_epochs: int = Field(30, ge=0)
    """Epochs of that warm-up; at most 0.3 of the run."""
    momentum: tuple[float, float] = (0.996, 1.0)
    """Weight of the teacher's old value, cosine from the first step to the last."""
    freeze_last_layer_epochs: int = Field(1, ge=0)
    """Epochs in which the prototypes do not move."""
    export: Literal["teacher", "student"] = "teacher"
    """Which network is saved and evaluated."""


class CentredOptions(DistillationOptions):
    """The same for a method whose targets are centred."""

    centre_momentum: float = Field(0.9, ge=0, le=1)
    """Weight of a centre's old value."""


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
        """The health of the targets on each level, and the schedules. Args: like, a tensor on the device."""
        found = {
            "teacher_temperature": like.new_tensor(self.temperature(progress)),
            "momentum": like.new_tensor(cosine(progress, *self.config.momentum)),
        }
        for level, targets in levels.items():
            found[f"entropy_{level}"], found[f"divergence_{level}"] = targets.entropy(), targets.divergence()
        return found

    def before_step(self, progress: Progress) -> None:
        """Hold the prototypes still in the first epochs: without a gradient AdamW skips them, decay included."""
        if progress.epoch < self.config.freeze_last_layer_epochs:
            cancel_gradients(self._student.head.last_layer)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher and the centres."""
        student: Any = self._student
        self._teacher.update(student, cosine(progress, *self.config.momentum))
        for level in self._centres:
            self.centre(level).update()

    def alarms(self, stats: Mapping[str, float]) -> list[str]:
        """Levels on which the teacher has collapsed."""
        return collapse_alarms(stats, self.config.num_prototypes)

    def heads(self) -> tuple[DinoHead, DinoHead]:
        """The heads of student and teacher, which a full checkpoint may bring along."""
        return self._student.head, self._teacher.network.head

    def exported(self) -> Backbone:
        """The teacher's backbone unless the options ask for the student's."""
        teacher: Backbone = self._teacher.network.backbone
        return teacher if self.config.export == "teacher" else self._student.backbone
