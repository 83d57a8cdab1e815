# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rekindle.objectives.distillation import (
    cross_view_entropy,
    masked_patch_mean,
    matched_patch_mean,
    region_mean,
    row_cross_entropy,
)


def _probs(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).softmax(-1)


def _entropy_by_hand(teacher: Tensor, student: Tensor, temperature: float) -> float:
    denominator = sum(math.exp(float(v) / temperature) for v in student)
    return -sum(
        float(t) * math.log(math.exp(float(s) / temperature) / denominator)
        for t, s in zip(teacher, student, strict=True)
    )


def test_cross_view_entropy_equals_the_double_loop_over_22_pairs() -> None:
    student, teacher = torch.randn(12, 3, 5, dtype=torch.float64), _probs(2, 3, 5)
    terms = [
        _entropy_by_hand(teacher[q, b], student[v, b], 0.1)
        for q in range(2)
        for v in range(12)
        if v != q
        for b in range(3)
    ]
    assert len(terms) == 22 * 3
    loss = cross_view_entropy(student, teacher, temperature=0.1)
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_cross_view_entropy_ignores_the_order_of_local_crops() -> None:
    student, teacher = torch.randn(7, 2, 5), _probs(2, 2, 5, dtype=torch.float32)
    shuffled = torch.cat([student[:2], student[2:][torch.randperm(5)]])
    first = cross_view_entropy(student, teacher, temperature=0.1)
    torch.testing.assert_close(first, cross_view_entropy(shuffled, teacher, temperature=0.1))


def test_uniform_against_uniform_is_log_k() -> None:
    uniform = torch.full((2, 3, 8192), 1 / 8192)
    assert float(cross_view_entropy(torch.zeros(12, 3, 8192), uniform, temperature=0.1)) == pytest.approx(
        math.log(8192), abs=1e-5
    )
    rows = row_cross_entropy(torch.zeros(6, 8192), uniform.flatten(0, 1), temperature=0.1)
    for value in rows.tolist():
        assert value == pytest.approx(math.log(8192), abs=1e-5)


def test_a_uniform_teacher_never_gives_less_than_log_k_and_no_teacher_less_than_its_entropy() -> None:
    student = torch.randn(50, 16, dtype=torch.float64)
    uniform = torch.full((50, 16), 1 / 16, dtype=torch.float64)
    assert float(row_cross_entropy(student, uniform, temperature=0.1).min()) >= math.log(16) - 1e-9
    teacher = _probs(50, 16)
    entropy = -(teacher * teacher.log()).sum(-1)
    assert bool((row_cross_entropy(student, teacher, temperature=0.1) >= entropy - 1e-9).all())


def test_a_one_hot_teacher_at_the_students_peak_gives_zero_in_the_limit_of_temperature() -> None:
    student = torch.randn(5, 9, dtype=torch.float64)
    teacher = torch.nn.functional.one_hot(student.argmax(-1), 9).double()
    assert float(row_cross_entropy(student, teacher, temperature=1e-4).max()) < 1e-6


def test_row_cross_entropy_equals_the_sum_by_hand_and_scales_with_the_target() -> None:
    student, teacher = torch.randn(4, 6, dtype=torch.float64), _probs(4, 6)
    rows = row_cross_entropy(student, teacher, temperature=0.1)
    for r in range(4):
        assert float(rows[r]) == pytest.approx(_entropy_by_hand(teacher[r], student[r], 0.1), rel=1e-9)
    torch.testing.assert_close(row_cross_entropy(student, 3 * teacher, temperature=0.1), 3 * rows)


def test_row_cross_entropy_passes_gradcheck() -> None:
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = _probs(3, 5)
    assert torch.autograd.gradcheck(lambda s: row_cross_entropy(s, teacher, temperature=0.3), (student,))


def test_masked_mean_weighs_each_patch_by_the_count_in_its_view_and_keeps_empty_views() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    view = torch.tensor([0, 0, 0, 2])
    assert float(masked_patch_mean(losses, view, num_views=4)) == pytest.approx((2.0 + 0.0 + 10.0 + 0.0) / 4)
    assert float(masked_patch_mean(losses, view, num_views=4, reduction="sum")) == pytest.approx(16 / 4)


def test_means_over_nothing_are_zero_with_a_zero_gradient() -> None:
    weight = torch.ones(0, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    for loss in (
        masked_patch_mean(weight * 2, none, num_views=3),
        matched_patch_mean(weight * 2, num_views=3),
        region_mean(weight * 2, none, torch.zeros(4, dtype=torch.bool)),
    ):
        assert float(loss.detach()) == 0.0
        loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_matched_mean_counts_matched_rows_alone() -> None:
    assert float(matched_patch_mean(torch.tensor([1.0, 2.0, 6.0]), num_views=2)) == pytest.approx(3.0)
    assert float(matched_patch_mean(torch.tensor([1.0, 2.0, 6.0]), num_views=2, reduction="sum")) == pytest.approx(4.5)


def test_every_valid_region_counts_alike_whatever_its_size() -> None:
    losses, region = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2])
    valid = torch.tensor([True, False, True])
    assert float(region_mean(losses, region, valid)) == pytest.approx((2.0 + 10.0) / 2)
    assert float(region_mean(losses, region, valid, reduction="sum")) == pytest.approx((4.0 + 10.0) / 2)


def test_a_temperature_that_is_not_positive_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="temperature"):
        row_cross_entropy(torch.zeros(1, 2), torch.full((1, 2), 0.5), temperature=0.0)
    with pytest.raises(ValueError, match="two views"):
        cross_view_entropy(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 0.5), temperature=0.1)
