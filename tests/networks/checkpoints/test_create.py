# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rekindle.core.errors import RekindleError, RequestError
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions

TINY = "vit:width=32,depth=2,heads=2,patch=8,img=32"
OPTIONS = NetworkOptions()


def test_seed_decides_random_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, report = create_backbone(TINY, OPTIONS, init="random", seed=1)
    assert torch.equal(torch.get_rng_state(), before) and report is None
    torch.rand(3)
    same, _ = create_backbone(TINY, OPTIONS, init="random", seed=1)
    other, _ = create_backbone(TINY, OPTIONS, init="random", seed=2)
    assert first.identity.sha256 == same.identity.sha256 != other.identity.sha256


def test_grammar_tells_what_it_wants() -> None:
    cases = {
        "vit:widht=32": "unknown architecture key .* 'widht'; did you mean 'width'",
        "vit:width": "width needs a value of type int, as in width=384",
        "vit:width=a": "width needs a value of type int",
        "vit:width=30,heads=4": "width a multiple of heads",
        "vit:img=30,patch=16": "img=30 is not a multiple of patch=16",
        "dinov3:width=24,heads=4": "width / heads to be a multiple of 4",
    }
    for name, message in cases.items():
        with pytest.raises(RequestError, match=message):
            create_backbone(name, OPTIONS, init="random")
    with pytest.raises(RequestError, match="architecture without weights; use --init random"):
        create_backbone(TINY, OPTIONS)


def test_timm_architecture_with_random_weights_keeps_its_normalisation_and_size() -> None:
    backbone, report = create_backbone("vit_small_patch14_reg4_dinov2", OPTIONS, init="random")
    assert report is None and backbone.num_registers == 4 and backbone.patch_size == 14
    assert backbone.vit.patch_embed.grid_size == (37, 37) and backbone.num_heads == 6
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))


def test_backbone_count_of_the_paper() -> None:
    backbone, _ = create_backbone("vit:registers=1", OPTIONS, init="random")
    assert sum(p.numel() for p in backbone.parameters()) == 21_666_432


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"unknown model 'vit_smal_patch16_224.dino'; did you mean 'vit_small_"):
        create_backbone("vit_smal_patch16_224.dino", OPTIONS)
    with pytest.raises(RequestError, match="is not a plain vision transformer"):
        create_backbone("resnet18", OPTIONS, init="random")
    with pytest.raises(
        RequestError, match=r"timm cannot load 'vit_small_patch16_224.nope'.*vit_small_patch16_224.dino"
    ):
        create_backbone("vit_small_patch16_224.nope", OPTIONS)


def test_path_like_name_without_file_says_so() -> None:
    for name in ("weights/model.pth", "./model", "model.safetensors"):
        with pytest.raises(RequestError, match="does not exist; check the path"):
            create_backbone(name, OPTIONS)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own offline switch, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["vit_small_patch16_224.dino", "hf-hub:someone/something"])
def test_unreachable_hub_names_the_model_and_the_way_out(name: str) -> None:
    with pytest.raises(RekindleError) as caught:
        create_backbone(name, OPTIONS)
    message = str(caught.value)
    assert f"cannot get '{name}': the model hub could not be reached" in message
    assert "--backbone path/to/model.safetensors" in message
    assert caught.value.exit_code == 1


def test_timm_weights_by_arch_and_file(tmp_path: Path) -> None:
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    torch.save(vit.state_dict(), tmp_path / "tiny.pt")
    backbone, report = create_backbone(
        str(tmp_path / "tiny.pt"), NetworkOptions(arch="vit_tiny_patch16_224", drop_path=0.0)
    )
    pixels = torch.randn(1, 3, 32, 32)
    assert report is not None and report.is_complete
    assert torch.equal(backbone.eval()(pixels).sequence, vit.eval().forward_features(pixels))
    with pytest.raises(RequestError, match=r"unknown architecture \(--network.arch\) 'vit_tinny"):
        create_backbone(str(tmp_path / "tiny.pt"), NetworkOptions(arch="vit_tinny_patch16_224"))


def test_options_import_no_torch() -> None:
    code = "import sys, rekindle.networks.options, rekindle.adapters.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
