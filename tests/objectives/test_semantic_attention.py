# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from rekindle.objectives.semantic_attention import attention_loss, attention_target, mean_entropy, strongest_patches


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_patches_that_stand_out_are_selected_strongest_first() -> None:
    """Property 8."""
    row = _logits(2, 3, 16).clamp(-2, 2)
    for place, patch in enumerate((11, 4, 7)):
        row[:, :, patch] = 20.0 - place
    assert strongest_patches(row, 3).tolist() == [[11, 4, 7]] * 2
    assert strongest_patches(row, 0).shape == (2, 0)


def test_order_of_heads_and_offset_of_a_head_do_not_change_the_selection() -> None:
    """Property 8: logits are averaged, and a constant on one head's row moves all patches alike."""
    row = _logits(4, 3, 16)
    found = strongest_patches(row, 5)
    shifted = row.clone()
    shifted[:, 1] += 100.0
    assert torch.equal(strongest_patches(row[:, [2, 0, 1]], 5), found)
    assert torch.equal(strongest_patches(shifted, 5), found)


def test_logits_and_probabilities_may_select_different_patches() -> None:
    """A head that is sure of one patch counts once among probabilities, and with all its weight among logits."""
    row = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 2.5, 0.0]]])
    assert strongest_patches(row, 1).tolist() == [[0]]
    assert strongest_patches(row.softmax(dim=-1), 1).tolist() == [[1]]


def test_more_patches_than_there_are_cannot_be_selected() -> None:
    with pytest.raises(ValueError, match="k = 17 patches of 16"):
        strongest_patches(_logits(1, 1, 16), 17)


@pytest.mark.parametrize(("tau", "wanted"), [(1.8, (0.5255, 0.3015, 0.1730)), (1.0, (0.6652, 0.2447, 0.0900))])
def test_the_temperature_flattens_the_target(tau: float, wanted: tuple[float, ...]) -> None:
    """Property 9, worked by hand."""
    found = attention_target(torch.tensor([2.0, 1.0, 0.0]).expand(1, 1, 1, 3), tau)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(wanted), atol=5e-5, rtol=0)


def test_target_rows_are_distributions_and_uniform_at_high_temperature() -> None:
    """Property 9."""
    logits = _logits(2, 3, 4, 16)
    torch.testing.assert_close(attention_target(logits, 0.3).sum(dim=-1), torch.ones(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(attention_target(logits, 1e9), torch.full_like(logits, 1 / 16))
    with pytest.raises(ValueError, match="must be positive"):
        attention_target(logits, 0.0)


def test_the_loss_is_the_entropy_of_its_target_at_best_with_no_gradient_there() -> None:
    """Property 10: the bound holds for any prediction, equality up to a constant of each row."""
    logits = _logits(2, 3, 4, 16)
    target = attention_target(logits, 1.8)
    entropy = mean_entropy(target)
    best = (logits / 1.8 + _logits(2, 3, 4, 1, seed=1)).requires_grad_()
    loss = attention_loss(best, target)
    torch.testing.assert_close(loss, entropy, atol=1e-6, rtol=0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None and float(best.grad.abs().max()) < 1e-12
    for seed in range(5):
        assert float(attention_loss(_logits(2, 3, 4, 16, seed=seed), target)) > float(entropy)


def test_uniform_rows_of_a_vit_cost_the_logarithm_of_their_length() -> None:
    """Property 10: ln 196 = 5.2781."""
    flat = torch.zeros(1, 2, 3, 196)
    found = float(attention_loss(flat, attention_target(flat, 1.0)))
    assert found == pytest.approx(5.2781, abs=5e-5) and found == pytest.approx(math.log(196))


def test_the_loss_is_the_sum_row_by_row() -> None:
    """Equation 5 as loops, over images, rows and heads."""
    logits, target = _logits(2, 3, 4, 5), attention_target(_logits(2, 3, 4, 5, seed=1), 0.7)
    rows = []
    for b in range(2):
        for r in range(3):
            for h in range(4):
                total = sum(math.exp(float(z)) for z in logits[b, r, h])
                rows.append(
                    -sum(
                        float(t) * math.log(math.exp(float(z)) / total)
                        for t, z in zip(target[b, r, h], logits[b, r, h], strict=True)
                    )
                )
    assert float(attention_loss(logits, target)) == pytest.approx(sum(rows) / len(rows))
    assert torch.autograd.gradcheck(lambda z: attention_loss(z, target), (logits.clone().requires_grad_(),))
