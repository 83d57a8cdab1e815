# SPDX-License-Identifier: Apache-2.0
"""Pairs of rows that a loss compares, each with its weight; a function here is the average of one equation of a paper.

A term is the sum of weight * H(teacher row, student row), so an average over views, patches or regions is a matter of the
weights. Rows are numbered as the flattened [views * images, patches].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rekindle.core.distributed import all_sum, world_size

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Pairs:
    """The pairs of one loss term: sum over n of weight[n] * H(teacher row, student row).

    Attributes:
        student: [n] index of the student's row, ascending.
        teacher: [n] index of the teacher's row.
        weight: [n] float32.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor

    @staticmethod
    def join(parts: Sequence[Pairs]) -> Pairs:
        """The pairs of all parts."""
        return Pairs(*(torch.cat([getattr(p, name) for p in parts]) for name in ("student", "teacher", "weight")))


def cross_view_pairs(
    batch: int, *, student_views: Sequence[int], num_student_views: int, num_teacher_views: int, device: torch.device
) -> Pairs:
    """All pairs of a student view and another view of the teacher, averaged over pairs and images.

    DINO (arXiv:2104.14294), eq. 3; GLARE, eq. 4 with multi-crop. View t of the teacher is view t of the student.

    Args: student_views, the views whose rows [len(student_views) * batch] are given, in this order; num_student_views, of
    all of them, which the average counts. Raises: ValueError if no two views differ.
    """
    num_pairs = num_student_views * num_teacher_views - min(num_student_views, num_teacher_views)
    if num_pairs == 0:
        raise ValueError(f"need two views; got {num_student_views} student and {num_teacher_views} teacher views")
    rows = [
        (place * batch + image, t * batch + image)
        for place, s in enumerate(student_views)
        for image in range(batch)
        for t in range(num_teacher_views)
        if s != t
    ]
    student, teacher = torch.tensor(rows, dtype=torch.int64, device=device).view(-1, 2).unbind(1)
    return Pairs(student, teacher, _equal(student, 1.0 / (num_pairs * batch)))


def same_patch_pairs(mask: Bool[Tensor, "V N"], *, num_views: int, reduction: Reduction = "mean") -> Pairs:
    """A masked patch with the same patch of the same view: mean over the masked patches of a view, then over all views.

    GLARE, eq. 8 (L_loc1); iBOT, eq. 2. A view without masked patches contributes 0 and stays in the denominator.
    reduction="sum" is the printed form: the sum over patches, averaged over views.
    """
    row = mask.flatten().nonzero()[:, 0]
    weight = _equal(row, 1.0 / num_views)
    if reduction == "mean":
        weight = weight / mask.sum(dim=1)[row // mask.shape[1]]
    return Pairs(row, row, weight)


def matched_patch_pairs(
    relation: Bool[Tensor, "V Ns Nt"],
    teacher_view: Int[Tensor, " V"],
    *,
    num_views: int,
    reduction: Reduction = "mean",
    match_reduction: Reduction = "mean",
    count: Tensor | None = None,
) -> Pairs:
    """A patch s with each patch C(s) that corresponds to it; GLARE, eq. 9 (L_loc2). Without a match a patch does not count.

    Mean over C(s), then over the matched patches of the step (`count_per_part`). match_reduction="sum" adds over C(s);
    reduction="sum" is the printed form, averaged over views.

    Args: relation, C(s) of each student view; teacher_view, the view that C(s) lies in; count, this part's share of the matched
    patches that the mean runs over; None: those of `relation`, in each process.
    """
    partners = relation.sum(dim=-1)
    view, student, teacher = relation.nonzero(as_tuple=True)
    weight = _equal(view, 1.0)
    if match_reduction == "mean":
        weight = weight / partners[view, student]
    if reduction == "sum":
        weight = weight / num_views
    else:
        weight = weight / (count_per_process((partners > 0).sum()) if count is None else count)
    return Pairs(view * relation.shape[1] + student, teacher_view[view] * relation.shape[2] + teacher, weight)


def region_pairs(
    patch: Int[Tensor, "V M L"],
    usable: Bool[Tensor, "V M L"],
    num_patches: int,
    *,
    reduction: Reduction = "mean",
    count: Tensor | None = None,
) -> Pairs:
    """A patch of a region with its counterpart: mean over the usable patches of each region, then over the valid regions.

    GLARE, eq. 7 (L_reg). A region with no usable patch is not valid. The student's row is the patch itself, once for all
    regions that hold it; the teacher's rows are the usable ones in order.

    Args: patch, index of each patch within its view; usable, those that count. reduction="sum" sums over patches, then
    averages over the valid regions; count, this part's share of the valid regions, as in `matched_patch_pairs`.
    """
    view, region, _ = usable.nonzero(as_tuple=True)
    sizes = usable.sum(dim=-1)
    weight = _equal(view, 1.0) / (count_per_process((sizes > 0).sum()) if count is None else count)
    if reduction == "mean":
        weight = weight / sizes[view, region]
    student, order = (view * num_patches + patch[usable]).sort(stable=True)
    return Pairs(student, order, weight[order])


def own_target_pairs(num_rows: int, *, device: torch.device, count: Tensor | None = None) -> Pairs:
    """Row i with target i, mean over the rows of the step (as in `matched_patch_pairs`). UDI, L_patch."""
    row = torch.arange(num_rows, device=device)
    share = count_per_process(torch.tensor(num_rows, device=device)) if count is None else count
    return Pairs(row, row, _equal(row, 1.0) / share)


def _equal(like: Tensor, value: float) -> Tensor:
    return torch.full((like.shape[0],), value, dtype=torch.float32, device=like.device)


def count_per_part(counts: Sequence[Tensor]) -> Tensor:
    """Return the count of a whole step, divided by the number of its parts: a part's share of the rows of a mean.

    A part is a micro-batch of one process. A part's sum divided by it has, after the usual average of gradients over parts and
    processes, the gradient of the mean over the step's rows, however the step is cut. At least what one row of the step makes.

    Args: counts, of this process's parts; every process has the same number of parts.
    """
    parts = len(counts) * world_size()
    own = counts[0] if len(counts) == 1 else torch.stack(list(counts)).sum(dim=0)
    return (all_sum(own.float()) / parts).clamp_min(1.0 / parts)


def count_per_process(count: Tensor) -> Tensor:
    """`count_per_part` of a step that has one part in each process."""
    return count_per_part([count])


def used_rows(
    terms: Mapping[str, Pairs], side: Literal["student", "teacher"], num_rows: int
) -> tuple[Tensor, dict[str, Pairs]]:
    """Return the rows of one side that any term uses, ascending, and the terms with that side counted among them."""
    indices = [getattr(pairs, side) for pairs in terms.values()]
    used = torch.zeros(num_rows, dtype=torch.bool, device=indices[0].device).index_fill_(0, torch.cat(indices), True)
    place = used.cumsum(0) - 1
    renumbered = {name: replace(pairs, **{side: place[getattr(pairs, side)]}) for name, pairs in terms.items()}
    return used.nonzero()[:, 0], renumbered
