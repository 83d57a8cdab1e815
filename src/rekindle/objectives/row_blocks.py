# SPDX-License-Identifier: Apache-2.0
"""Pairs of rows, and how they are cut into blocks whose logits fit into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
class Block:
    """Rows of one block (None: all of them), and each term's pairs, counted within the block, ascending by student row."""

    student: Tensor | None
    teacher: Tensor | None
    terms: list[Pairs]


def cut_into_blocks(
    num_student: int,
    num_teacher: int,
    terms: Sequence[Pairs],
    groups: tuple[Tensor, Tensor] | None,
    block_rows: int,
) -> list[Block]:
    """Whole groups, as many as fill a block; without groups, or with few rows, one block.

    Args: groups, of each student and teacher row: pairs join rows of one group only; block_rows, rows that fill a block.
    """
    if groups is None or max(num_student, num_teacher) <= block_rows:
        return [Block(None, None, list(terms))]
    ends = _ends(groups, block_rows)
    if len(ends) == 1:
        return [Block(None, None, list(terms))]
    orders = [group.argsort(stable=True) for group in groups]
    rank_s, rank_t = (order.argsort() for order in orders)  # places where the rows of a group stand together
    cut = [_cut_term(pairs, rank_s, rank_t, ends) for pairs in terms]
    starts = [(0, 0), *ends[:-1]]
    return [
        Block(orders[0][s0:s1], orders[1][t0:t1], [parts[number] for parts in cut])
        for number, ((s0, t0), (s1, t1)) in enumerate(zip(starts, ends, strict=True))
    ]


def _ends(groups: tuple[Tensor, Tensor], block_rows: int) -> list[tuple[int, int]]:
    """Where each block ends among the student's and the teacher's rows, in the order of their groups."""
    number = int(torch.cat(groups).max()) + 1
    sums = torch.stack([torch.bincount(group, minlength=number) for group in groups], dim=1).cumsum(0).tolist()
    found: list[tuple[int, int]] = []
    last = (0, 0)
    for place, (student, teacher) in enumerate(sums):
        if max(student - last[0], teacher - last[1]) >= block_rows or place == len(sums) - 1:
            last = (student, teacher)
            found.append(last)
    return found


def _cut_term(pairs: Pairs, rank_s: Tensor, rank_t: Tensor, ends: Sequence[tuple[int, int]]) -> list[Pairs]:
    student, order = rank_s[pairs.student].sort(stable=True)
    teacher, weight = rank_t[pairs.teacher[order]], pairs.weight[order]
    borders = torch.tensor([end for end, _ in ends], device=student.device)
    first, start, found = 0, (0, 0), []
    for last, end in zip(torch.searchsorted(student, borders).tolist(), ends, strict=True):
        found.append(Pairs(student[first:last] - start[0], teacher[first:last] - start[1], weight[first:last]))
        first, start = last, end
    return found
