# SPDX-License-Identifier: Apache-2.0
"""Every builder of pairs against the papers' sums over row losses, as `objectives.plain` writes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rekindle.objectives.pairs import (
    Pairs,
    Reduction,
    cross_view_pairs,
    matched_patch_pairs,
    region_pairs,
    same_patch_pairs,
    used_rows,
)
from rekindle.objectives.plain import (
    cross_view_entropy,
    masked_patch_mean,
    matched_patch_mean,
    region_mean,
    row_cross_entropy,
)

CPU = torch.device("cpu")
REDUCTIONS = ("mean", "sum")


def _value(pairs: Pairs, student: Tensor, teacher: Tensor) -> float:
    """Sum over pairs of weight * H, for logits and distributions [rows, K]."""
    rows = row_cross_entropy(student[pairs.student], teacher[pairs.teacher], temperature=0.1)
    return float((rows * pairs.weight).sum())


def _probs(*shape: int) -> Tensor:
    return torch.randn(*shape).softmax(-1)


def test_cross_view_pairs_are_22_per_image_and_equal_the_double_loop_also_in_two_parts() -> None:
    student, teacher = torch.randn(12, 3, 5), _probs(2, 3, 5)
    each = [
        float(row_cross_entropy(student[v, b : b + 1], teacher[q, b : b + 1], temperature=0.1))
        for q in range(2)
        for v in range(12)
        if v != q
        for b in range(3)
    ]
    assert len(each) == 22 * 3
    parts = [
        cross_view_pairs(3, student_views=views, num_student_views=12, num_teacher_views=2, device=CPU)
        for views in (range(2), range(2, 12), range(12))
    ]
    large, small, whole = (
        _value(pairs, student[views.start : views.stop].flatten(0, 1), teacher.flatten(0, 1))
        for pairs, views in zip(parts, (range(2), range(2, 12), range(12)), strict=True)
    )
    assert len(parts[2].student) == 22 * 3
    assert whole == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert large + small == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(float(cross_view_entropy(student, teacher, temperature=0.1)), rel=1e-5)
    assert float(parts[2].weight.sum()) == pytest.approx(1.0)


def test_one_view_against_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="two views"):
        cross_view_pairs(1, student_views=range(1), num_student_views=1, num_teacher_views=1, device=CPU)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_patches_are_averaged_in_their_view_first_and_empty_views_count(reduction: Reduction) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    student, teacher = torch.randn(16, 5), _probs(16, 5)
    pairs = same_patch_pairs(mask, num_views=4, reduction=reduction)
    losses = row_cross_entropy(student, teacher, temperature=0.1)[mask.flatten()]
    expected = masked_patch_mean(losses, torch.tensor([0, 0, 0, 2]), num_views=4, reduction=reduction)
    assert _value(pairs, student, teacher) == pytest.approx(float(expected), rel=1e-5)
    if reduction == "mean":
        assert float(expected) == pytest.approx(float((losses[:3].mean() + losses[3]) / 4), rel=1e-5)


@pytest.mark.parametrize("match_reduction", REDUCTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_matched_patches_average_over_their_partners_then_over_all_that_have_any(
    reduction: Reduction, match_reduction: Reduction
) -> None:
    torch.manual_seed(1)
    relation, partner = torch.rand(2, 3, 4) < 0.4, torch.tensor([1, 0])
    relation[0, 1] = False
    student, teacher = torch.randn(2, 3, 5), _probs(2, 4, 5)
    rows = []
    for v in range(2):
        for s in range(3):
            found = [t for t in range(4) if relation[v, s, t]]
            if found:
                each = [
                    row_cross_entropy(student[v, s, None], teacher[partner[v], t, None], temperature=0.1) for t in found
                ]
                rows.append(torch.cat(each).mean() if match_reduction == "mean" else torch.cat(each).sum())
    expected = matched_patch_mean(torch.stack(rows), num_views=2, reduction=reduction)
    pairs = matched_patch_pairs(
        relation,
        partner,
        num_views=2,
        reduction=reduction,
        match_reduction=match_reduction,
    )
    assert _value(pairs, student.flatten(0, 1), teacher.flatten(0, 1)) == pytest.approx(float(expected), rel=1e-5)


def test_a_part_of_the_matched_patches_is_averaged_by_the_count_of_all() -> None:
    relation, partner = torch.ones(1, 2, 1, dtype=torch.bool), torch.tensor([0])
    whole = matched_patch_pairs(relation, partner, num_views=1)
    part = matched_patch_pairs(relation, partner, num_views=1, count=torch.tensor(8))
    torch.testing.assert_close(whole.weight, torch.full((2,), 0.5))
    torch.testing.assert_close(part.weight, torch.full((2,), 0.125))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_valid_region_counts_alike_whatever_its_size(reduction: Reduction) -> None:
    patch = torch.tensor([[[0, 2, 1], [2, 3, 0]], [[1, 0, 3], [3, 1, 2]]])  # [V=2, M=2, L=3], of four patches
    usable = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [1, 1, 1]]], dtype=torch.bool)
    student, teacher = torch.randn(8, 5), _probs(6, 5)
    pairs = region_pairs(patch, usable, 4, reduction=reduction)
    assert pairs.student.tolist() == [0, 2, 2, 4 + 1, 4 + 2, 4 + 3]
    assert pairs.teacher.tolist() == [0, 1, 2, 4, 5, 3]
    patches = torch.tensor([0, 2, 2, 4 + 3, 4 + 1, 4 + 2])  # of the teacher's rows in order
    rows = row_cross_entropy(student[patches], teacher, temperature=0.1)
    valid = torch.tensor([True, True, False, True])
    expected = region_mean(rows, torch.tensor([0, 0, 1, 3, 3, 3]), valid, reduction=reduction)
    assert _value(pairs, student, teacher) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_to_compare_gives_no_pairs_and_no_nan() -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    found = [
        same_patch_pairs(none, num_views=2),
        matched_patch_pairs(torch.zeros(2, 3, 3, dtype=torch.bool), torch.tensor([1, 0]), num_views=2),
        region_pairs(torch.zeros(2, 1, 3, dtype=torch.int64), none[:, None], 3),
    ]
    assert [len(pairs.weight) for pairs in found] == [0, 0, 0]


def test_used_rows_are_renumbered_without_changing_what_they_are() -> None:
    one = Pairs(torch.tensor([5, 2, 5]), torch.tensor([0, 1, 2]), torch.ones(3))
    two = Pairs(torch.tensor([7]), torch.tensor([9]), torch.ones(1))
    used, terms = used_rows({"one": one, "two": two}, "student", 8)
    assert used.tolist() == [2, 5, 7]
    assert used[terms["one"].student].tolist() == [5, 2, 5]
    assert used[terms["two"].student].tolist() == [7]
    assert terms["one"].teacher.tolist() == [0, 1, 2]
