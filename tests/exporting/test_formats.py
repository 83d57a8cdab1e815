# SPDX-License-Identifier: Apache-2.0
"""Every format gives back the original's tokens in the program that it is for, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import rekindle
from rekindle.core.errors import RequestError
from tests.exporting.making import DINOV2, DINOV3, STYLES, VIT, features, write_base, write_run

FOLDABLE = [{"kind": "lora"}, {"kind": "norm"}, {"kind": "bias"}]
RIGID = [{"kind": "uniadapter"}, {"kind": "adaptformer"}]
SWIGLU = "vit:width=32,depth=2,heads=2,patch=8,img=32,swiglu=true,hidden=88,layer_scale=true"
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "arch",
    [*STYLES.values(), SWIGLU, DINOV3 + ",swiglu=true,qkv_bias=true", VIT + ",img_width=56", VIT + ",act=quick_gelu"],
)
def test_timm_builds_the_same_network_from_the_call_and_from_the_folder(arch: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, arch)
    done = rekindle.export(base, format="timm", out=tmp_path / "out")
    pixels, expected = features(rekindle.load(base))
    recipe = json.loads((done.out / "factory.json").read_text())
    from_folder: Any = timm.create_model(f"local-dir:{done.out}", pretrained=True)
    scope: dict[str, Any] = {"timm": timm}
    exec(f"model = {recipe['call']}", scope)
    assert scope["model"].state_dict().keys() == from_folder.state_dict().keys()
    torch.testing.assert_close(from_folder.eval().forward_features(pixels), expected, **CLOSE)
    assert from_folder.pretrained_cfg["mean"] == list(rekindle.load(base).mean)


def test_timm_differs_at_another_size_and_the_card_says_by_how_much(tmp_path: Path) -> None:
    base = write_base(tmp_path, VIT)
    done = rekindle.export(base, format="timm", out=tmp_path / "out")
    ((size, difference),) = done.parity.elsewhere.items()
    assert size == (48, 56) and difference > 100 * done.parity.difference
    assert f"At 48 x 56 px the largest difference is {difference:.1e}" in (done.out / "README.md").read_text()
    same = rekindle.export(write_base(tmp_path, VIT, pos_interp="antialias"), format="timm", out=tmp_path / "same")
    assert same.parity.elsewhere[size] < 1e-5


@pytest.mark.parametrize("adapter", FOLDABLE, ids=str)
@pytest.mark.parametrize("format", ["timm", "mmseg", "hf"])
def test_foldable_adapters_become_weights_of_a_plain_model(
    format: str, adapter: dict[str, Any], tmp_path: Path
) -> None:
    if format == "hf":
        pytest.importorskip("transformers")
    run = write_run(tmp_path, VIT, **adapter)
    done = rekindle.export(run, format=format, out=tmp_path / "out")
    assert done.parity.difference < 1e-4 and "modeling_rekindle.py" not in done.files
    base = rekindle.export(tmp_path / "base.safetensors", format=format, out=tmp_path / "base").out
    assert _weights(done.out) != _weights(base)


@pytest.mark.parametrize("adapter", RIGID, ids=str)
@pytest.mark.parametrize("format", ["timm", "mmseg"])
def test_adapters_with_a_non_linearity_are_refused_with_the_formats_that_hold_them(
    format: str, adapter: dict[str, Any], tmp_path: Path
) -> None:
    run = write_run(tmp_path, VIT, **adapter)
    with pytest.raises(RequestError, match=r"non-linearity.*--format hf, onnx, safetensors"):
        rekindle.export(run, format=format, out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "run"]


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        (VIT, "ViTModel"),
        (VIT + ",no_embed_class=true,qkv_bias=false", "ViTModel"),
        (VIT + ",layer_scale=true", "Dinov2Model"),
        (VIT + ",act=quick_gelu", "ViTModel"),
        (VIT + ",act=gelu_tanh,eps=1e-12", "ViTModel"),
        (SWIGLU, "Dinov2Model"),
        (DINOV2, "Dinov2WithRegistersModel"),
        (VIT + ",registers=2", "Dinov2WithRegistersModel"),  # UDI: registers with rows of their own, no layer scale
        (DINOV3, "DINOv3ViTModel"),
        (DINOV3 + ",swiglu=true,qkv_bias=true", "DINOv3ViTModel"),
        (DINOV3 + ",layer_scale=false,registers=0", "DINOv3ViTModel"),
    ],
)
def test_transformers_loads_its_own_class(arch: str, kind: str, tmp_path: Path, transformers: Any) -> None:
    base = write_base(tmp_path, arch)
    out = rekindle.export(base, format="hf", out=tmp_path / "out").out
    pixels, expected = features(rekindle.load(base))
    arguments = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    model = transformers.AutoModel.from_pretrained(out, **arguments).eval()
    assert type(model).__name__ == kind and type(model).__module__.startswith("transformers.")
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pixels).last_hidden_state, expected, **CLOSE)


def test_our_reader_takes_the_transformers_folder_back(tmp_path: Path, transformers: Any) -> None:
    for style, arch in STYLES.items():
        base = write_base(tmp_path / style, arch)
        out = rekindle.export(base, format="hf", out=tmp_path / style / "out").out
        pixels, expected = features(rekindle.load(base))
        for place in (out, out / "model.safetensors"):
            torch.testing.assert_close(rekindle.load(place)(pixels).sequence, expected, **CLOSE)


@pytest.mark.parametrize("arch", [VIT, DINOV3])
def test_adapters_travel_with_our_class_and_survive_save_pretrained(
    arch: str, tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run = write_run(tmp_path, arch, kind="uniadapter")
    done = rekindle.export(run, format="hf", out=tmp_path / "out")
    original = rekindle.load(run)
    (tmp_path / "base.safetensors").unlink()
    model = transformers.AutoModel.from_pretrained(done.out, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "modeling_rekindle.py").write_bytes((done.out / "modeling_rekindle.py").read_bytes())
    again = transformers.AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    pixels, expected = features(original, (40, 56))
    torch.testing.assert_close(rekindle.load(done.out)(pixels).sequence, expected, **CLOSE)  # and we read it back
    for loaded in (model, again):
        with torch.no_grad():
            output = loaded.eval()(pixel_values=pixels)
        torch.testing.assert_close(output.last_hidden_state, expected, **CLOSE)
        torch.testing.assert_close(output.pooler_output, expected[:, 0], **CLOSE)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("adapter", [None, *RIGID, *FOLDABLE], ids=str)
def test_the_whole_model_needs_no_base_any_more(style: str, adapter: dict[str, Any] | None, tmp_path: Path) -> None:
    model = write_base(tmp_path, STYLES[style]) if adapter is None else write_run(tmp_path, STYLES[style], **adapter)
    pixels, expected = features(rekindle.load(model))
    out = rekindle.export(model, format="safetensors", out=tmp_path / "out").out
    (tmp_path / "base.safetensors").unlink()
    assert torch.equal(rekindle.load(out)(pixels).sequence, expected)
    again = rekindle.export(out, format="safetensors", out=tmp_path / "again").out
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    description = json.loads((again / "model.json").read_text())
    assert description["method"] == (None if adapter is None else "glare")
    assert str(tmp_path) not in (again / "model.json").read_text()


@pytest.mark.parametrize("arch", [VIT, VIT + ",no_embed_class=true,qkv_bias=false", VIT + ",layer_scale=true"])
def test_mmseg_checkpoint_fills_a_segmentors_vision_transformer(arch: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, arch)
    out = rekindle.export(base, format="mmseg", out=tmp_path / "out").out
    state = torch.load(out / "model.pth", weights_only=True)["state_dict"]
    segmentor = nn.ModuleDict({"backbone": _MmsegVisionTransformer(width=32, depth=2, heads=2, patch=8, rows=17)})
    segmentor.load_state_dict(state, strict=True)
    pixels, expected = features(rekindle.load(base))
    with torch.no_grad():
        found = segmentor.eval()["backbone"](pixels)
    torch.testing.assert_close(found, expected[:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (DINOV2, "know register tokens;"),
        (DINOV3, "rotary positions, register tokens"),
        (VIT + ",pre_norm=true", "a norm before the first block"),
        (VIT + ",class_token=false", "no class token"),
        (VIT + ",swiglu=true", "a gated MLP"),
        (VIT + ",act=quick_gelu", "MLPs with quick_gelu"),
        (VIT + ",hidden=80", "an MLP of width 80"),
    ],
)
def test_mmseg_names_all_that_it_cannot_hold(arch: str, reason: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, arch)
    with pytest.raises(RequestError, match=f"VisionTransformer does not know.*{reason}|{reason}"):
        rekindle.export(base, format="mmseg", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timm_refuses_an_epsilon_that_its_call_cannot_say(tmp_path: Path) -> None:
    base = write_base(tmp_path, VIT + ",eps=1e-4")
    with pytest.raises(RequestError, match=r"epsilon 0\.0001.*--format hf, onnx, safetensors"):
        rekindle.export(base, format="timm", out=tmp_path / "out")


def test_what_transformers_lacks_goes_to_our_class(tmp_path: Path, transformers: Any) -> None:
    for number, arch in enumerate(
        [VIT + ",pre_norm=true", VIT + ",class_token=false", VIT + ",layer_scale=true,hidden=80"]
    ):
        folder = tmp_path / str(number)
        done = rekindle.export(write_base(folder, arch), format="hf", out=folder / "out")
        assert "modeling_rekindle.py" in done.files and done.parity.difference < 1e-5


def _weights(folder: Path) -> bytes:
    return next(p for p in folder.iterdir() if p.name in ("model.safetensors", "model.pth")).read_bytes()


class _MmsegVisionTransformer(nn.Module):
    """The oracle: mmsegmentation's module tree, written anew around torch's own attention."""

    def __init__(self, *, width: int, depth: int, heads: int, patch: int, rows: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.layers = nn.ModuleList(_MmsegLayer(width, heads) for _ in range(depth))
        self.ln1 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.patch_embed["projection"](pixels)
        x = (
            torch.cat([self.cls_token.expand(len(maps), -1, -1), maps.flatten(2).transpose(1, 2)], dim=1)
            + self.pos_embed
        )
        for layer in self.layers:
            x = layer(x)
        tokens: Tensor = self.ln1(x)
        return tokens[:, 1:].transpose(1, 2).reshape(maps.shape)


class _MmsegLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"attn": nn.MultiheadAttention(width, heads, batch_first=True)})
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.ffn = nn.ModuleDict({"layers": nn.Sequential(first, nn.Linear(4 * width, width))})

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        x = x + self.attn["attn"](y, y, y, need_weights=False)[0]
        branch: Tensor = self.ffn["layers"](self.ln2(x))
        return x + branch
