# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from tests.adapters.networks import PLAIN, ROTARY, ROTARY_GATED, adapted, adapter_parameters, build, images


def _moved_by_hand(kind: str, name: str) -> tuple[Backbone, Backbone]:
    """An adapted network, and a plain one whose own vectors were moved alike."""
    backbone, plain = adapted(kind, name), build(name)
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for n, delta in adapter_parameters(backbone).items():
            own[n.replace(".adapter.", ".")].add_(delta)
    return backbone, plain


@pytest.mark.parametrize("kind", ["norm", "bias"])
@pytest.mark.parametrize("name", [PLAIN, ROTARY, ROTARY_GATED])
def test_the_network_is_the_base_with_moved_vectors(kind: str, name: str) -> None:
    backbone, plain = _moved_by_hand(kind, name)
    found, expected = backbone(images(), cls_attention=True), plain(images(), cls_attention=True)
    assert torch.equal(found.sequence, expected.sequence)
    assert torch.equal(found.cls_attention, expected.cls_attention)


@pytest.mark.parametrize("name", [PLAIN, ROTARY, ROTARY_GATED])
def test_norm_moves_the_layer_norms_of_the_blocks(name: str) -> None:
    found = {n.split(".adapter.")[1] for n in adapter_parameters(adapted("norm", name))}
    assert found == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        (PLAIN, {"attn.qkv.bias"}, {"mlp.fc1.bias"}),
        (ROTARY, set(), {"mlp.fc1.bias"}),
        (ROTARY_GATED, {"attn.q_bias", "attn.v_bias"}, {"mlp.fc1_g.bias", "mlp.fc1_x.bias"}),
    ],
)
def test_bias_moves_every_bias_that_is_there(name: str, attention: set[str], mlp: set[str]) -> None:
    found = {n.split(".adapter.")[1] for n in adapter_parameters(adapted("bias", name))}
    assert found == {"norm1.bias", "norm2.bias", "attn.proj.bias", "mlp.fc2.bias"} | attention | mlp


@pytest.mark.parametrize("kind", ["norm", "bias"])
def test_steps_are_those_of_training_the_vectors_themselves(kind: str) -> None:
    backbone, plain = adapted(kind, trained=False), build()
    names = list(adapter_parameters(backbone))
    own = dict(plain.named_parameters())
    ours, theirs = adapter_parameters(backbone).values(), [own[n.replace(".adapter.", ".")] for n in names]
    weights = torch.randn(32)
    for network, trained in ((backbone, list(ours)), (plain, theirs)):
        optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
        for _ in range(4):
            optimizer.zero_grad()
            (network(images()).sequence * weights).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(backbone(images()).sequence, plain(images()).sequence, atol=1e-4, rtol=1e-4)


def test_a_network_without_such_vectors_is_refused() -> None:
    backbone = build()
    for block in backbone.vit.blocks:
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    with pytest.raises(
        RequestError, match=r"adapter\.kind = norm: the blocks of this network have nothing of the kind"
    ):
        attach(backbone, AdapterOptions(kind="norm"), train="adapters")
