# SPDX-License-Identifier: Apache-2.0
"""Row blocks: pairs of rows cut into blocks whose logits fit into a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rekindle.objectives.pairs import Pairs

HEAD_STEP, WINDOW_STEP = 128, 64
"""In low precision, rows of a head's pass and of a block are rounded up to multiples of these, so that few sizes occur. On a CPU
every other size is one more program that oneDNN compiles and keeps, and one more buffer that fits no hole which the last ones
left: at batch 8 the memory of a GLARE step grew by 60 MB with every step (docs/performance.md)."""

FEW_STEP = 32
"""Less than two steps are rounded up to multiples of this. A size that comes for the first time costs up to a megabyte for each
of its products; with multiples of 8, memory still rose by 3 % from step 200 to step 2,000, as rare sizes came late."""


def whole_steps(rows: int, step: int, dtype: torch.dtype) -> int:
    """The number of rows to compute for `rows` of this type; where they are few, multiples of a smaller step do."""
    if dtype.itemsize > 2:
        return rows
    multiple = FEW_STEP if rows < 2 * step else step
    return -(-rows // multiple) * multiple


def filled(rows: Tensor) -> Tensor:
    """Rows of zeros appended up to whole steps of a block; `rows` themselves where there is nothing to append."""
    empty = whole_steps(len(rows), WINDOW_STEP, rows.dtype) - len(rows)
    return functional.pad(rows, (0, 0, 0, empty)) if empty else rows


@dataclass(frozen=True)
class Block:
    """A window of rows (None: all of them) that some pairs lie in.

    A window may reach into its neighbours' rows: they are computed along, and nothing is asked of them.

    Attributes:
        student: rows of the window.
        teacher: the same.
        own_student: where the block's own rows stand within the window.
        own_teacher: the same.
        terms: each term's pairs, counted within the window, ascending by student row.
    """

    student: Tensor | None
    teacher: Tensor | None
    own_student: slice
    own_teacher: slice
    terms: list[Pairs]

    def parts(
        self, num_rows: int, part_rows: int, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor | slice, slice, list[Pairs]]]:
        """Cut the student's rows into parts of at most `part_rows`; all of them read the same rows of the teacher.

        Yields: the rows, where those that count stand among them, and the pairs, counted within the part.
        """
        number = num_rows if self.student is None else len(self.student)
        length = number
        if number > part_rows:
            length = whole_steps(-(-number // -(-number // part_rows)), WINDOW_STEP, dtype)
        starts = range(0, max(1, number), max(1, length))  # no rows are one part, too
        cuts = [[0, len(pairs.student)] for pairs in self.terms]
        if len(starts) > 1:
            borders = torch.tensor([*starts, number], device=self.terms[0].student.device)
            cuts = [torch.searchsorted(pairs.student.contiguous(), borders).tolist() for pairs in self.terms]
        own_start, own_stop, _ = self.own_student.indices(number)
        for place, start in enumerate(starts):
            stop = min(start + length, number)
            found = []
            for pairs, cut in zip(self.terms, cuts, strict=True):
                at = slice(cut[place], cut[place + 1])
                found.append(Pairs(pairs.student[at] - start, pairs.teacher[at], pairs.weight[at]))
            rows = slice(start, stop)
            own = slice(max(own_start - start, 0), max(min(own_stop, stop) - start, 0))
            yield rows if self.student is None else self.student[rows], own, found


def _whole(terms: Sequence[Pairs]) -> list[Block]:
    return [Block(None, None, slice(None), slice(None), list(terms))]


def cut_into_blocks(
    num_student: int,
    num_teacher: int,
    terms: Sequence[Pairs],
    groups: tuple[Tensor, Tensor] | None,
    block_rows: int,
    dtype: torch.dtype,
) -> list[Block]:
    """Whole groups, as many as fill a block, each in its window; without groups, or with few rows, one block.

    Args: groups, of each student and teacher row: pairs join rows of one group only; block_rows, rows that fill a block;
    dtype of the rows.
    """
    if groups is None or max(num_student, num_teacher) <= block_rows:
        return _whole(terms)
    ends = _ends(groups, block_rows)
    if len(ends) == 1:
        return _whole(terms)
    orders = [group.argsort(stable=True) for group in groups]
    rank_s, rank_t = (order.argsort() for order in orders)  # places where the rows of a group stand together
    windows = [
        (_window(s0, s1, num_student, dtype), _window(t0, t1, num_teacher, dtype))
        for (s0, t0), (s1, t1) in zip([(0, 0), *ends[:-1]], ends, strict=True)
    ]
    cut = [_cut_term(pairs, rank_s, rank_t, ends, windows) for pairs in terms]
    return [
        Block(orders[0][s.rows], orders[1][t.rows], s.own, t.own, [parts[number] for parts in cut])
        for number, (s, t) in enumerate(windows)
    ]


@dataclass(frozen=True)
class _Window:
    """Rows that are computed, and where those that count stand among them."""

    rows: slice
    own: slice


def _window(start: int, stop: int, number: int, dtype: torch.dtype) -> _Window:
    """Rows start to stop of `number`, widened to whole steps where there are enough rows."""
    length = min(number, whole_steps(stop - start, WINDOW_STEP, dtype))
    first = min(start, number - length)
    return _Window(slice(first, first + length), slice(start - first, stop - first))


def _ends(groups: tuple[Tensor, Tensor], block_rows: int) -> list[tuple[int, int]]:
    """Where each block ends among the student's and the teacher's rows, in the order of their groups."""
    number = int(torch.cat(groups).max()) + 1
    sums = torch.stack([torch.bincount(group, minlength=number) for group in groups], dim=1).cumsum(0).tolist()
    found: list[tuple[int, int]] = []
    first = before = (0, 0)
    for student, teacher in sums:
        if before != first and max(student - first[0], teacher - first[1]) > block_rows:
            found.append(before)
            first = before
        before = (student, teacher)
    return [*found, before]


def _cut_term(
    pairs: Pairs,
    rank_s: Tensor,
    rank_t: Tensor,
    ends: Sequence[tuple[int, int]],
    windows: Sequence[tuple[_Window, _Window]],
) -> list[Pairs]:
    student, order = rank_s[pairs.student].sort(stable=True)
    teacher, weight = rank_t[pairs.teacher[order]], pairs.weight[order]
    borders = torch.tensor([end for end, _ in ends], device=student.device)
    first, found = 0, []
    for last, (s, t) in zip(torch.searchsorted(student, borders).tolist(), windows, strict=True):
        found.append(Pairs(student[first:last] - s.rows.start, teacher[first:last] - t.rows.start, weight[first:last]))
        first = last
    return found
