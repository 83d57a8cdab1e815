# SPDX-License-Identifier: Apache-2.0
"""Models out of the ordinary: timm's by name, UDI's and FLSL's token rules, and what no other program knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import rekindle
from rekindle.core.errors import RekindleError, RequestError
from rekindle.exporting.hf_names import to_transformers
from rekindle.exporting.onnx_model import _require_known_rotation
from rekindle.exporting.plain import Obstacle
from rekindle.exporting.timm_model import factory
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions
from tests.exporting.making import DINOV3, VIT, features, stir, write_base


@pytest.mark.parametrize("format", ["timm", "hf", "mmseg"])
def test_a_model_that_timm_knows_by_name_keeps_it(format: str, tmp_path: Path) -> None:
    if format == "hf":
        pytest.importorskip("transformers")
    backbone, _ = create_backbone("vit_tiny_patch16_224", NetworkOptions(), init="random")
    stir(backbone, 0.02)
    write_checkpoint(backbone, tmp_path / "base.safetensors")
    done = rekindle.export(tmp_path / "base.safetensors", format=format, out=tmp_path / "out")
    assert done.parity.difference < 1e-5 and "modeling_rekindle.py" not in done.files
    assert factory(backbone)[0] == "vit_tiny_patch16_224"


def _udi(backbone: Backbone) -> dict[str, object]:
    backbone.patch_norm = nn.LayerNorm(backbone.width, eps=1e-6)
    return {"patch_norm": True}


def _flsl(backbone: Backbone) -> dict[str, object]:
    backbone.mean_as_cls = True
    return {"mean_as_cls": True}


@pytest.mark.parametrize(
    "format",
    [
        "timm",
        "mmseg",
        "hf",
        "safetensors",
        pytest.param("onnx", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("arch", "change", "reason"),
    [
        (VIT, _udi, "a norm of their own"),
        (VIT + ",class_token=false", _flsl, "the mean of its patch tokens plays the class token"),
    ],
    ids=["udi", "flsl"],
)
def test_special_tokens_are_kept_or_refused(
    format: str, arch: str, change: Callable[[Backbone], dict[str, object]], reason: str, tmp_path: Path
) -> None:
    for package in {"hf": ["transformers"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(format, []):
        pytest.importorskip(package)
    backbone, _ = create_backbone(arch, NetworkOptions(), init="random")
    changed = change(backbone)
    stir(backbone, 0.2)
    backbone.identity = replace(backbone.identity, arch=dict(backbone.identity.arch) | changed)
    base = tmp_path / "base.safetensors"
    write_checkpoint(backbone, base)
    if format in ("timm", "mmseg"):
        with pytest.raises(RequestError, match=reason):
            rekindle.export(base, format=format, out=tmp_path / "out")
        return
    done = rekindle.export(base, format=format, out=tmp_path / "out")
    assert done.parity.difference < 1e-5
    if format == "safetensors":
        pixels, expected = features(backbone)
        assert torch.equal(rekindle.load(done)(pixels).sequence, expected)


def _spoil_activation(backbone: Backbone) -> None:
    backbone.vit.blocks[1].mlp.act = nn.Tanh()


def _spoil_eps(backbone: Backbone) -> None:
    backbone.vit.norm.eps = 1e-3


def _spoil_names(backbone: Backbone) -> None:
    backbone.vit.blocks[0].attn.q_norm = nn.LayerNorm(16, eps=1e-6)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_spoil_activation, "an MLP of type Mlp with Tanh"),
        (_spoil_eps, "different epsilons"),
        (_spoil_names, r"ViTModel has no place for its tensor blocks\.0\.attn\.q_norm"),
    ],
)
def test_transformers_classes_are_not_stretched(spoil: Callable[[Backbone], None], reason: str, tmp_path: Path) -> None:
    backbone = rekindle.load(write_base(tmp_path, VIT))
    spoil(backbone)
    with pytest.raises(Obstacle, match=reason):
        to_transformers(backbone)


def test_unknown_rotations_are_named(tmp_path: Path) -> None:
    backbone = rekindle.load(write_base(tmp_path, DINOV3))
    _require_known_rotation(backbone)
    backbone.vit.rope.normalize_coords = "max"
    with pytest.raises(Obstacle, match="only DINOv3's are known"):
        _require_known_rotation(backbone)


def test_the_image_processor_normalises_as_the_model_expects(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    base = write_base(tmp_path, VIT)
    out = rekindle.export(base, format="hf", out=tmp_path / "out").out
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = rekindle.load(base)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    found = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, (image / 255 - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_full_disk_leaves_nothing(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path, VIT)

    def full(*args: object, **kwargs: object) -> None:
        raise fault

    monkeypatch.setattr("rekindle.exporting.whole.save_file", full)
    with pytest.raises(RekindleError, match=r"no space|disk full"):
        rekindle.export(base, format="safetensors", out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_description_with_another_rule_for_positions_is_refused(tmp_path: Path) -> None:
    done = rekindle.export(write_base(tmp_path, VIT), format="safetensors", out=tmp_path / "out")
    path = done.out / "model.json"
    path.write_text(
        path.read_text().replace('"pos_interp": "dino",\n      "patch', '"pos_interp": "`x`",\n      "patch')
    )
    with pytest.raises(RequestError, match="unknown pos_interp"):
        rekindle.export(done.out, format="timm", out=tmp_path / "again")
