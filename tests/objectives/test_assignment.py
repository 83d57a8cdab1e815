# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.objectives.assignment import sinkhorn


def test_targets_carry_no_gradient() -> None:
    assert not sinkhorn(torch.randn(3, 4, requires_grad=True), temperature=0.1).requires_grad


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(64, 128), columns=st.integers(2, 9), seed=st.integers(0, 1000))
def test_sinkhorn_rows_sum_to_one_and_columns_come_closer_to_uniform(rows: int, columns: int, seed: int) -> None:
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))

    def unevenness(probs: torch.Tensor) -> float:
        return float((probs.sum(0) / rows - 1 / columns).abs().sum())

    bias = 6.0 * (torch.arange(columns) == 0)  # nearly all rows prefer one prototype: what balancing prevents
    probs = sinkhorn(logits + 0.5 * bias, temperature=0.5, iterations=3)
    torch.testing.assert_close(probs.sum(-1), torch.ones(rows))
    assert unevenness(probs) < unevenness((logits / 0.5 + bias).softmax(-1))
    assert unevenness(sinkhorn(logits + 0.5 * bias, temperature=0.5, iterations=200)) < 1e-3


def test_sinkhorn_equals_alternate_scaling_by_loops() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    matrix = [[math.exp(float(v) / 0.2) for v in row] for row in logits]
    for _ in range(3):
        for k in range(3):
            column = sum(matrix[r][k] for r in range(4))
            for r in range(4):
                matrix[r][k] *= (4 / 3) / column
        for r in range(4):
            row_sum = sum(matrix[r])
            matrix[r] = [v / row_sum for v in matrix[r]]
    torch.testing.assert_close(sinkhorn(logits, temperature=0.2), torch.tensor(matrix, dtype=torch.float64))


def test_sinkhorn_of_no_rows_is_empty() -> None:
    assert sinkhorn(torch.zeros(0, 5), temperature=0.1).shape == (0, 5)
