# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import run_block
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.parts.base_model import BaseModel

ARCHES = [
    "vit:width=32,depth=3,heads=2,patch=8,img=32",
    "vit:width=32,depth=2,heads=2,patch=8,img=32,registers=3,layer_scale=true,qkv_bias=false",
    "dinov3:width=32,depth=3,heads=2,patch=8,img=32",
]


def _backbone(arch: str) -> Backbone:
    backbone = create_backbone(arch, NetworkOptions(drop_path=0.0), init="random")[0]
    for name, parameter in backbone.named_parameters():
        if "attn" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def _pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHES)
def test_the_class_row_is_the_networks_own_attention_before_its_softmax(arch: str) -> None:
    backbone = _backbone(arch)
    model, pixels = BaseModel(backbone, last_layers=1), _pixels()
    row = model(pixels).attention.class_logits.softmax(dim=-1)[..., backbone.num_prefix :]
    wanted = backbone(pixels, cls_attention=True).cls_attention
    torch.testing.assert_close(row, wanted.flatten(2), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHES)
def test_rows_are_those_with_which_the_last_block_reads(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole softmax of the block, as its own attention computes it, holds the rows that were asked for."""
    backbone = _backbone(arch)
    model, pixels = BaseModel(backbone, last_layers=1), _pixels()
    backbone.attend_plainly()
    attention = model(pixels).attention
    index = torch.tensor([[3, 17, 0], [19, 2, 3]])
    rows = attention.rows(index)
    seen: list[torch.Tensor] = []
    attn = backbone.vit.blocks[-1].attn
    attn.attn_drop.register_forward_hook(lambda module, arguments, output: seen.append(output))
    backbone(pixels)
    whole, first = seen[-1], backbone.num_prefix
    for image in range(2):
        for place, token in enumerate([0, *(index[image] + first).tolist()]):
            wanted = whole[image, :, token, first:]
            wanted = wanted / wanted.sum(dim=-1, keepdim=True)  # prefix columns are left out before the softmax
            torch.testing.assert_close(rows[image, place].softmax(dim=-1), wanted, atol=1e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("last_layers", [1, 2, 3])
def test_features_are_the_mean_of_raw_block_outputs(last_layers: int) -> None:
    backbone = _backbone(ARCHES[0])
    pixels = _pixels()
    x, _, _ = backbone.embed(pixels)
    outputs = []
    for block in backbone.vit.blocks:
        x = run_block(block, x)
        outputs.append(x[:, 1:])
    found = BaseModel(backbone, last_layers=last_layers)(pixels).features
    torch.testing.assert_close(found, sum(outputs[-last_layers:]) / last_layers)


def test_it_stays_frozen_and_in_evaluation_mode() -> None:
    model = BaseModel(_backbone(ARCHES[0]), last_layers=2).train()
    assert not model.backbone.training and not any(p.requires_grad for p in model.parameters())
    view = model(_pixels())
    assert not view.features.requires_grad and not view.attention.class_logits.requires_grad


def test_more_layers_than_there_are_blocks_are_refused() -> None:
    with pytest.raises(RequestError, match="last-layers 4: the base model has 3 blocks"):
        BaseModel(_backbone(ARCHES[0]), last_layers=4)
