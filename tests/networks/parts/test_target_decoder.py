# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.core.rng import seeded_default
from rekindle.networks.parts.masked_decoder import with_mask_tokens
from rekindle.networks.parts.target_decoder import AttentionHead, AttentionScale, TargetDecoder

GRID = (4, 4)


def _decoder(scale: AttentionScale = "full") -> TargetDecoder:
    with seeded_default(0, "decoder"):
        return TargetDecoder(12, width=16, depth=2, heads=2, feature_width=24, attention_heads=3, scale=scale).double()


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    keep = torch.stack([torch.randperm(16, generator=draw)[:4].sort().values for _ in range(2)])
    index = torch.stack([torch.randperm(16, generator=draw)[:3] for _ in range(2)])
    return torch.randn(2, 5, 12, generator=draw, dtype=torch.float64), keep, index


def test_numbers_of_parameters_at_vit_base() -> None:
    """Property 2: trunk, and stem with head of each target."""
    with torch.device("meta"):
        decoder = TargetDecoder(768, width=512, depth=2, heads=16, feature_width=768, attention_heads=12)

    def count(*modules: nn.Module | None) -> int:
        return sum(p.numel() for m in modules if m is not None for p in m.parameters())

    assert count(decoder.blocks) == 6_304_768
    assert count(decoder.feature_stem, decoder.feature_head) == 789_248
    assert count(decoder.attention_stem, decoder.attention_head) == 1_183_232


def test_kept_tokens_come_back_to_their_places() -> None:
    """Property 4: every token carries the index of its patch; the others are mask tokens."""
    _, keep, _ = _inputs()
    tokens = torch.cat([torch.full((2, 1), 100), keep], dim=1)[..., None].double().expand(-1, -1, 4)
    mask_token = torch.full((4,), -1.0, dtype=torch.float64)
    placed = with_mask_tokens(tokens, mask_token, keep, GRID, num_prefix=1)
    positions = with_mask_tokens(torch.zeros(2, 5, 4).double(), 0 * mask_token, keep, GRID, num_prefix=1)
    found = (placed - positions)[..., 0].round().long()
    for image in range(2):
        assert found[image, 0] == 100
        for patch in range(16):
            assert found[image, 1 + patch] == (patch if patch in keep[image] else -1)


def test_both_targets_go_through_the_trunk_as_if_alone() -> None:
    """One batch for both stems gives what two passes give."""
    decoder, (visible, keep, index) = _decoder(), _inputs()
    features, attention = decoder(visible, keep, GRID, index)
    torch.testing.assert_close(decoder(visible, keep, GRID, None)[0], features)
    assert decoder.attention_stem is not None and decoder.attention_head is not None
    alone = decoder.attention_stem(visible, keep, GRID)
    for block in decoder.blocks:
        alone = block(alone)
    torch.testing.assert_close(decoder.attention_head(alone, index), attention)


def test_the_trunk_is_shared_and_the_stems_are_not() -> None:
    """Property 12: the trunk's gradient is the sum of those of the two losses; of a stem it is that of its own."""
    decoder, (visible, keep, index) = _decoder(), _inputs()
    names, parameters = zip(*decoder.named_parameters(), strict=True)

    def gradients(weights: tuple[float, float]) -> dict[str, torch.Tensor]:
        features, attention = decoder(visible, keep, GRID, index)
        total = weights[0] * features.square().sum() + weights[1] * attention.square().sum()
        return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))

    both, feature, attention = gradients((1, 1)), gradients((1, 0)), gradients((0, 1))
    for name in names:
        torch.testing.assert_close(both[name], feature[name] + attention[name])
        is_trunk = name.startswith("blocks.")
        for found, own in ((feature, "feature_"), (attention, "attention_")):
            assert bool(found[name].abs().max() > 0) == (is_trunk or name.startswith(own)) or name.endswith("key.bias")


@torch.no_grad()
def test_rows_are_those_of_the_class_token_and_of_the_patches_asked_for() -> None:
    """Property 11: queries that carry their index come out in the order of `index`, the class token's first."""
    head = AttentionHead(4, 4, 1, "full")
    head.norm = nn.Identity()  # type: ignore[assignment]
    for linear in (head.query, head.key):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    decoded = torch.zeros(2, 17, 4)
    decoded[:, :, 0] = torch.arange(17)  # class token 0, patch p carries p + 1
    decoded[:, :, 1] = 0.0
    _, _, index = _inputs()
    rows = head(decoded, index)
    carried = rows[:, :, 0, 0] / (1.0 * 4**-0.5)  # against the key of patch 0, which carries 1
    assert torch.equal(carried.round().long(), torch.cat([torch.zeros(2, 1, dtype=torch.long), index + 1], dim=1))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "factor"), [("full", 24**-0.5), ("head", 8**-0.5)])
def test_predicted_logits_are_scaled_products_of_queries_and_keys(scale: AttentionScale, factor: float) -> None:
    head = _decoder(scale).attention_head
    assert head is not None
    _, _, index = _inputs()
    decoded = torch.randn(2, 17, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, y = head(decoded, index), head.norm(decoded)
    for image in range(2):
        for row, token in enumerate([0, *(index[image] + 1).tolist()]):
            for h in range(3):
                q = head.query(y[image, token])[8 * h : 8 * h + 8]
                for patch in range(16):
                    k = head.key(y[image, 1 + patch])[8 * h : 8 * h + 8]
                    assert float(found[image, row, h, patch]) == pytest.approx(float(q @ k) * factor, abs=1e-10)


def test_a_decoder_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(RequestError, match="decoder_width = 18 cannot have decoder_heads = 4"):
        TargetDecoder(8, width=18, depth=1, heads=4, feature_width=8, attention_heads=2)
