# SPDX-License-Identifier: Apache-2.0
"""Tiny networks, their adapters and what stands for training, for all tests of adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions

PLAIN = "vit:width=32,depth=2,heads=2,patch=8,img=32,layer_scale=true"
ROTARY = "dinov3:width=32,depth=2,heads=2,patch=8"
GATED = "vit:width=32,depth=2,heads=2,patch=8,img=32,swiglu=true,hidden=40"
ROTARY_GATED = "dinov3:width=32,depth=2,heads=2,patch=8,swiglu=true,hidden=40,qkv_bias=true"


def build(name: str = PLAIN) -> Backbone:
    backbone, _ = create_backbone(name, NetworkOptions(), init="random", drop_path=0.0)
    torch.manual_seed(0)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def adapter_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name, whether they train or not."""
    return {name: p for name, p in backbone.named_parameters() if ".adapter." in name}


def adapted(kind: str, name: str = PLAIN, *, trained: bool = True, **values: Any) -> Backbone:
    backbone = build(name)
    attach(backbone, AdapterOptions(kind=kind, **({"rank": 4} | values)), train="adapters")
    if trained:
        move(backbone)
    return backbone


def move(backbone: Backbone, std: float = 0.3) -> None:
    """Move every number that trains, as training would."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(backbone).values():
            parameter.add_(std * torch.randn(parameter.shape, generator=draw))


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
