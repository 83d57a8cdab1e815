# SPDX-License-Identifier: Apache-2.0
"""The heads of student and teacher during one step: prototypes once, teacher's targets once, rows only where a loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rekindle.methods.shared.teacher import Centre
from rekindle.networks.parts.heads import DinoHead
from rekindle.objectives.assignment import sinkhorn
from rekindle.objectives.pairs import cross_view_pairs
from rekindle.objectives.prototypes import Compared, Pairs, TargetRows, WeighedTerms, prototype_cross_entropy
from rekindle.objectives.row_blocks import HEAD_STEP, whole_steps
from rekindle.views.batch import ViewBatch


@dataclass(frozen=True)
class Comparison:
    """Student tokens that are compared with teacher's targets, and how.

    Attributes:
        tokens: [S, D], before the head.
        targets: the teacher's rows.
        terms: pairs of rows, by the name of the loss term.
        weights: by the same names.
        student_image: [S] image of each token, and `teacher_image` [T] of each target: pairs join rows of one image only.
        teacher_image: see there; None for few rows.
    """

    tokens: Tensor
    targets: TargetRows
    terms: Mapping[str, Pairs]
    weights: Mapping[str, float]
    student_image: Tensor | None = None
    teacher_image: Tensor | None = None


def class_comparison(
    term: str, cls: Tensor, targets: TargetRows, *, views: Sequence[int], batch: ViewBatch, weight: float
) -> Comparison:
    """DINO's comparison with multi-crop: class tokens of some views against the teacher's of the other large view.

    DINO (arXiv:2104.14294), eq. 3; iBOT, eq. 3; GLARE, eq. 4. The average runs over all views of the batch, so that the
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
    return Comparison(cls, targets, {term: pairs}, {term: weight})


class HeadPair:
    """What a step computes with the two heads.

    Args: student and teacher heads; student_temperature and teacher_temperature of their softmax.
    """

    def __init__(
        self, student: DinoHead, teacher: DinoHead, *, student_temperature: float, teacher_temperature: float
    ) -> None:
        self._student, self._teacher = student, teacher
        self._student_temperature, self._teacher_temperature = student_temperature, teacher_temperature
        self._prototypes = student.prototypes()
        with torch.no_grad():
            self._teacher_prototypes = teacher.prototypes()

    @property
    def inputs(self) -> list[Tensor]:
        """What trains in the student's head, as `gradient_in_advance` wants it."""
        return [*self._student.mlp.parameters(), self._prototypes]

    def targets(self, tokens: Tensor, centre: Centre, used: Tensor | None = None) -> TargetRows:
        """Centred and sharpened targets of the teacher's tokens [T, D], of all or of the `used` rows (indices).

        The centre takes note of every row, used or not: its mean comes from the mean of the rows, for logits are linear.
        """
        return self.targets_of(self.project(tokens), centre, used)

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        """The teacher's unit rows before the prototypes, [T, C]. Logits are linear in them: mixed rows give mixed logits."""
        return _project(self._teacher, [tokens])

    @torch.no_grad()
    def targets_of(self, rows: Tensor, centre: Centre, used: Tensor | None = None) -> TargetRows:
        """What `targets` gives, from rows that `project` returned or mixtures of them."""
        prototypes = self._teacher_prototypes
        centre.observe_rows(rows, prototypes)
        return TargetRows.centred(
            rows if used is None else rows[used],
            prototypes.to(rows.dtype),
            centre.value,
            temperature=self._teacher_temperature,
        )

    @torch.no_grad()
    def balanced_targets(self, tokens: Tensor, iterations: int, used: Tensor | None = None) -> TargetRows:
        """Targets balanced by Sinkhorn-Knopp over all of the tokens [T, D]; of all or of the `used` rows."""
        logits = self._teacher(tokens)
        probs = sinkhorn(logits, temperature=self._teacher_temperature, iterations=iterations)
        return TargetRows.given(probs if used is None else probs[used])

    def losses(self, comparisons: Sequence[Comparison]) -> WeighedTerms:
        """Cross-entropies of several comparisons, added up; all their tokens go through the student's head together."""
        return prototype_cross_entropy(
            _project(self._student, [c.tokens for c in comparisons]),
            self._prototypes,
            [
                Compared(len(c.tokens), c.targets, c.terms, c.weights, c.student_image, c.teacher_image)
                for c in comparisons
            ],
            temperature=self._student_temperature,
        )


def _project(head: DinoHead, parts: Sequence[Tensor]) -> Tensor:
    """The head's unit rows of all parts, whose number differs from step to step: empty rows may make it one that comes again."""
    rows = sum(map(len, parts))
    empty = whole_steps(rows, HEAD_STEP, parts[0].dtype) - rows
    if empty:
        parts = [*parts, parts[0].new_zeros(empty, parts[0].shape[1])]
    unit = head.project(torch.cat(list(parts)) if len(parts) > 1 else parts[0])
    return unit[:rows] if empty else unit
