# SPDX-License-Identifier: Apache-2.0
"""A last block computed for the class token alone gives the class token of the whole block."""

from __future__ import annotations

import pytest
import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions

ARCHITECTURES = [
    "vit:width=32,depth=2,heads=2,patch=8,img=32",
    "vit:width=32,depth=2,heads=2,patch=8,img=32,registers=3,layer_scale=true",
    "vit:width=32,depth=1,heads=2,patch=8,img=32,qkv_bias=false",
    "dinov3:width=32,depth=2,heads=2,patch=8,img=32",
    "dinov3:width=32,depth=2,heads=2,patch=8,img=32,swiglu=true",
]


def _backbone(arch: str, drop_path: float = 0.0) -> Backbone:
    backbone, _ = create_backbone(arch, NetworkOptions(drop_path=drop_path), init="random", drop_path=drop_path)
    return backbone.double()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_class_token_alone_equals_the_class_token_of_all_in_value_and_gradient(arch: str) -> None:
    backbone = _backbone(arch)
    pixels = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    found, expected = backbone.class_token(pixels), backbone(pixels).class_token
    torch.testing.assert_close(found, expected)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), parameters, materialize_grads=True)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(ours, theirs)
    assert max(float(g.abs().max()) for g in theirs) > 0


@pytest.mark.parametrize("position", ["after_attn", "after_block", "parallel_mlp", "attn_branch"])
@pytest.mark.parametrize("arch", ARCHITECTURES[::3])
def test_it_holds_with_adapters_in_every_place(arch: str, position: str) -> None:
    backbone = _backbone(arch)
    attach(backbone, AdapterOptions(rank=8, position=position, scale=1.0), train="adapters")
    for name, parameter in backbone.named_parameters():
        if "adapter" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = _backbone(arch)(pixels).class_token
    torch.testing.assert_close(backbone.class_token(pixels), backbone(pixels).class_token)
    assert not torch.allclose(backbone.class_token(pixels), plain)


def test_stochastic_depth_drops_the_same_images() -> None:
    backbone = _backbone(ARCHITECTURES[0], drop_path=0.5).train()
    pixels = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    torch.manual_seed(1)
    found = backbone.class_token(pixels)
    torch.manual_seed(1)
    torch.testing.assert_close(found, backbone(pixels).class_token)


def test_a_network_without_a_class_token_is_refused() -> None:
    with pytest.raises(RequestError, match="no class token"):
        _backbone("vit:width=32,depth=1,heads=2,patch=8,img=32,class_token=false").class_token(
            torch.randn(1, 3, 32, 32, dtype=torch.float64)
        )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prefix_tokens_alone_equal_those_of_all(arch: str) -> None:
    backbone = _backbone(arch)
    pixels = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    tokens = backbone(pixels)
    expected = torch.cat([tokens.class_token[:, None], tokens.registers], dim=1)
    torch.testing.assert_close(backbone.prefix_tokens(pixels), expected)
