# SPDX-License-Identifier: Apache-2.0
"""Prototype cross-entropy between rows of student and teacher, without ever keeping a tensor as wide as K.

Every loss of the DINO family is a weighted sum over pairs (student row s, teacher row t) of H(p_t, p_s): all pairs of
views for the class token, same or matched patches, patches of regions. The pairs and their weights say which loss it is
(`objectives.pairs`; printed, it is `objectives.plain.row_cross_entropy` of all rows); the sum itself is computed here, block by
block. With z the unit rows before the prototypes W, and tau the temperature,

    L = - sum_n w_n sum_k p_t(n)[k] log p_s(n)[k],   p_s = softmax(W z_s / tau)
    dL/d(W z_s) = (m_s p_s - sum_{n: s(n) = s} w_n p_t(n)) / tau,   m_s = sum_{n: s(n) = s} w_n

so a block's gradient is known as soon as its logits are, and the logits can go. What autograd keeps is dL/dz and dL/dW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rekindle.objectives.pairs import Pairs
from rekindle.objectives.row_blocks import Block, cut_into_blocks, filled

BLOCK_ROWS = {("cpu", torch.float32): 128, ("cpu", torch.bfloat16): 256, ("cuda", torch.float32): 4096}
"""Student rows of a part of a block, and teacher or student rows that fill one, by device and precision of the rows (a device's
first entry, if that is not among them). At K = 8192 a float32 buffer of 128 rows has 4 MB, which caches hold and the allocator
finds again; buffers of 12 to 20 MB are new memory in every step, and a page fault for each 4 KB costs more than their arithmetic.
In bfloat16 rows are rounded up, so parts are larger."""


ENTROPY_ROWS = 64
"""Rows of a block, at least, that the entropy is taken of: a logarithm of every number would cost as much as the softmax."""


class TargetRows:
    """The teacher's distributions, computed a block at a time, with what is worth watching about them.

    Args: count, number of rows; compute, returns the distributions [t, K] of a block of rows (indices), without gradient,
    and may append some that nobody asked for; device of the figures.
    """

    def __init__(self, count: int, compute: Callable[[Tensor | None], Tensor], device: torch.device) -> None:
        self._count = count
        self._compute = compute
        self._device = device
        self._entropies: list[Tensor] = []
        self._sum: Tensor | None = None
        self._weighed = 0

    def __len__(self) -> int:
        return self._count

    @staticmethod
    def centred(
        rows: Float[Tensor, "T C"], prototypes: Float[Tensor, "K C"], centre: Float[Tensor, " K"], *, temperature: float
    ) -> TargetRows:
        """softmax((W z - c) / temperature): the teacher's target in DINO (arXiv:2104.14294, section 3.1)."""
        shift = centre / -temperature

        def compute(index: Tensor | None) -> Tensor:
            own = filled(rows if index is None else rows[index])
            if own.dtype == shift.dtype:
                scaled = torch.addmm(shift, own, prototypes.T, alpha=1.0 / temperature)
            else:  # low precision ends with the product
                scaled = torch.add(shift, own @ prototypes.T, alpha=1.0 / temperature)
            return scaled.softmax(dim=-1)

        return TargetRows(rows.shape[0], compute, rows.device)

    @staticmethod
    def balanced(
        rows: Float[Tensor, "T C"], prototypes: Float[Tensor, "K C"], shift: Float[Tensor, " K"], *, temperature: float
    ) -> TargetRows:
        """softmax(W z / temperature + shift) in float32: Sinkhorn's assignment, whose shift `objectives.assignment` found."""

        def compute(index: Tensor | None) -> Tensor:
            own = rows if index is None else rows[index]
            return torch.addmm(shift, own.to(shift.dtype), prototypes.T, alpha=1.0 / temperature).softmax(dim=-1)

        return TargetRows(rows.shape[0], compute, rows.device)

    @torch.no_grad()
    def probs(self, index: Int[Tensor, " t"] | None = None, own: slice = slice(None)) -> Float[Tensor, "t K"]:
        """Return the distributions of these rows, or of all; those at `own` count in the figures below."""
        found = self._compute(index)[: self._count if index is None else len(index)]
        counted = found[own]
        some = counted[:: max(1, len(counted) // ENTROPY_ROWS)]
        self._entropies.append(torch.special.entr(some).sum())
        self._weighed += len(some)
        total = counted.sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        return found

    def entropy(self) -> Float[Tensor, ""]:
        """Mean entropy in nats, of some rows of each block asked for; 0 before any. Near 0 or log K it tells a collapse."""
        if not self._weighed:
            return torch.zeros((), device=self._device)
        return torch.stack(self._entropies).sum() / self._weighed

    def mass(self) -> Float[Tensor, " K"] | None:
        """Sum of the distributions asked for; None before any. Sums of all parts of a step give its mean distribution."""
        return self._sum


@dataclass(frozen=True)
class Compared:
    """Student tokens that are compared with the teacher's targets, and how.

    Attributes:
        tokens: [S, D] of the student, before the head.
        targets: the teacher's rows.
        terms: pairs of rows, by the name of the loss term; each term's rows are read once, whatever the number of terms.
        weights: by the same names.
        student_image: [S] image of each token, and `teacher_image` [T] of each target: pairs join rows of one image only, which
            is never cut. Without them everything is one block.
        teacher_image: see there.

    Raises: ValueError for unequal names.
    """

    tokens: Tensor
    targets: TargetRows
    terms: Mapping[str, Pairs]
    weights: Mapping[str, float]
    student_image: Tensor | None = None
    teacher_image: Tensor | None = None

    def __post_init__(self) -> None:
        if self.terms.keys() != self.weights.keys():
            raise ValueError(f"terms {sorted(self.terms)} and weights {sorted(self.weights)} must name the same losses")

    def blocks(self, block_rows: int, dtype: torch.dtype) -> list[Block]:
        """The rows in blocks of whole images. Args: block_rows, that fill a block; dtype of the rows."""
        images = None
        if self.student_image is not None and self.teacher_image is not None:
            images = (self.student_image, self.teacher_image)
        return cut_into_blocks(
            len(self.tokens), len(self.targets), list(self.terms.values()), images, block_rows, dtype
        )


def prototype_cross_entropy(
    student: Float[Tensor, "S C"],
    prototypes: Float[Tensor, "K C"],
    compared: Sequence[Compared],
    *,
    temperature: float,
    block_rows: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return sum_k weights[k] * term_k with gradients to `student` and `prototypes`, and every term without a graph.

    A term is the sum over its pairs of `objectives.plain.row_cross_entropy`, times their weights, in nats. Terms of one name are
    added.

    Args:
        student: unit rows z_s before the prototypes, of the tokens of all comparisons in turn; in bfloat16 the products are, the
            rest is float32.
        prototypes: W.
        compared: what the rows are compared with. One gradient of the prototypes is kept for all.
        temperature: of the student, > 0.
        block_rows: rows that fill a block (None: `BLOCK_ROWS` of the device).

    Raises: ValueError for a temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
    rows = _usual_block_rows(student) if block_rows is None else block_rows
    names = list(dict.fromkeys(name for part in compared for name in part.terms))
    with torch.autocast(device_type=student.device.type, enabled=False):
        total, values = _FusedTerms.apply(student, prototypes, compared, names, temperature, rows)
    return total, dict(zip(names, values.unbind(), strict=True))


def _usual_block_rows(student: Tensor) -> int:
    device = student.device.type
    first = next((rows for (kind, _), rows in BLOCK_ROWS.items() if kind == device), 1024)
    return BLOCK_ROWS.get((device, student.dtype), first)


class _FusedTerms(torch.autograd.Function):
    """The values and, with them, the gradients; see the module's text."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        compared: Sequence[Compared],
        names: list[str],
        temperature: float,
        block_rows: int,
    ) -> tuple[Tensor, Tensor]:
        wants = any(ctx.needs_input_grad[:2])
        low = prototypes.to(student.dtype)
        grad_student, grad_prototypes = torch.empty_like(student), torch.zeros_like(prototypes)
        sizes = [len(part.tokens) for part in compared]
        values: list[Tensor] = []
        places: list[int] = []
        factors: list[float] = []
        for part, own, grad_own in zip(
            compared, torch.split(student, sizes), torch.split(grad_student, sizes), strict=True
        ):
            weights = [part.weights[name] for name in part.terms]
            for block in part.blocks(block_rows, student.dtype):
                probs = part.targets.probs(block.teacher, block.own_teacher)
                for index, counted, terms in block.parts(len(part.tokens), block_rows, student.dtype):
                    asked = own[index]
                    rows = filled(asked)
                    found, gradient = _part_terms(rows, low, probs, terms, weights, temperature)
                    values += found
                    places += [names.index(name) for name in part.terms]
                    factors += [-weight for weight in weights]
                    if not wants:
                        continue
                    gradient = gradient.to(student.dtype)
                    if isinstance(index, slice) and len(rows) == len(asked):
                        torch.mm(gradient, low, out=grad_own[index])
                    elif isinstance(index, slice):
                        grad_own[index] = (gradient @ low)[: len(asked)]
                    else:
                        grad_own.index_copy_(0, index[counted], (gradient @ low)[counted])
                    if gradient.dtype == grad_prototypes.dtype:
                        grad_prototypes.addmm_(gradient.T, rows)
                    else:
                        grad_prototypes += gradient.T @ rows
        ctx.save_for_backward(grad_student, grad_prototypes)
        return _added_up(ctx, values, places, factors, len(names))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, prototypes = ctx.saved_tensors
        return student * gradient.to(student.dtype), prototypes * gradient.to(prototypes.dtype), *[None] * 4


def _added_up(
    ctx: Any, values: Sequence[Tensor], places: Sequence[int], factors: Sequence[float], number: int
) -> tuple[Tensor, Tensor]:
    """The weighted sum of all values, whose sign turns here, and [number] sums by term."""
    each = torch.stack(list(values))
    terms = each.new_zeros(number).index_add_(0, torch.tensor(places, device=each.device), each, alpha=-1)
    ctx.mark_non_differentiable(terms)
    return torch.dot(each, torch.tensor(factors, dtype=each.dtype, device=each.device)), terms


def _part_terms(
    rows: Tensor,
    prototypes: Tensor,
    probs: Tensor,
    terms: Sequence[Pairs],
    weights: Sequence[float],
    temperature: float,
) -> tuple[list[Tensor], Tensor]:
    """The terms' values in one part of a block, negative, and the gradient of their weighted sum with respect to W z, [s, K]."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    scaled = torch.addmm(rows.new_empty(()), rows, prototypes.T, beta=0, alpha=1.0 / temperature)
    log_p = scaled.log_softmax(dim=-1, dtype=wide)
    values: list[Tensor] = []
    mass = log_p.new_zeros(rows.shape[0])
    pulls: list[tuple[Tensor, Tensor, float]] = []
    for pairs, weight in zip(terms, weights, strict=True):
        used, inverse = torch.unique_consecutive(pairs.student, return_inverse=True)
        each = pairs.weight.to(wide)
        target = _mixture(inverse, pairs.teacher, each, len(used), probs)  # H is linear in the target
        own = log_p if len(used) == len(log_p) else log_p[used]
        values.append((target * own).sum())  # in steps; one long dot product would lose digits
        mass.index_add_(0, pairs.student, each, alpha=weight / temperature)
        pulls.append((used, target, weight / temperature))
    gradient = log_p.exp_().mul_(mass[:, None])
    for used, target, scale in pulls:
        gradient.index_add_(0, used, target, alpha=-scale)
    return values, gradient


def _mixture(rows: Tensor, columns: Tensor, weight: Tensor, count: int, probs: Tensor) -> Tensor:
    """Row r is the sum of weight * probs[column] over the pairs of r; [count, K]."""
    if len(rows) == count:
        return probs[columns].mul_(weight[:, None])
    coupling = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), weight, (count, probs.shape[0]), check_invariants=False
    )
    mixed: Tensor = torch.sparse.mm(coupling, probs)
    return mixed
