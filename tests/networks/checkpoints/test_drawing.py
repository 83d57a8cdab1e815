# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rekindle.core.errors import RequestError
from rekindle.core.rng import seeded_default
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import backbone_from_description, create_backbone
from rekindle.networks.checkpoints.drawing import drawn_like, is_of_mae
from rekindle.networks.options import NetworkOptions

ARCH = "vit:width=32,depth=2,heads=2,patch=8,img=32"


def _base(arch: str = ARCH) -> Backbone:
    return create_backbone(arch, NetworkOptions(drop_path=0.0), init="random")[0]


def _drawn(base: Backbone, arch: str = "", seed: int = 0) -> Backbone:
    with seeded_default(seed, "drawing"):
        return drawn_like(base, arch)


@pytest.mark.parametrize(
    "arch", [ARCH, f"{ARCH},registers=2,layer_scale=true", "dinov3:width=32,depth=2,heads=2,patch=8"]
)
def test_the_new_network_has_the_bases_shape_and_none_of_its_weights(arch: str) -> None:
    base = _base(arch)
    new = _drawn(base)
    theirs, ours = base.state_dict(), new.state_dict()
    assert {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in ours.items()}
    assert all(not torch.equal(t, theirs[n]) for n, t in ours.items() if t.ndim > 1)
    assert torch.equal(_drawn(base).vit.cls_token, new.vit.cls_token)
    assert not torch.equal(_drawn(base, seed=1).vit.cls_token, new.vit.cls_token)
    assert all(p.requires_grad for n, p in new.named_parameters() if n != "vit.pos_embed")
    again = backbone_from_description(new.identity.to_dict())  # what a run folder does
    again.load_state_dict(ours, strict=True)
    pixels = torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(again.eval().forward_features(pixels), new.eval().forward_features(pixels))


def test_positions_are_fixed_sines_and_cosines_with_nothing_for_the_class_token() -> None:
    """Half of the width tells the column, half the row; frequencies 10000^(-i / (C / 4))."""
    new = _drawn(_base())
    table = new.vit.pos_embed[0]
    assert new.fixed_positions and not table.requires_grad and not table[0].any()
    for patch in range(16):
        wanted = []
        for place in (patch % 4, patch // 4):
            angles = [place * 10000 ** (-i / 8) for i in range(8)]
            wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(table[1 + patch], torch.tensor(wanted), atol=1e-5, rtol=0)


def test_linear_maps_are_xavier_uniform_without_biases() -> None:
    vit = _drawn(_base()).vit
    for weight in (vit.blocks[0].mlp.fc1.weight, vit.blocks[1].attn.qkv.weight, vit.patch_embed.proj.weight.flatten(1)):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.97 * bound < float(weight.detach().abs().max()) <= bound
    assert not vit.blocks[0].attn.qkv.bias.any()


def test_another_architecture_takes_patch_and_image_size_of_the_base() -> None:
    new = _drawn(_base(), "vit:width=64,depth=3,heads=4")
    assert (new.width, new.depth, new.num_heads, new.patch_size) == (64, 3, 4, 8)
    assert new.vit.patch_embed.grid_size == (4, 4)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("vit:width=64,depth=3,heads=4,patch=16,img=32", "patches of 16 px and the base model of 8 px.* use patch=8"),
        ("vit_small_patch16_224", "write an architecture, such as vit:"),
        ("vit:width=30,depth=1,heads=2", "a width that is a multiple of 4, not 30"),
    ],
)
def test_what_cannot_stand_beside_the_base_is_refused(arch: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _drawn(_base(), arch)


def _with_positions(*, rows_first: bool = False, class_row: float = 0.0, grid: int = 4, width: int = 32) -> Backbone:
    """A network from a file of any name, with sines and cosines typed again."""
    base = _base(f"vit:width={width},depth=1,heads=2,patch=8,img={8 * grid}")
    table = torch.full((1 + grid**2, width), class_row)
    for patch in range(grid**2):
        row, column = divmod(patch, grid)
        values: list[float] = []
        for place in (row, column) if rows_first else (column, row):
            angles = [place * 10000 ** (-i / (width // 4)) for i in range(width // 4)]
            values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        table[1 + patch] = torch.tensor(values)
    base.vit.pos_embed.data.copy_(table[None])
    base.identity = replace(base.identity, name="my.pth", source="file")
    return base


def test_mae_is_known_by_its_positions_in_a_file_of_any_name() -> None:
    assert is_of_mae(_with_positions())
    assert not is_of_mae(_with_positions(rows_first=True))  # MoCo v3
    assert not is_of_mae(_with_positions(class_row=0.02))  # FLSL with a fresh class token
    assert not is_of_mae(_base())
    named = _base()
    named.identity = replace(named.identity, name="vit_base_patch16_224.mae")
    assert is_of_mae(named)


def test_what_was_drawn_beside_mae_says_so_and_what_was_drawn_beside_another_does_not() -> None:
    """Both have MAE's positions."""
    of_mae, of_another = _drawn(_with_positions()), _drawn(_base())
    again = [backbone_from_description(new.identity.to_dict()) for new in (of_mae, of_another)]
    for network, new in zip(again, (of_mae, of_another), strict=True):
        network.load_state_dict(new.state_dict())
    assert [is_of_mae(network) for network in again] == [True, False]
    assert is_of_mae(_drawn(again[0]))  # a second round


def test_an_older_drawn_network_is_known_by_its_name_alone() -> None:
    new = _drawn(_base())
    older = {key: value for key, value in new.identity.arch.items() if key != "is_of_mae"}
    new.identity = replace(new.identity, arch=older)
    assert not is_of_mae(new)
