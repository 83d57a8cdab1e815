# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from rekindle.objectives.contributions import contributions


def _parts(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_shares_sum_to_one_and_what_is_zero_has_none() -> None:
    """Property 20."""
    parts = _parts(4, 2, 5, 8)
    parts[2] = 0.0
    found = contributions(parts)
    assert float(found.norm.sum()) == pytest.approx(1) and float(found.signed.sum()) == pytest.approx(1)
    assert bool((found.norm >= 0).all())
    assert float(found.norm[2]) == 0 and float(found.signed[2]) == 0


def test_shares_of_two_parts_worked_by_hand() -> None:
    """Tokens (3, 0) + (0, 4) and (6, 0) + (-2, 0): lengths 3 of 7 and 6 of 8; products with the sums 9 + 24 of 25 + 16."""
    parts = torch.tensor([[[[3.0, 0.0], [6.0, 0.0]]], [[[0.0, 4.0], [-2.0, 0.0]]]])
    found = contributions(parts)
    assert found.norm.tolist() == pytest.approx([(3 / 7 + 6 / 8) / 2, (4 / 7 + 2 / 8) / 2])
    assert found.signed.tolist() == pytest.approx([33 / 41, (16 - 8) / 41])


def test_nothing_has_no_shares() -> None:
    parts = _parts(2, 1, 3, 4)
    with pytest.raises(ValueError, match="add up to 0"):
        contributions(torch.stack([parts[0], -parts[0]]))
