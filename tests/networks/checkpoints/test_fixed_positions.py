# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.fixed_positions import sines_and_cosines
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from rekindle.pretraining.options import resolve

ARCH = "vit:width=8,depth=1,heads=2,patch=8,img=24"


def _drawn(arch: str = ARCH, **options: object) -> Backbone:
    return create_backbone(arch, NetworkOptions.model_validate(options), init="random")[0]


def test_the_table_is_that_of_mae() -> None:
    """facebookresearch/mae at efb2a80, util/pos_embed.py: get_2d_sincos_pos_embed(8, 3), rows 1 and 3."""
    table = sines_and_cosines((3, 3), 8)
    expected = {
        1: [0.8414710, 0.0099998, 0.5403023, 0.99995, 0, 0, 1, 1],
        3: [0, 0, 1, 1, 0.8414710, 0.0099998, 0.5403023, 0.99995],
    }
    for row, values in expected.items():
        torch.testing.assert_close(table[row], torch.tensor(values), atol=1e-5, rtol=0)


def test_a_drawn_network_has_fixed_positions_that_nothing_trains() -> None:
    backbone = _drawn(f"{ARCH},registers=1", positions="sincos")
    attach(backbone, AdapterOptions(), train="all")
    table = backbone.vit.pos_embed
    assert not table.requires_grad and backbone.vit.cls_token.requires_grad
    assert not table[0, :2].any() and torch.equal(table[0, 2:], sines_and_cosines((3, 3), 8))
    assert backbone.identity.arch["fixed_positions"] is True
    assert _drawn(f"{ARCH}").vit.pos_embed.requires_grad


def test_a_file_of_fixed_positions_drawn_anew_has_them_again(tmp_path: Path) -> None:
    """Its network says that positions never train, so random ones would stay random."""
    backbone = _drawn(positions="sincos")
    path = tmp_path / "model.safetensors"
    write_checkpoint(backbone, path)
    again = create_backbone(str(path), NetworkOptions(), init="random", seed=1)[0]
    assert torch.equal(again.vit.pos_embed, backbone.vit.pos_embed)
    assert not torch.equal(again.vit.patch_embed.proj.weight, backbone.vit.patch_embed.proj.weight)


@pytest.mark.parametrize("method", ["mae", "mocov3", "flsl"])
def test_the_papers_that_have_fixed_positions_have_them_from_scratch_alone(method: str) -> None:
    scratch = resolve({}, {"method": method, "init": "random", "train": "all"})
    assert scratch.options.network.positions == "sincos" and scratch.sources["network.positions"] == "paper"
    assert resolve({}, {"method": method}).options.network.positions == "learnt"
    assert resolve({}, {"method": "dino", "init": "random"}).options.network.positions == "learnt"


def test_a_checkpoint_and_a_width_that_does_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match=r"sincos is for --init random; a checkpoint brings its own"):
        create_backbone("model.safetensors", NetworkOptions(positions="sincos"))
    with pytest.raises(RequestError, match=r"--network\.positions sincos: .* multiple of 4, not 6"):
        _drawn("vit:width=6,depth=1,heads=2,patch=8,img=24", positions="sincos")
