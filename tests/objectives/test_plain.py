# SPDX-License-Identifier: Apache-2.0
"""The plain equations against sums by hand: they are what everything else is held against."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rekindle.objectives.plain import (
    centred_softmax,
    corrupted_pixel_error,
    cross_view_entropy,
    hidden_patch_error,
    info_nce,
    kernel_alignment,
    mean_negative_entropy,
    mean_shift,
    mean_shift_error,
    patch_nce,
    position_cross_entropy,
    row_cross_entropy,
)

TAU = 0.2


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_row_cross_entropy_equals_the_sum_by_hand() -> None:
    student, teacher = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64).softmax(-1)
    denominator = sum(math.exp(float(v) / 0.1) for v in student)
    by_hand = -sum(
        float(t) * math.log(math.exp(float(s) / 0.1) / denominator) for t, s in zip(teacher, student, strict=True)
    )
    assert float(row_cross_entropy(student[None], teacher[None], temperature=0.1)) == pytest.approx(by_hand, rel=1e-9)


def test_a_constant_in_logits_and_centre_leaves_the_targets_unchanged() -> None:
    logits, centre, shift = torch.randn(5, 7), torch.randn(7), torch.randn(7)
    before = centred_softmax(logits, centre, temperature=0.07)
    after = centred_softmax(logits + shift, centre + shift, temperature=0.07)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_centred_targets_carry_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    assert not centred_softmax(logits, torch.zeros(4), temperature=0.1).requires_grad


def test_bfloat16_logits_are_widened_under_autocast() -> None:
    logits = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probs = centred_softmax(logits.bfloat16(), torch.zeros(4), temperature=0.1)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, (logits.bfloat16().float() / 0.1).softmax(-1))


def test_views_are_compared_with_the_others_alone() -> None:
    student, teacher = _rows(3, 2, 5), _rows(2, 2, 5, seed=1).softmax(dim=-1)
    pairs = [
        float(row_cross_entropy(student[s, b], teacher[t, b], temperature=0.1))
        for s in range(3)
        for t in range(2)
        for b in range(2)
        if s != t
    ]
    assert len(pairs) == 8
    assert float(cross_view_entropy(student, teacher, temperature=0.1)) == pytest.approx(sum(pairs) / 8)


def _patch_loops(queries: Tensor, keys: Tensor, same_position: bool) -> Tensor:
    """L_PAT of every patch, by section 5 of MMC's specification."""
    images, patches, _ = queries.shape
    q, k = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    found = torch.zeros(images, patches, dtype=queries.dtype)
    for i in range(images):
        for p in range(patches):
            own = torch.exp(q[i, p] @ k[i, p] / TAU)
            others = torch.zeros((), dtype=queries.dtype)
            for j in range(len(keys)):
                for r in [p] if same_position else range(patches):
                    if j != i:
                        others = others + torch.exp(q[i, p] @ k[j, r] / TAU)
            found[i, p] = -torch.log(own / (own + others))
    return found


@pytest.mark.parametrize("is_same_position", [False, True])
def test_patch_nce_is_the_specifications_sum_as_loops(is_same_position: bool) -> None:
    queries, keys = _rows(3, 5, 4), _rows(3, 5, 4, seed=1)
    found = patch_nce(queries, keys, temperature=TAU, is_same_position=is_same_position)
    torch.testing.assert_close(found, _patch_loops(queries, keys, is_same_position))


def test_info_nce_is_torchs_cross_entropy_of_cosines() -> None:
    queries, keys = _rows(6, 8), _rows(6, 8, seed=1)
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / TAU
    torch.testing.assert_close(info_nce(queries, keys, temperature=TAU), F.cross_entropy(logits, torch.arange(6)))


def test_positions_are_torchs_cross_entropy_and_none_cost_nothing() -> None:
    logits, place = _rows(4, 7), torch.tensor([3, 0, 6, 3])
    torch.testing.assert_close(position_cross_entropy(logits, place), F.cross_entropy(logits, place))
    assert float(position_cross_entropy(logits[:0], place[:0])) == 0.0


def test_the_entropy_of_the_mean_lies_between_its_bounds() -> None:
    assert float(mean_negative_entropy(torch.eye(16))) == pytest.approx(-math.log(16), rel=1e-6)
    assert float(mean_negative_entropy(torch.eye(16)[3:4])) == 0.0


def test_a_step_of_mean_shift_worked_by_hand() -> None:
    """Scores 0.5 / sqrt(4) * (2, 0) = (0.5, 0); weights 1 / (1 + e^-0.5) = 0.62246 and the rest."""
    tokens = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    shifted = mean_shift(torch.tensor([1.0, 0.0, 0.0, 0.0]), tokens, temperature=0.5)
    torch.testing.assert_close(shifted, torch.tensor([1.24492, 0.37754, 0.0, 0.0]), atol=1e-5, rtol=0)
    error = mean_shift_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert float(error) == pytest.approx(2.0)
    assert float(mean_shift_error(shifted, -2 * shifted)) == pytest.approx(4.0)


def test_errors_of_what_is_hidden_or_corrupted_are_means_over_these() -> None:
    predicted, target = _rows(2, 3, 4), _rows(2, 3, 4, seed=1)
    hidden = torch.tensor([[True, False, True], [False, False, True]])
    by_hand = [(predicted[n, p] - target[n, p]).square().sum() / 4 for n, p in ((0, 0), (0, 2), (1, 2))]
    torch.testing.assert_close(hidden_patch_error(predicted, target, hidden), torch.stack(by_hand).mean())
    pixels, restored = _rows(3, 2, 2), _rows(3, 2, 2, seed=1)
    one = torch.tensor([[False, True], [False, False]])
    wanted = sum(float((restored[c, 0, 1] - pixels[c, 0, 1]).abs()) for c in range(3)) / 3
    assert float(corrupted_pixel_error(restored, pixels, one)) == pytest.approx(wanted)


def test_kernel_alignment_is_the_correlation_of_centred_kernels_entry_by_entry() -> None:
    student, teacher = _rows(4, 3), _rows(4, 5, seed=1)

    def centred(tokens: Tensor) -> list[list[float]]:
        mean = tokens.mean(dim=0)
        return [[float((a - mean) @ (b - mean)) for b in tokens] for a in tokens]

    own, given = centred(student), centred(teacher)
    product = sum(own[i][j] * given[i][j] for i in range(4) for j in range(4))
    norms = [math.sqrt(sum(v * v for row in kernel for v in row)) for kernel in (own, given)]
    assert float(kernel_alignment(student, teacher)) == pytest.approx(product / (norms[0] * norms[1]))


def test_wrong_requests_are_refused() -> None:
    rows = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="temperature > 0, got 0"):
        row_cross_entropy(rows, rows.softmax(dim=-1), temperature=0.0)
    with pytest.raises(ValueError, match="need two views; got 1 student and 1 teacher views"):
        cross_view_entropy(rows[:1], rows[:1].softmax(dim=-1), temperature=0.1)
    with pytest.raises(ValueError, match="need two images"):
        patch_nce(rows[:1], rows[:1], temperature=0.2)
    with pytest.raises(ValueError, match="nothing is hidden"):
        hidden_patch_error(rows, rows, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing is corrupted"):
        corrupted_pixel_error(torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.zeros(2, 2, dtype=torch.bool))
