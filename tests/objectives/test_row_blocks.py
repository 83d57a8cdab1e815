# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows: every row once, whole groups together, few sizes."""

from __future__ import annotations

import pytest
import torch

from rekindle.objectives.pairs import Pairs
from rekindle.objectives.row_blocks import FEW_STEP, WINDOW_STEP, Block, cut_into_blocks, filled, whole_steps


def _groups(sizes: list[int], seed: int) -> torch.Tensor:
    """Groups of these sizes, in no order."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]


def _pairs(student: torch.Tensor, teacher: torch.Tensor) -> Pairs:
    """Every pair of rows of one group, with a weight of its own."""
    rows, columns = (student[:, None] == teacher[None]).nonzero(as_tuple=True)
    return Pairs(rows, columns, torch.arange(1.0, len(rows) + 1))


def _cut(
    student: list[int], teacher: list[int], block_rows: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Block], Pairs, int, int]:
    groups = _groups(student, 0), _groups(teacher, 1)
    pairs = _pairs(*groups)
    num_student, num_teacher = len(groups[0]), len(groups[1])
    return (
        cut_into_blocks(num_student, num_teacher, [pairs], groups, block_rows, dtype),
        pairs,
        num_student,
        num_teacher,
    )


SIZES = [
    ([70, 90, 40, 130, 3, 200], [50, 120, 10, 80, 60, 20]),
    ([130, 131], [140, 9]),
    ([65, 1, 64, 1], [1, 64, 1, 65]),
]


@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_every_row_is_in_one_block_and_every_pair_in_the_block_of_its_rows(
    student: list[int], teacher: list[int]
) -> None:
    blocks, pairs, num_student, num_teacher = _cut(student, teacher, block_rows=100)
    assert len(blocks) > 1
    own_s, own_t, found = [], [], set()
    for block in blocks:
        assert block.student is not None and block.teacher is not None
        own_s.append(block.student[block.own_student])
        own_t.append(block.teacher[block.own_teacher])
        (term,) = block.terms
        assert set(block.student[term.student].tolist()) <= set(own_s[-1].tolist())
        assert set(block.teacher[term.teacher].tolist()) <= set(own_t[-1].tolist())
        assert term.student.tolist() == sorted(term.student.tolist())
        places = block.student[term.student].tolist(), block.teacher[term.teacher].tolist(), term.weight.tolist()
        found |= set(zip(*places, strict=True))
    assert sorted(torch.cat(own_s).tolist()) == list(range(num_student))
    assert sorted(torch.cat(own_t).tolist()) == list(range(num_teacher))
    expected = pairs.student.tolist(), pairs.teacher.tolist(), pairs.weight.tolist()
    assert found == set(zip(*expected, strict=True))


@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_a_window_has_whole_steps_of_rows_or_all(student: list[int], teacher: list[int]) -> None:
    blocks, _, num_student, num_teacher = _cut(student, teacher, block_rows=100)
    for block in blocks:
        assert block.student is not None and block.teacher is not None
        for window, number in ((block.student, num_student), (block.teacher, num_teacher)):
            step = WINDOW_STEP if len(window) >= 2 * WINDOW_STEP else FEW_STEP
            assert len(window) % step == 0 or len(window) == number
            assert len(set(window.tolist())) == len(window)


def test_whole_steps_are_next_multiples_and_finer_below_two_steps() -> None:
    rows = (0, 5, 57, 94, 127, 128, 129, 192, 1000)
    assert [whole_steps(n, 64, torch.bfloat16) for n in rows] == [0, 32, 64, 96, 128, 128, 192, 192, 1024]
    assert [whole_steps(n, 128, torch.bfloat16) for n in (9, 149, 209, 255, 257)] == [32, 160, 224, 256, 384]
    assert [whole_steps(n, 64, torch.float32) for n in rows] == [*rows]


def test_few_rows_have_eight_sizes() -> None:
    found = {n: whole_steps(n, 128, torch.bfloat16) for n in range(1, 257)}
    assert len(set(found.values())) == 8
    assert all(n <= size < n + FEW_STEP for n, size in found.items())


def test_filled_rows_are_zeros_behind_and_float32_is_left_alone() -> None:
    rows = torch.ones(57, 3, dtype=torch.bfloat16)
    padded = filled(rows)
    assert padded.shape == (64, 3) and torch.equal(padded[:57], rows) and not padded[57:].any()
    assert filled(padded) is padded
    single = torch.ones(57, 3)
    assert filled(single) is single


@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_in_float32_a_window_has_its_own_rows_alone(student: list[int], teacher: list[int]) -> None:
    blocks, *_ = _cut(student, teacher, block_rows=100, dtype=torch.float32)
    for block in blocks:
        assert block.student is not None and block.teacher is not None
        assert len(block.student[block.own_student]) == len(block.student)
        assert len(block.teacher[block.own_teacher]) == len(block.teacher)
