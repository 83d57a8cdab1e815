# SPDX-License-Identifier: Apache-2.0
"""What no tensor tells: constants of a named configuration, the grid of positions, their rule; and weights that are none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rekindle.adapters.saved import load_backbone
from rekindle.core.errors import RequestError
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.facts import Facts, pixels_for
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from tests.networks.reference import random_state

IMAGENET = pytest.approx((0.485, 0.456, 0.406))


def _file(path: Path, content: dict[str, Any]) -> str:
    torch.save(content, path)
    return str(path)


def _advised(message: str) -> NetworkOptions:
    """The grid that a message advises, as an option."""
    found = re.search(r"--network\.grid (\d+x\d+)", message)
    assert found is not None, message
    return NetworkOptions(grid=found[1])


def test_a_named_configuration_brings_its_constants_and_an_architecture_with_several_none(tmp_path: Path) -> None:
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    path = _file(tmp_path / "augreg.pth", vit.state_dict())
    named, message = load_backbone(path, NetworkOptions(arch="vit_tiny_patch16_224.augreg_in21k"))
    assert named.mean == (0.5, 0.5, 0.5) and "(timm's vit_tiny_patch16_224.augreg_in21k)" in message
    assert load_backbone(path)[0].mean == IMAGENET
    agreed = pixels_for(NetworkOptions(), Facts(), "vit_tiny_patch16_224")  # all its configurations say the same
    assert agreed.mean == (0.5, 0.5, 0.5)
    several = pixels_for(NetworkOptions(), Facts(), "vit_small_patch16_224")
    assert several.mean == IMAGENET
    named_by_it = re.search(r"name one, as in (\S+)", several.source)
    assert named_by_it is not None
    assert not pixels_for(NetworkOptions(), Facts(), named_by_it[1]).source.startswith("assumed")


def test_constants_are_given_in_pairs_and_in_levels_to_one() -> None:
    with pytest.raises(ValueError, match="given together; give both"):
        NetworkOptions(pixel_mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="divide those of levels 0 to 255 by 255"):
        NetworkOptions(pixel_mean=(123.7, 116.3, 103.5), pixel_std=(58.4, 57.1, 57.4))
    with pytest.raises(ValueError, match="write 4x9"):
        NetworkOptions(grid="36")


def test_own_files_keep_their_constants_unless_others_are_stated(tmp_path: Path) -> None:
    asked = NetworkOptions(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))
    source, _ = create_backbone("vit:width=32,depth=1,heads=2,patch=8,img=32", asked, init="random")
    write_checkpoint(source, tmp_path / "own.safetensors")
    kept, message = load_backbone(tmp_path / "own.safetensors")
    assert kept.mean == (0.1, 0.2, 0.3) and "as asked for" in message
    other = NetworkOptions(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.5, 0.5))
    stated, _ = load_backbone(tmp_path / "own.safetensors", other)
    assert stated.mean == (0.5, 0.5, 0.5) and stated.identity.arch["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(RequestError, match="says its own grid; leave the option out"):
        load_backbone(tmp_path / "own.safetensors", NetworkOptions(grid="4x4"))


def _wide(height: int, width: int) -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=(height, width)).eval()


def test_a_grid_that_may_be_square_is_told_as_assumed_and_can_be_stated(tmp_path: Path) -> None:
    """Oracle: timm's own model with 4 x 9 patches, whose 36 rows are a square of 6 as well."""
    vit, pixels = _wide(64, 144), torch.randn(1, 3, 64, 144)
    path = _file(tmp_path / "wide.pth", {"model": vit.state_dict()})
    assumed, message = load_backbone(path)
    assert "positions: 6 x 6 (assumed square; --network.grid states another)" in message
    stated, message = load_backbone(path, NetworkOptions(grid="4x9"))
    assert "positions: 4 x 9 (as asked for)" in message
    with torch.no_grad():
        expected = vit.forward_features(pixels)
        assert torch.equal(stated.eval()(pixels).sequence, expected)
        assert (assumed.eval()(pixels).sequence - expected).abs().max() > 0.01
    again = NetworkOptions(grid="4x9", arch="vit_tiny_patch16_224")
    with pytest.raises(RequestError, match="fits the network only in part"):  # twelve blocks, and the file has two
        load_backbone(path, again)


@pytest.mark.parametrize("arch", [None, "vit:width=192,depth=2,heads=3,patch=16,img=96"])
def test_the_advice_for_a_table_that_is_no_square_works(arch: str | None, tmp_path: Path) -> None:
    vit = _wide(96, 192)
    path = _file(tmp_path / "wide.pth", {"model": vit.state_dict()})
    if arch is None:
        with pytest.raises(
            RequestError, match=r"73 rows with 1 prefix tokens is not a square grid; .*8x9 or 6x12"
        ) as caught:
            load_backbone(path)
        assert load_backbone(path, _advised(str(caught.value)))[0].vit.patch_embed.grid_size == (8, 9)
    options = NetworkOptions(grid="6x12", arch=arch)
    pixels = torch.randn(1, 3, 96, 192)
    with torch.no_grad():
        assert torch.equal(load_backbone(path, options)[0].eval()(pixels).sequence, vit.forward_features(pixels))
    with pytest.raises(
        RequestError, match=r"--network\.grid 5x5 has 25 patches, and a position table of 73 rows"
    ) as caught:
        load_backbone(path, NetworkOptions(grid="5x5"))
    assert _advised(str(caught.value).partition("fits others")[2]).native_grid == (8, 9)


def test_names_that_say_their_grid_refuse_another() -> None:
    with pytest.raises(RequestError, match="is for the position table of a checkpoint file"):
        create_backbone("vit_tiny_patch16_224", NetworkOptions(grid="4x9"), init="random")


def test_dinov2_with_registers_resizes_positions_by_its_own_rule() -> None:
    """DINOv2's hubconf: interpolate_offset 0 and interpolate_antialias True with registers, 0.1 and False without."""
    for name, rule in {"vit_small_patch14_reg4_dinov2": "antialias", "vit_small_patch14_dinov2": "dino"}.items():
        backbone, _ = create_backbone(name, NetworkOptions(), init="random")
        assert backbone.pos_interp == rule
    asked, _ = create_backbone("vit_small_patch14_reg4_dinov2", NetworkOptions(pos_interp="size"), init="random")
    assert asked.pos_interp == "size"
    with_register, _ = create_backbone("vit:width=32,depth=1,heads=2,registers=1", NetworkOptions(), init="random")
    assert with_register.pos_interp == "dino"  # its register has a row


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(
    value: float, suffix: str, tmp_path: Path
) -> None:
    state = random_state()
    path = tmp_path / f"bad{suffix}"
    if suffix == ".pth":
        state["blocks.1.mlp.fc2.weight"][3, 4] = value
        _file(path, state)
    else:
        source, _ = create_backbone("vit:width=32,depth=2,heads=2,patch=8,img=32", NetworkOptions(), init="random")
        with torch.no_grad():
            source.vit.blocks[1].mlp.fc2.weight[3, 4] = value
        write_checkpoint(source, path)
    with pytest.raises(
        RequestError, match=r"blocks\.1\.mlp\.fc2\.weight has 1 of \d+ numbers that are NaN or infinite"
    ):
        load_backbone(path)
