# SPDX-License-Identifier: Apache-2.0
"""The DPT decoder, its fusion against transformers' own."""

from __future__ import annotations

import pytest
import torch

from rekindle.core.rng import seeded_default
from rekindle.networks.parts.dpt import DptDecoder, Fusion, quarters


def test_blocks_are_the_ends_of_the_quarters() -> None:
    assert quarters(12) == (2, 5, 8, 11)
    assert quarters(24) == (5, 11, 17, 23)
    assert quarters(32) == (7, 15, 23, 31)
    assert quarters(2) == (0, 0, 1, 1)


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 2)])
def test_any_grid_gives_eight_times_its_size(grid: tuple[int, int]) -> None:
    decoder = DptDecoder(8, projections=(4, 6, 8, 10), channels=8)
    assert decoder([torch.randn(2, 8, *grid) for _ in range(4)]).shape == (2, 1, 16 * grid[0], 16 * grid[1])


def test_every_level_and_every_weight_takes_part() -> None:
    with seeded_default(0, "dpt"):  # ReLUs that start dead would let nothing through
        decoder = DptDecoder(8, projections=(4, 6, 8, 10), channels=16)
        maps = [torch.randn(1, 8, 4, 4, requires_grad=True) for _ in range(4)]
    decoder(maps).sum().backward()
    assert all(m.grad is not None and float(m.grad.abs().sum()) > 0 for m in maps)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in decoder.parameters())


def test_fusion_is_that_of_transformers() -> None:
    from transformers import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTFeatureFusionLayer

    config = DPTConfig(fusion_hidden_size=8, use_batch_norm_in_fusion_residual=False)
    theirs, ours = DPTFeatureFusionLayer(config, align_corners=False), Fusion(8, has_coarser=True)
    assert ours.lateral is not None
    for own, other in ((ours.lateral, theirs.residual_layer1), (ours.refine, theirs.residual_layer2)):
        own.first.load_state_dict(other.convolution1.state_dict())
        own.second.load_state_dict(other.convolution2.state_dict())
    ours.mix.load_state_dict(theirs.projection.state_dict())
    coarser, lateral = torch.randn(2, 2, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(lateral, coarser, (12, 12)), theirs(coarser.clone(), lateral.clone()))
