# SPDX-License-Identifier: Apache-2.0
"""The straightforward form of the losses, as an oracle: logits and distributions of all rows as plain tensors.

What `objectives.pairs` and `objectives.prototypes` compute in blocks, written the way the papers print it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rekindle.core.distributed import all_sum, world_size
from rekindle.core.precision import full_precision


@full_precision
def cross_view_entropy(
    student_logits: Float[Tensor, "S B K"], teacher_probs: Float[Tensor, "T B K"], *, temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of teacher to student over all view pairs, except a view with itself.

    DINO (arXiv:2104.14294), eq. 3; GLARE, eq. 4 with multi-crop. View t of the teacher is view t of the student.

    Args: student_logits before the temperature; teacher_probs sum to 1 over K, no gradient; temperature > 0.
    Returns: mean over pairs and images, in nats. Raises: ValueError if temperature <= 0 or no two views differ.
    """
    (num_student, batch, _), num_teacher = student_logits.shape, teacher_probs.shape[0]
    if temperature <= 0 or num_student * num_teacher == min(num_student, num_teacher):
        raise ValueError(
            f"need temperature > 0 and two views; got temperature={temperature}, "
            f"{num_student} student and {num_teacher} teacher views"
        )
    scaled = student_logits / temperature  # log p = scaled - logsumexp(scaled); the teacher's rows sum to 1
    normaliser = scaled.logsumexp(dim=-1).mean(dim=-1)
    pairs = normaliser[:, None] - torch.einsum("sbk,tbk->st", scaled, teacher_probs) / batch
    same_view = torch.eye(num_student, num_teacher, dtype=torch.bool, device=pairs.device)
    return pairs[~same_view].mean()


@full_precision
def row_cross_entropy(
    student_logits: Float[Tensor, "R K"], teacher_probs: Float[Tensor, "R K"], *, temperature: float
) -> Float[Tensor, " R"]:
    """H(student, teacher) = -sum_k teacher[k] log student[k] for each row, in nats (GLARE, section 4, notation).

    Args: student_logits before the temperature; teacher_probs without gradient; temperature > 0.
    """
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
    # log p_k = z_k - logsumexp(z): the targets need not sum to 1 here (the sum over C(s) of eq. 9 does not).
    scaled = student_logits / temperature
    return teacher_probs.sum(dim=-1) * scaled.logsumexp(dim=-1) - (teacher_probs * scaled).sum(dim=-1)


def masked_patch_mean(
    row_loss: Float[Tensor, " R"], row_view: Int[Tensor, " R"], *, num_views: int, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean over the masked patches of each view, then over all views; GLARE, eq. 8 (L_loc1), iBOT eq. 2.

    A view without masked patches contributes 0 and stays in the denominator. reduction="sum" is the printed form: the
    sum over patches, averaged over views.

    Args: row_loss, one value per masked patch; row_view, the view each row belongs to; num_views of this process.
    """
    if reduction == "sum":
        return row_loss.sum() / num_views
    count = torch.bincount(row_view, minlength=num_views).clamp_min(1)
    return (row_loss / count[row_view]).sum() / num_views


def matched_patch_mean(row_loss: Float[Tensor, " R"], *, num_views: int, reduction: str = "mean") -> Float[Tensor, ""]:
    """Mean over all matched patches of the batch; GLARE, eq. 9 (L_loc2). No matched patch: exactly 0.

    The mean runs over the rows of all processes; it is scaled so that the usual average of gradients over processes
    gives the gradient of that mean. reduction="sum" is the printed form, averaged over views.
    """
    if reduction == "sum":
        return row_loss.sum() / num_views
    count = all_sum(row_loss.new_tensor(float(row_loss.shape[0]))) / world_size()
    return row_loss.sum() / count.clamp_min(1.0 / world_size())


def region_mean(
    row_loss: Float[Tensor, " R"], row_region: Int[Tensor, " R"], valid: Bool[Tensor, " G"], *, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean over the usable patches of each region, then over the valid regions of all processes; GLARE, eq. 7 (L_reg).

    Args: row_loss, one value per usable patch of a valid region; row_region, its region in [0, G); valid, the regions
    that count. reduction="sum" sums over patches, then averages over the valid regions. No valid region: exactly 0.
    """
    per_region = row_loss.new_zeros(valid.shape[0]).index_add(0, row_region, row_loss)
    if reduction == "mean":
        per_region = per_region / torch.bincount(row_region, minlength=valid.shape[0]).clamp_min(1)
    count = all_sum(valid.sum().to(row_loss.dtype)) / world_size()
    return per_region[valid].sum() / count.clamp_min(1.0 / world_size())
