# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from rekindle.objectives.reconstruction import hidden_patch_error, normalised_target


def _features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_along_the_patches_each_channel_of_each_image_has_mean_zero_and_deviation_one() -> None:
    """Property 5 of the specification."""
    found = normalised_target(3 + 5 * _features(3, 20, 4), "patch")
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(3, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.std(dim=1), torch.ones(3, 4, dtype=torch.float64), atol=1e-6, rtol=0)
    worked = torch.tensor([[[0.0, 10.0], [2.0, 20.0], [4.0, 30.0]]])
    wanted = torch.tensor([[[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]])
    torch.testing.assert_close(normalised_target(worked, "patch"), wanted, atol=1e-6, rtol=0)


def test_scale_and_offset_of_a_channel_do_not_matter_and_a_constant_one_becomes_zero() -> None:
    """Property 5. The 1e-6 beside the variance is what the tolerance is for."""
    y = 10 * _features(2, 20, 4)
    scale, offset = torch.tensor([1.0, 2.0, 0.5, 7.0]), torch.tensor([0.0, -3.0, 1.0, 9.0])
    torch.testing.assert_close(
        normalised_target(scale * y + offset, "patch"), normalised_target(y, "patch"), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(normalised_target(torch.full((2, 5, 3), 7.0), "patch"), torch.zeros(2, 5, 3))


def test_of_an_outer_product_one_norm_leaves_channels_alike_and_the_other_patches() -> None:
    """Property 6: Y = u v^T; what varies along the normalised axis alone is left, up to sign."""
    u, v = 10 * _features(20, seed=1), 10 * _features(8, seed=2)
    y = torch.outer(u, v)[None]
    by_patch, by_channel = normalised_target(y, "patch")[0], normalised_target(y, "channel")[0]
    torch.testing.assert_close(by_patch.abs(), by_patch[:, :1].abs().expand(20, 8), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_channel.abs(), by_channel[:1].abs().expand(20, 8), atol=1e-4, rtol=1e-4)
    assert float((by_patch[0] - by_patch[1]).abs().max()) > 0.1
    assert torch.equal(normalised_target(y, "none"), y)


def test_the_error_ignores_visible_patches_and_a_perfect_prediction_has_none() -> None:
    """Property 7."""
    target, hidden = _features(2, 12, 3), torch.zeros(2, 12, dtype=torch.bool)
    hidden[:, ::2] = True
    predicted = _features(2, 12, 3, seed=1)
    found = hidden_patch_error(predicted, target, hidden, normalise=False)
    changed = torch.where(hidden[..., None], predicted, predicted + 100)
    assert torch.equal(hidden_patch_error(changed, target, hidden, normalise=False), found)
    assert float(hidden_patch_error(target, target, hidden, normalise=False)) == 0
    loops = [float((predicted[b, p] - target[b, p]).square().mean()) for b in range(2) for p in range(0, 12, 2)]
    assert float(found) == pytest.approx(sum(loops) / len(loops))


def test_predicting_zero_costs_one_patch_less_than_one() -> None:
    """Property 7: (L - 1) / L exactly where every patch is hidden, for the variance is the unbiased one."""
    target = normalised_target(1e3 * _features(3, 16, 5), "patch")
    hidden = torch.ones(3, 16, dtype=torch.bool)
    found = hidden_patch_error(torch.zeros_like(target), target, hidden, normalise=False)
    assert float(found) == pytest.approx(15 / 16, rel=1e-9)


def test_mae_normalises_each_patch_over_its_own_numbers() -> None:
    target, predicted = _features(2, 5, 7), _features(2, 5, 7, seed=1)
    hidden = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(
        hidden_patch_error(predicted, target, hidden, normalise=True),
        hidden_patch_error(predicted, normalised_target(target, "channel"), hidden, normalise=False),
    )
