# SPDX-License-Identifier: Apache-2.0
"""The numbers that train in the paper's set-up (GLARE, section 3.3 of the specification)."""

from __future__ import annotations

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.methods.dino import Dino, DinoOptions
from rekindle.methods.glare import Glare
from rekindle.methods.glare_options import GlareOptions
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions

VIT_S = "vit:width=384,depth=12,heads=6,patch=16,img=224,registers=1"  # UDI's backbone


def _trained(method: type[Dino] | type[Glare], options: DinoOptions | GlareOptions, **attached: object) -> int:
    backbone, _ = create_backbone(VIT_S, NetworkOptions(), init="random")
    attach(backbone, AdapterOptions(), **attached)  # type: ignore[arg-type]
    built = method(options, backbone)  # type: ignore[arg-type]
    return sum(p.numel() for p in built.parameters() if p.requires_grad)


def test_adapters_and_one_head_are_12_million() -> None:
    cosine_head = DinoOptions(norm_last_layer=True)
    assert _trained(Dino, cosine_head, train="adapters") == 12_335_872
    assert _trained(Dino, DinoOptions(), train="adapters") == 12_335_872 + 8192  # the gain of each prototype
    with_attention = GlareOptions(norm_last_layer=True)
    assert _trained(Glare, with_attention, train="adapters") == 12_335_872 + 442_368


def test_the_whole_network_with_its_adapters_is_34_million() -> None:
    """What the paper counts for HPT; without adapters it would be 29.27 M."""
    cosine_head = DinoOptions(norm_last_layer=True)
    assert _trained(Dino, cosine_head, train="all", with_adapters=True) == 34_002_304
    assert _trained(Dino, cosine_head, train="all") == 29_272_960


def test_layer_norms_alone_are_19_thousand_and_a_head() -> None:
    """HPT-BN's analogue, section 8.5: 25 norms of two vectors."""
    assert _trained(Dino, DinoOptions(norm_last_layer=True), train="norm") == 7_606_528 + 19_200
