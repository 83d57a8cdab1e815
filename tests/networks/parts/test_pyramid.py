# SPDX-License-Identifier: Apache-2.0
"""Pyramids and decoders behind them: the published sizes, and strides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rekindle.networks.parts.pyramid import Pyramid, PyramidKind, SemanticFpn, UperNet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_sizes() -> None:
    """GLARE, specification 9.1: pyramid 1,771,392; neck 2,754,560; head 1,623,808; classifier 19,350."""
    decoder = SemanticFpn(384, 150)
    assert count(decoder.pyramid) == 1_771_392
    assert count(decoder.neck) == 2_754_560
    assert count(decoder.head) == 1_623_808
    assert count(decoder.classifier) == 19_350
    assert count(SemanticFpn(384, 150, kind="literal").pyramid) == 0


def test_levels_have_strides_4_8_16_and_32() -> None:
    maps = [torch.randn(2, 8, 6, 4) for _ in range(4)]
    sizes = [tuple(x.shape[-2:]) for x in Pyramid(8, "rescaled")(maps)]
    assert sizes == [(24, 16), (12, 8), (6, 4), (3, 2)]
    literal = Pyramid(8, "literal")(maps)
    assert all(torch.equal(a, b) for a, b in zip(literal, maps, strict=True))


@pytest.mark.parametrize(("kind", "size"), [("rescaled", (20, 12)), ("literal", (5, 3))])
def test_logits_have_the_size_of_the_finest_level(kind: PyramidKind, size: tuple[int, int]) -> None:
    decoder = SemanticFpn(8, 3, kind=kind, channels=8, head_channels=4)
    maps = [torch.randn(2, 8, 5, 3, requires_grad=True) for _ in range(4)]
    logits = decoder(maps)
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in decoder.classifier.parameters())
    assert all(m.grad is not None and bool(m.grad.abs().sum() > 0) for m in maps)


def test_upernet_reads_every_level() -> None:
    decoder = UperNet(8, 3, channels=8).eval()
    maps = [torch.randn(1, 8, 6, 6, requires_grad=True) for _ in range(4)]
    logits = decoder(maps)
    assert logits.shape == (1, 3, 24, 24)
    logits.square().sum().backward()
    assert all(m.grad is not None and bool(m.grad.abs().sum() > 0) for m in maps)
