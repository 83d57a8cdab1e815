# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between rows of prototype distributions, without ever keeping a tensor as wide as K.

Every loss of the DINO family is a weighted sum over pairs (student row s, teacher row t) of H(p_t, p_s): all pairs of
views for the class token, same or matched patches, patches of regions. The pairs and their weights say which loss it is;
the sum itself is computed here, block by block. With z the unit rows before the prototypes W, and tau the temperature,

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

from rekindle.objectives.assignment import centred_softmax

BLOCK_ROWS = {"cpu": 256, "cuda": 4096}
"""Student or teacher rows of a block. K = 8192: 8 MB per float32 buffer, which the outer caches still hold, and 128 MB."""


ENTROPY_ROWS = 64
"""Rows of a block, at least, that the entropy is taken of: a logarithm of every number would cost as much as the softmax."""


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


@dataclass(frozen=True)
class WeighedTerms:
    """Terms of a loss, and their weighted sum that carries the graph."""

    total: Tensor
    terms: dict[str, Tensor]

    @staticmethod
    def join(parts: Sequence[WeighedTerms]) -> WeighedTerms:
        """The sum of all parts; terms of one name are added as well. Terms carry no graph."""
        if len(parts) == 1:
            return WeighedTerms(parts[0].total, {name: value.detach() for name, value in parts[0].terms.items()})
        terms: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.terms.items():
                terms[name] = terms[name] + value.detach() if name in terms else value.detach()
        return WeighedTerms(torch.stack([part.total for part in parts]).sum(), terms)


class TargetRows:
    """The teacher's distributions, computed a block at a time, with what is worth watching about them.

    Args: count, number of rows; compute, returns the distributions [t, K] of a block of rows (indices), without gradient;
    device of the figures.
    """

    def __init__(self, count: int, compute: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._count = count
        self._compute = compute
        self._entropy = torch.zeros((), device=device)
        self._sum: Tensor | None = None
        self._seen = self._weighed = 0

    def __len__(self) -> int:
        return self._count

    @staticmethod
    def centred(
        rows: Float[Tensor, "T C"], prototypes: Float[Tensor, "K C"], centre: Float[Tensor, " K"], *, temperature: float
    ) -> TargetRows:
        """softmax((W z - c) / temperature): the teacher's target in DINO (arXiv:2104.14294, section 3.1)."""

        def compute(index: Tensor) -> Tensor:
            return centred_softmax(rows[index] @ prototypes.T, centre, temperature=temperature)

        return TargetRows(rows.shape[0], compute, rows.device)

    @staticmethod
    def given(probs: Float[Tensor, "T K"]) -> TargetRows:
        """Distributions that are already there (Sinkhorn-Knopp needs all rows at once)."""
        return TargetRows(probs.shape[0], lambda index: probs[index], probs.device)

    @torch.no_grad()
    def probs(self, index: Int[Tensor, " t"]) -> Float[Tensor, "t K"]:
        """Return the distributions of these rows."""
        found = self._compute(index)
        some = found[:: max(1, len(found) // ENTROPY_ROWS)]
        own = torch.linalg.vecdot(some, some.log().clamp_min_(-100.0))  # a probability of exactly 0 adds 0
        self._entropy, self._weighed = self._entropy - own.sum(), self._weighed + len(some)
        total = found.sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self._seen += found.shape[0]
        return found

    def entropy(self) -> Float[Tensor, ""]:
        """Mean entropy in nats, of some rows of each block asked for; 0 before any. Near 0 or log K it tells a collapse."""
        return self._entropy / max(self._weighed, 1)

    def divergence(self) -> Float[Tensor, ""]:
        """Kullback-Leibler divergence of their mean from the uniform distribution, in nats; 0 before any."""
        if self._sum is None or not self._seen:
            return torch.zeros_like(self._entropy)
        mean = self._sum / self._seen
        return (mean * (mean * mean.shape[0]).clamp_min(1e-30).log()).sum()


def prototype_cross_entropy(
    student: Float[Tensor, "S C"],
    prototypes: Float[Tensor, "K C"],
    targets: TargetRows,
    terms: Mapping[str, Pairs],
    weights: Mapping[str, float],
    *,
    temperature: float,
    student_group: Int[Tensor, " S"] | None = None,
    teacher_group: Int[Tensor, " T"] | None = None,
    block_rows: int | None = None,
) -> WeighedTerms:
    """Return every term's sum over its pairs, and sum_k weights[k] * term_k with gradients to `student` and `prototypes`.

    Args:
        student: unit rows z_s before the prototypes; in bfloat16 the products are, the rest is float32.
        prototypes: W.
        targets: the teacher's rows.
        terms: pairs by the term's name; each term's rows are read once, whatever the number of terms.
        weights: by the same names.
        temperature: of the student, > 0.
        student_group: what must stay together, normally the image of each row: pairs join rows of one group only. Without
            groups everything is one block.
        teacher_group: the same for the teacher's rows.
        block_rows: rows that fill a block (None: `BLOCK_ROWS` of the device); a group is never cut.

    Raises: ValueError for a temperature <= 0, or unequal names.
    """
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
    if terms.keys() != weights.keys():
        raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must name the same losses")
    names = list(terms)
    groups = None if student_group is None or teacher_group is None else (student_group, teacher_group)
    rows = BLOCK_ROWS.get(student.device.type, 1024) if block_rows is None else block_rows
    blocks = _blocks(student.shape[0], len(targets), [terms[n] for n in names], groups, rows, student.device)
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    scale = torch.tensor([weights[n] for n in names], dtype=wide, device=student.device)
    with torch.autocast(device_type=student.device.type, enabled=False):
        total, values = _FusedTerms.apply(student, prototypes, targets, scale, temperature, blocks)
    return WeighedTerms(total, dict(zip(names, values.unbind(), strict=True)))


@dataclass(frozen=True)
class _Block:
    """Rows of one block, and each term's pairs among them, counted within the block, ascending by student row."""

    student: Tensor
    teacher: Tensor
    terms: list[Pairs]


def _blocks(
    num_student: int,
    num_teacher: int,
    terms: Sequence[Pairs],
    groups: tuple[Tensor, Tensor] | None,
    block_rows: int,
    device: torch.device,
) -> list[_Block]:
    """Whole groups, as many as fit into a block; without groups, one block."""
    if groups is None or max(num_student, num_teacher) <= block_rows:
        return [_Block(torch.arange(num_student, device=device), torch.arange(num_teacher, device=device), list(terms))]
    rows = _cut(groups, num_student, num_teacher, block_rows)
    place_s, place_t = (torch.zeros(n, dtype=torch.int64, device=device) for n in (num_student, num_teacher))
    owner = torch.zeros_like(place_s)
    for number, (student, teacher) in enumerate(rows):
        place_s[student] = torch.arange(len(student), device=device)
        place_t[teacher] = torch.arange(len(teacher), device=device)
        owner[student] = number
    cut_terms: list[list[Pairs]] = []
    for pairs in terms:
        order = (owner[pairs.student] * num_student + place_s[pairs.student]).argsort(stable=True)
        sizes = torch.bincount(owner[pairs.student], minlength=len(rows)).tolist()
        columns = (place_s[pairs.student], place_t[pairs.teacher], pairs.weight)
        cut_terms.append([Pairs(*part) for part in zip(*(torch.split(c[order], sizes) for c in columns), strict=True)])
    return [_Block(s, t, [cut[number] for cut in cut_terms]) for number, (s, t) in enumerate(rows)]


def _cut(
    groups: tuple[Tensor, Tensor], num_student: int, num_teacher: int, block_rows: int
) -> list[tuple[Tensor, Tensor]]:
    orders = [group.argsort(stable=True) for group in groups]
    number = int(torch.cat(groups).max()) + 1
    ends = torch.stack([torch.bincount(group, minlength=number).cumsum(0) for group in groups], dim=1).tolist()
    found, first = [], [0, 0]
    for place, last in enumerate(ends):
        if max(b - a for a, b in zip(first, last, strict=True)) >= block_rows or place == len(ends) - 1:
            found.append((orders[0][first[0] : last[0]], orders[1][first[1] : last[1]]))
            first = last
    return found


class _FusedTerms(torch.autograd.Function):
    """The values and, with them, the gradients; see the module's text."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        targets: TargetRows,
        weights: Tensor,
        temperature: float,
        blocks: Sequence[_Block],
    ) -> tuple[Tensor, Tensor]:
        wants = any(ctx.needs_input_grad[:2])
        low = prototypes.to(student.dtype)
        values = torch.zeros_like(weights)
        grad_student, grad_prototypes = torch.zeros_like(student), torch.zeros_like(prototypes)
        for block in blocks:
            rows = student[block.student]
            value, gradient = _block_terms(rows, low, targets.probs(block.teacher), block.terms, weights, temperature)
            values += value
            if wants:
                gradient = gradient.to(student.dtype)
                grad_student[block.student] = gradient @ low
                if gradient.dtype == grad_prototypes.dtype:
                    grad_prototypes.addmm_(gradient.T, rows)
                else:
                    grad_prototypes += gradient.T @ rows
        ctx.save_for_backward(grad_student, grad_prototypes)
        ctx.mark_non_differentiable(values)
        return torch.dot(values, weights), values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, prototypes = ctx.saved_tensors
        return student * gradient.to(student.dtype), prototypes * gradient.to(prototypes.dtype), *[None] * 4


def _block_terms(
    rows: Tensor, prototypes: Tensor, probs: Tensor, terms: Sequence[Pairs], weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Values [terms] of one block, and the gradient of their weighted sum with respect to W z, [s, K]."""
    log_p = _wide(rows @ prototypes.T).mul_(1.0 / temperature).log_softmax(dim=-1)
    values = torch.zeros_like(weights)
    mass = log_p.new_zeros(rows.shape[0])
    pulls: list[tuple[Tensor, Tensor]] = []
    for place, pairs in enumerate(terms):
        used, inverse = torch.unique_consecutive(pairs.student, return_inverse=True)
        weight = pairs.weight.to(log_p.dtype)
        target = _mixture(inverse, pairs.teacher, weight, len(used), probs)  # H is linear in the target
        own = log_p if len(used) == len(log_p) else log_p[used]
        values[place] = -torch.linalg.vecdot(target, own).sum()  # one long dot product would lose digits
        scale = weights[place] / temperature
        mass.index_add_(0, pairs.student, weight * scale)
        pulls.append((used, target.mul_(scale)))
    gradient = log_p.exp_().mul_(mass[:, None])
    for used, target in pulls:
        gradient.index_add_(0, used, target, alpha=-1)
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


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
