# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rekindle.adapters.adaptformer import AdaptFormerBlock
from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.uniadapter import AdaptedBlock
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import BlockPass
from rekindle.networks.stochastic_depth import BranchPath
from tests.adapters.networks import adapted, build, images


@pytest.mark.parametrize("layernorm", [None, False, True])
def test_the_block_is_the_papers_equations(layernorm: bool | None) -> None:
    options = AdapterOptions(kind="adaptformer", rank=4, layernorm=layernorm, position="attn_branch")  # not read
    block = build("vit:width=32,depth=1,heads=2,patch=8,img=32").vit.blocks[0]
    wrapped = AdaptFormerBlock.wrap(block, 32, options)
    a: Any = wrapped.adapter
    x = torch.randn(2, 5, 32)
    for parameter in a.parameters():
        nn.init.normal_(parameter)
    paths = torch.tensor([0.0, 2.0])[:, None, None], torch.tensor([3.0, 0.0])[:, None, None]
    y = x + paths[0] * block.attn(block.norm1(x))
    read = nn.functional.layer_norm(y, (32,), a.norm.weight, a.norm.bias, 1e-6) if layernorm else y
    branch = torch.relu(read @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias  # eq. 2
    expected = paths[1] * block.mlp(block.norm2(y)) + 0.1 * branch + y  # eq. 3
    torch.testing.assert_close(
        wrapped(x, BlockPass(paths=(BranchPath(paths[0]), BranchPath(paths[1])))), expected, atol=1e-4, rtol=1e-4
    )


def test_it_is_uniadapter_beside_the_mlp_without_layernorm() -> None:
    block = build().vit.blocks[0]
    ours = AdaptFormerBlock.wrap(block, 32, AdapterOptions(kind="adaptformer", rank=4))
    other = AdaptedBlock.wrap(block, 32, AdapterOptions(rank=4, position="parallel_mlp", layernorm=False))
    for parameter in ours.adapter.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 32)
    assert torch.equal(ours(x), other(x))


def test_count_of_the_paper() -> None:
    wrapped = adapted("adaptformer", "vit:width=768,depth=1,heads=12,patch=16,img=32", rank=64)
    per_block = sum(p.numel() for p in wrapped.vit.blocks[0].adapter.parameters())
    assert (
        12 * per_block == 1_189_632
    )  # AdaptFormer-64 on ViT-B/16, table 1: 1.26 M with the 100 classes' head of 0.08 M


def test_going_on_needs_the_same_adapter() -> None:
    backbone = adapted("adaptformer")
    attach(backbone, AdapterOptions(kind="adaptformer", rank=4, position="after_block"), train="adapters")
    for wrong in ({"rank": 5}, {"layernorm": True}, {"learn_scale": True}, {"scale": 0.5}):
        name = next(iter(wrong))
        asked = AdapterOptions(kind="adaptformer", **({"rank": 4} | wrong))
        with pytest.raises(RequestError, match=f"adapters with {name} = .*, not {wrong[name]}; go on with the same"):
            attach(backbone, asked, train="adapters")
    with pytest.raises(RequestError, match="another kind than uniadapter"):
        attach(backbone, AdapterOptions(rank=4, position="parallel_mlp", layernorm=False), train="adapters")
    assert backbone(images()).sequence.isfinite().all()
