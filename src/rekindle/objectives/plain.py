# SPDX-License-Identifier: Apache-2.0
"""Plain equations: the losses as the papers print them, over whole tensors. The forms that train are held against these.

The docstring of a method's `loss` names the functions here that it equals, and a test compares the two. No method calls them:
they keep logits and distributions of all rows, know one process alone, and let autograd find the gradient. To compute a loss on
your own tensors, they are the place to start (docs/library.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rekindle.core.precision import full_precision

# Cross-entropy of distributions over prototypes: DINO, iBOT, GLARE, UDI, FLSL, MC-SSL, MSN, LOCA


@full_precision
def centred_softmax(
    logits: Float[Tensor, "*rows K"], centre: Float[Tensor, " K"], *, temperature: float
) -> Float[Tensor, "*rows K"]:
    """Softmax of the centred logits, the teacher's target. DINO (arXiv:2104.14294), section 3.1.

    Args: logits before the temperature; centre, the running mean of logits; temperature > 0, lower is sharper.
    Returns: probabilities without gradient; rows sum to 1. Raises: ValueError if temperature <= 0.
    """
    _check(temperature)
    return ((logits.detach() - centre) / temperature).softmax(dim=-1)


@full_precision
def row_cross_entropy(
    student_logits: Float[Tensor, "*rows K"], teacher_probs: Float[Tensor, "*rows K"], *, temperature: float
) -> Float[Tensor, "*rows"]:
    """H(teacher, student) = -sum_k teacher[k] log student[k] of each row. GLARE (arXiv:2509.17816), section 4, notation.

    Also iBOT, eq. 2; UDI, L_patch; FLSL, L_km; MSN and LOCA, eq. 2; MC-SSL's concepts; TEC, eq. 5 (over patches, temperature 1).

    Args: student_logits before the temperature; teacher_probs without gradient, whose rows need not sum to 1 (a sum over C(s)
    of GLARE, eq. 9, does not); temperature > 0.
    Returns: nats, one value per row. Raises: ValueError if temperature <= 0.
    """
    _check(temperature)
    return -(teacher_probs * (student_logits / temperature).log_softmax(dim=-1)).sum(dim=-1)


@full_precision
def cross_view_entropy(
    student_logits: Float[Tensor, "S B K"], teacher_probs: Float[Tensor, "T B K"], *, temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of teacher to student over all pairs of views, except a view with itself.

    DINO (arXiv:2104.14294), eq. 3; iBOT, eq. 3 and GLARE, eq. 4 with multi-crop; UDI, L_cls. View t of the teacher is view t of
    the student.

    Args: student_logits before the temperature; teacher_probs sum to 1 over K, no gradient; temperature > 0.
    Returns: mean over pairs and images, in nats. Raises: ValueError if temperature <= 0 or no two views differ.
    """
    _check(temperature)
    (num_student, images, _), num_teacher = student_logits.shape, teacher_probs.shape[0]
    if num_student * num_teacher == min(num_student, num_teacher):
        raise ValueError(f"need two views; got {num_student} student and {num_teacher} teacher views")
    log_p = (student_logits / temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("sbk,tbk->st", log_p, teacher_probs) / images
    same_view = torch.eye(num_student, num_teacher, dtype=torch.bool, device=pairs.device)
    return pairs[~same_view].mean()


def masked_patch_mean(
    row_loss: Float[Tensor, " R"], row_view: Int[Tensor, " R"], *, num_views: int, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean over the masked patches of each view, then over all views. iBOT (arXiv:2111.07832), eq. 2; GLARE, eq. 8 (L_loc1).

    A view without masked patches contributes 0 and stays in the denominator.

    Args: row_loss, one value per masked patch; row_view, the view in [0, num_views) of each; reduction: "sum" is the printed
    form, the sum over patches, averaged over views. Returns: in the unit of row_loss (nats).
    """
    if reduction == "sum":
        return row_loss.sum() / num_views
    count = torch.bincount(row_view, minlength=num_views).clamp_min(1)
    return (row_loss / count[row_view]).sum() / num_views


def matched_patch_mean(row_loss: Float[Tensor, " R"], *, num_views: int, reduction: str = "mean") -> Float[Tensor, ""]:
    """Mean over all matched patches of the batch. GLARE (arXiv:2509.17816), eq. 9 (L_loc2). No matched patch: exactly 0.

    Args: row_loss, one value per patch that corresponds to some; num_views; reduction: "sum" is the printed form, averaged over
    views. Returns: in the unit of row_loss (nats).
    """
    return row_loss.sum() / (num_views if reduction == "sum" else max(1, len(row_loss)))


def region_mean(
    row_loss: Float[Tensor, " R"], row_region: Int[Tensor, " R"], valid: Bool[Tensor, " G"], *, reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Mean over the usable patches of each region, then over the valid regions. GLARE (arXiv:2509.17816), eq. 7 (L_reg).

    Args: row_loss, one value per usable patch of a valid region; row_region, its region in [0, G); valid, the regions that count;
    reduction: "sum" sums over patches, then averages over the valid regions.
    Returns: in the unit of row_loss (nats); exactly 0 without a valid region.
    """
    per_region = row_loss.new_zeros(valid.shape[0]).index_add(0, row_region, row_loss)
    if reduction == "mean":
        per_region = per_region / torch.bincount(row_region, minlength=valid.shape[0]).clamp_min(1)
    return per_region[valid].sum() / valid.sum().clamp_min(1)


def roi_aligned(
    values: Float[Tensor, "gh gw K"], box: tuple[float, float, float, float], *, cells: int
) -> Float[Tensor, "C C K"]:
    """Average a map over cells * cells equal cells of a box. Leopart (arXiv:2204.13101), section 3.1; Mask R-CNN, section 3.

    As many samples along an axis of a cell as it is wide in patches, rounded up; each is interpolated between four centres.

    Args: values of patches; box (top, left, height, width) in patches, inside the map; cells per side.
    """
    size = [side / cells for side in box[2:]]
    samples = [max(1, math.ceil(side - 1e-4)) for side in size]
    found = values.new_zeros(cells, cells, values.shape[-1])
    for row in range(cells):
        for column in range(cells):
            for y in range(samples[0]):
                for x in range(samples[1]):
                    at = (
                        box[0] + (row + (y + 0.5) / samples[0]) * size[0] - 0.5,
                        box[1] + (column + (x + 0.5) / samples[1]) * size[1] - 0.5,
                    )
                    found[row, column] += _between(values, at) / (samples[0] * samples[1])
    return found


def _between(values: Tensor, place: tuple[float, float]) -> Tensor:
    """Interpolate between four patches; beyond the outer centres the outer ones count alone."""
    gh, gw = values.shape[:2]
    y, x = min(max(place[0], 0.0), gh - 1.0), min(max(place[1], 0.0), gw - 1.0)
    top, left = min(int(y), max(gh - 2, 0)), min(int(x), max(gw - 2, 0))
    total = values.new_zeros(values.shape[-1])
    for row in {top, min(top + 1, gh - 1)}:
        for column in {left, min(left + 1, gw - 1)}:
            total = total + max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * values[row, column]
    return total


@full_precision
def mean_negative_entropy(probs: Float[Tensor, "R K"]) -> Float[Tensor, ""]:
    """sum_k p log p of the mean p of all rows: its minimum spreads the rows over all prototypes.

    FLSL (arXiv:2306.06203), L_vmr, and MSN (arXiv:2204.07141), eq. 1, without their constant log K; LOCA
    (arXiv:2212.02400), its mean-entropy maximisation.

    Args: probs, whose rows sum to 1. Returns: nats, in [-log K, 0].
    """
    mean = probs.mean(dim=0)
    negative_entropy: Tensor = torch.special.xlogy(mean, mean).sum()
    return negative_entropy


@full_precision
def position_cross_entropy(logits: Float[Tensor, "R L"], place: Int[Tensor, " R"]) -> Float[Tensor, ""]:
    """-log of the probability of each patch's own place among L, mean over patches. LOCA (arXiv:2212.02400), eq. 1.

    Args: logits over the patches of the reference; place, the one that shows the same, in [0, L).
    Returns: nats; exactly 0 without a patch.
    """
    log_p = logits.log_softmax(dim=-1).gather(1, place[:, None])
    return -log_p.sum() / max(1, len(place))


# Mean shift: FLSL


@full_precision
def mean_shift(query: Float[Tensor, " D"], tokens: Float[Tensor, "P D"], *, temperature: float) -> Float[Tensor, " D"]:
    """Return where a step of mean shift leads from a query: sum_p softmax_p(temperature / sqrt(D) <query, z_p>) z_p.

    FLSL (arXiv:2306.06203): attention without parameters, z^ within a view and z^+ in the teacher's.

    Args: tokens z of a view; temperature > 0, higher is sharper.
    Raises: ValueError if temperature <= 0.
    """
    _check(temperature)
    weights = (temperature / math.sqrt(len(query)) * (tokens @ query)).softmax(dim=0)
    return weights @ tokens


@full_precision
def mean_shift_error(query: Float[Tensor, " D"], shifted: Float[Tensor, " D"]) -> Float[Tensor, ""]:
    """2 - 2 cos(query, shifted), the squared distance of the unit vectors. FLSL (arXiv:2306.06203), L_ms. Returns: in [0, 4]."""
    return (F.normalize(query, dim=0) - F.normalize(shifted, dim=0)).square().sum()


# Contrast between images: MoCo v3, SiT, MMC


@full_precision
def info_nce(queries: Float[Tensor, "B C"], keys: Float[Tensor, "B C"], *, temperature: float) -> Float[Tensor, ""]:
    """-log softmax_j(<q_i, k_j> / temperature) at j = i, with unit vectors, mean over queries.

    MoCo v3 (arXiv:2104.02057), eq. 1, without the factor 2 * temperature of its algorithm 1; MMC and SiT, L_CLS of a pair
    of views.

    Args: queries and keys of the same images, keys without gradient; temperature > 0.
    Returns: nats, in [0, inf). Raises: ValueError if temperature <= 0.
    """
    _check(temperature)
    cosine = F.normalize(queries, dim=-1) @ F.normalize(keys.detach(), dim=-1).T / temperature
    return (cosine.logsumexp(dim=1) - cosine.diagonal()).mean()


@full_precision
def patch_nce(
    queries: Float[Tensor, "B P C"],
    keys: Float[Tensor, "B P C"],
    *,
    temperature: float,
    is_same_position: bool = False,
    negatives: Float[Tensor, "B n C"] | None = None,
) -> Float[Tensor, "B P"]:
    """InfoNCE of each patch: its key is the teacher's patch at its own place, its negatives are patches of other images.

    MMC (masked momentum contrast), L_PAT, with unit vectors; patches of the query's own image are no negatives.

    Args: queries; keys of the same crops, without gradient; temperature > 0; is_same_position, negatives are the keys at the
    query's own place alone; negatives, rows of each image that serve as negatives (None: all its keys).
    Returns: nats, one value per patch. Raises: ValueError if temperature <= 0 or there is no other image.
    """
    _check(temperature)
    if len(queries) < 2:
        raise ValueError("need two images; the patches of one have nothing to be told from")
    q, k = F.normalize(queries, dim=-1), F.normalize(keys.detach(), dim=-1)
    rows = k if negatives is None else F.normalize(negatives.detach(), dim=-1)
    losses = []
    for image in range(len(q)):
        own = (q[image] * k[image]).sum(dim=-1) / temperature  # [P]
        others = torch.cat([rows[:image], rows[image + 1 :]])  # [B - 1, n, C]
        if is_same_position:
            against = torch.einsum("pc,bpc->pb", q[image], others) / temperature
        else:
            against = q[image] @ others.flatten(0, 1).T / temperature
        losses.append(torch.cat([own[:, None], against], dim=1).logsumexp(dim=1) - own)
    return torch.stack(losses)


# Reconstruction: MAE, TEC, FD, SiT, MC-SSL, MMC


@full_precision
def hidden_patch_error(
    predicted: Float[Tensor, "N P C"], target: Float[Tensor, "N P C"], hidden: Bool[Tensor, "N P"]
) -> Float[Tensor, ""]:
    """Squared error, mean over all numbers of all hidden patches.

    MAE (arXiv:2111.06377), section 3; TEC (arXiv:2210.11016), eq. 4.

    Args: predicted; target, normalised or not; hidden, at least one. Returns: the square of the target's unit.
    Raises: ValueError if nothing is hidden.
    """
    if not bool(hidden.any()):
        raise ValueError("nothing is hidden, so there is no patch to compare")
    return (predicted[hidden] - target[hidden]).square().mean()


@full_precision
def whitened_feature_error(
    predicted: Float[Tensor, "R C"], features: Float[Tensor, "R C"], *, beta: float
) -> Float[Tensor, ""]:
    """Mean over all numbers of e^2 / (2 beta), or of |e| - beta / 2 where |e| >= beta, of the error e to whitened features.

    FD (arXiv:2205.14141), section 3.1: each token less its mean, divided by sqrt(its variance + 1e-5).

    Args: predicted; features of the base model, without gradient; beta > 0. Raises: ValueError if beta <= 0.
    """
    if beta <= 0:
        raise ValueError(f"need beta > 0, got {beta}")
    centred = features.detach() - features.detach().mean(dim=-1, keepdim=True)
    white = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    error = (predicted - white).abs()
    return torch.where(error < beta, error.square() / (2 * beta), error - beta / 2).mean()


@full_precision
def corrupted_pixel_error(
    predicted: Float[Tensor, "3 H W"], pixels: Float[Tensor, "3 H W"], corrupted: Bool[Tensor, "H W"]
) -> Float[Tensor, ""]:
    """sum(M |x - x^|) / (3 sum(M)): the absolute error of corrupted pixels, mean over these and the colours. MMC, eq. 1 (L_REC).

    SiT (arXiv:2104.03602) and MC-SSL (arXiv:2111.15340) restore pixels alike. Several views may stand below each other in H.

    Args: predicted; pixels, clean; corrupted M, at least one. Returns: in the unit of the pixels.
    Raises: ValueError if nothing is corrupted.
    """
    if not bool(corrupted.any()):
        raise ValueError("nothing is corrupted, so there is no pixel to restore")
    return (predicted - pixels)[:, corrupted].abs().mean()


# Structure among tokens: PaKA


@full_precision
def kernel_alignment(student: Float[Tensor, "M D"], teacher: Float[Tensor, "M E"]) -> Float[Tensor, ""]:
    """<H K_s H, H K_t H> / (|H K_s H| |H K_t H|) of the kernels K = Z Z^T and H = 1 - 1 1^T / M; PaKA's loss is 1 minus this.

    PaKA (arXiv:2509.05606), its alignment objective; CKA of Kornblith et al. (arXiv:1905.00414), eq. 2.

    Args: tokens Z at the same M places of one image, the teacher's without gradient; neither all alike. Returns: in [0, 1].
    """
    centring = torch.eye(len(student), dtype=student.dtype, device=student.device) - 1 / len(student)
    own, given = (centring @ (tokens @ tokens.T) @ centring for tokens in (student, teacher.detach()))
    alignment: Tensor = (own * given).sum() / (own.norm() * given.norm())
    return alignment


def _check(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
