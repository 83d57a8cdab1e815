# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers and timm, and the hub's cache: the weights, and every fact that stands beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import rekindle
from rekindle.adapters.saved import load_backbone
from rekindle.app.workbench import load_sides
from rekindle.core.errors import RequestError
from rekindle.engine.watcher import LoggingWatcher
from rekindle.networks.options import NetworkOptions
from rekindle.prompting.options import AppOptions
from tests.networks.reference import HEADS, PATCH, SIDE, WIDTH, hugging_face, random_state, reference_features

CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "image_size": PATCH * SIDE,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
SEEN = {"image_mean": [0.43, 0.41, 0.296], "image_std": [0.213, 0.156, 0.143]}

PLAIN = f"vit:width={WIDTH},depth=2,heads={HEADS},patch=8,img=32"


def _folder(path: Path, *, config: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face(random_state(), dinov2=False), path / "model.safetensors")
    for name, content in {"config": {**CONFIG, **(config or {})}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def _pixels(*size: int) -> Tensor:
    height, width = size or (PATCH * SIDE, PATCH * SIDE)
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def test_a_folder_gives_the_reference_features_and_says_what_it_assumed(tmp_path: Path) -> None:
    backbone, message = load_backbone(_folder(tmp_path / "hf"))
    torch.testing.assert_close(
        backbone.eval()(_pixels()).sequence, reference_features(random_state(), _pixels()), atol=2e-5, rtol=1e-4
    )
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406)) and "assumed, ImageNet's" in message
    advised = NetworkOptions(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.25, 0.25, 0.25))  # what the line advises
    assert "--network.pixel-mean and --network.pixel-std" in message
    stated, message = load_backbone(tmp_path / "hf", advised)
    assert stated.mean == (0.5, 0.5, 0.5) and stated.std == (0.25, 0.25, 0.25) and "as asked for" in message


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_pixel_constants_come_from_the_preprocessor_also_for_the_file_inside(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hf", preprocessor_config=SEEN)
    backbone, message = load_backbone(folder / name)
    assert backbone.mean == (0.43, 0.41, 0.296) and backbone.std == (0.213, 0.156, 0.143)
    assert "pixels: mean 0.43 0.41 0.296, deviation 0.213 0.156 0.143 (preprocessor_config.json)" in message


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_processor": SEEN}, 0.43, 0.213),
        ({**SEEN, "do_normalize": False}, 0.0, 1.0),
        ({**SEEN, "rescale_factor": 1 / 127.5}, 0.215, 0.1065),
        ({**SEEN, "do_rescale": False}, 0.43 / 255, 0.213 / 255),
    ],
)
def test_a_preprocessor_is_read_for_what_it_computes(
    said: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    """Oracle: (255 x * factor - mean) / std of a level x in [0, 1]."""
    name = "processor_config" if "image_processor" in said else "preprocessor_config"
    backbone, _ = load_backbone(_folder(tmp_path / "hf", **{name: said}))
    assert backbone.mean[0] == pytest.approx(mean) and backbone.std[0] == pytest.approx(std)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "mish"}, r"hidden_act = mish is not supported; known are .*quick_gelu"),
        ({"layer_norm_eps": "small"}, r"layer_norm_eps = 'small' must be a finite number"),
        ({"num_attention_heads": 0}, r"num_attention_heads = 0 must be a whole number of at least 1"),
        ({"image_size": [True, 3]}, r"image_size = True must be a whole number"),
    ],
)
def test_facts_that_cannot_be_are_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"config\.json: {message}"):
        load_backbone(_folder(tmp_path / "hf", config=config))


@pytest.mark.parametrize(("key", "told", "found"), [("hidden_size", 2 * WIDTH, WIDTH), ("num_hidden_layers", 3, 2)])
def test_a_configuration_of_another_network_is_refused(key: str, told: int, found: int, tmp_path: Path) -> None:
    """Its heads and epsilon would be another's, too; with what the weights have it is read."""
    with pytest.raises(RequestError, match=rf"config\.json says {key} = {told}, and the weights .* have {found}; put"):
        load_backbone(_folder(tmp_path / "hf", config={key: told}))
    load_backbone(_folder(tmp_path / "hf", config={key: found}))


def test_activation_and_epsilon_of_the_configuration_are_used(tmp_path: Path) -> None:
    """Oracle: transformers' own classes on the same files."""
    transformers = pytest.importorskip("transformers")
    cases: dict[str, dict[str, Any]] = {
        "quick": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-12},
        "tanh": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    }
    for name, changed in cases.items():
        torch.manual_seed(0)
        config = transformers.ViTConfig(**{**CONFIG, **changed}, num_hidden_layers=2, intermediate_size=4 * WIDTH)
        theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        theirs.save_pretrained(tmp_path / name)
        ours, _ = load_backbone(tmp_path / name)
        with torch.no_grad():
            expected = theirs(_pixels()).last_hidden_state
            torch.testing.assert_close(ours.eval()(_pixels()).sequence, expected, atol=1e-5, rtol=1e-4)
            usual, _ = load_backbone(tmp_path / name, NetworkOptions(arch=PLAIN))
            assert (usual.eval()(_pixels()).sequence - expected).abs().max() > 1e-3


def test_dinov3_without_registers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=256, patch_size=PATCH,
        image_size=32, num_register_tokens=0, rope_theta=50.0, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.DINOv3ViTModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    ours, message = load_backbone(tmp_path / "hf")
    assert ours.num_registers == 0 and "positions: rotary" in message
    with torch.no_grad():
        expected = theirs(_pixels(40, 24)).last_hidden_state
        torch.testing.assert_close(ours.eval()(_pixels(40, 24)).sequence, expected, atol=1e-5, rtol=1e-4)


def test_registers_of_dinov2_follow_transformers_at_other_sizes(tmp_path: Path) -> None:
    """Its class resizes positions without the 0.1 and with a low-pass filter, as Meta's hubconf asks for registers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, patch_size=PATCH, image_size=64
    )
    torch.manual_seed(0)
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "hf")
    ours, message = load_backbone(tmp_path / "hf")
    assert "by the rule antialias (as DINOv2 with registers)" in message and ours.num_registers == 4
    with torch.no_grad():
        for size in ((64, 64), (32, 32), (40, 24), (96, 80)):
            expected = theirs(_pixels(*size)).last_hidden_state
            torch.testing.assert_close(ours.eval()(_pixels(*size)).sequence, expected, atol=1e-4, rtol=1e-4)


def test_weights_in_parts_are_joined_and_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    whole, _ = load_backbone(_folder(tmp_path / "whole"))
    folder, state = _folder(tmp_path / "parts"), hugging_face(random_state(), dinov2=False)
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for part, held in parts.items():
        save_file({name: state[name] for name in held}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: part for part, held in parts.items() for n in held}}))
    assert load_backbone(folder)[0].identity.sha256 == whole.identity.sha256
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RequestError, match=r"index\.json names model-00002-of-00002\.safetensors, which is not there"):
        load_backbone(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../whole/model.safetensors"}}))
    with pytest.raises(RequestError, match=r"names a part outside of its folder"):
        load_backbone(folder)


def test_pytorch_model_bin_is_read_without_running_code(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hf")
    expected = load_backbone(folder)[0].identity.sha256
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        RequestError, match=r"has config\.json and neither model\.safetensors nor pytorch_model\.bin; download"
    ):
        load_backbone(folder)
    torch.save(hugging_face(random_state(), dinov2=False), folder / "pytorch_model.bin")
    assert load_backbone(folder)[0].identity.sha256 == expected


def test_a_folder_of_weights_alone_says_which_file_to_give(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hf")
    (folder / "config.json").unlink()
    with pytest.raises(RequestError, match=r"nor config\.json .*; give the file: (.*model\.safetensors)") as caught:
        load_backbone(folder)
    advised = str(caught.value).rpartition("give the file: ")[2]
    assert load_backbone(advised, NetworkOptions())[0].width == WIDTH


def _cache(hub: Path, *, revisions: tuple[str, ...] = ("a" * 40,), main: str | None = "a" * 40) -> Path:
    """What huggingface_hub keeps of a repository."""
    repository = hub / "models--someone--something"
    for revision in revisions:
        _folder(repository / "snapshots" / revision, preprocessor_config=SEEN)
    if main is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main)
    return repository


def test_the_hubs_cache_answers_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = _cache(tmp_path)
    by_name, message = load_backbone("hf-hub:someone/something")
    assert by_name.identity.source == "hub" and by_name.mean == (0.43, 0.41, 0.296), message
    by_revision, _ = load_backbone(f"hf-hub:someone/something@{'a' * 40}")
    by_folder, _ = load_backbone(repository)
    assert by_name.identity.sha256 == by_revision.identity.sha256 == by_folder.identity.sha256


def test_a_cache_with_several_snapshots_asks_for_one(tmp_path: Path) -> None:
    repository = _cache(tmp_path, revisions=("a" * 40, "b" * 40), main=None)
    with pytest.raises(RequestError, match=r"several snapshots; give one of them, as in (.*)") as caught:
        load_backbone(repository)
    assert load_backbone(str(caught.value).rpartition("as in ")[2])[0].width == WIDTH


def test_a_folder_of_timm_brings_its_architecture_and_constants(tmp_path: Path) -> None:
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32)
    for name, arguments in {"plain": {"depth": 2, "embed_dim": 192, "num_heads": 3}, "named": {}}.items():
        folder = tmp_path / name
        folder.mkdir()
        source: Any = vit if name == "plain" else timm.create_model("vit_tiny_patch16_224", num_classes=0)
        save_file(source.state_dict(), folder / "model.safetensors")
        config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
        constants = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "mit"}
        (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": constants}))
        backbone, message = load_backbone(folder)
        assert backbone.mean == (0.5, 0.5, 0.5) and "(config.json)" in message and backbone.identity.licence == "mit"
        side = 32 if name == "plain" else 224
        assert torch.equal(
            backbone.eval()(_pixels(side, side)).sequence, source.eval().forward_features(_pixels(side, side))
        )


def test_every_face_that_takes_a_model_takes_a_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hf", preprocessor_config=SEEN)
    (side,) = load_sides(AppOptions(model=str(folder)), LoggingWatcher())
    assert side.extractor.patch_size == PATCH
    stated = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.25, 0.25, 0.25)}
    done = rekindle.export(folder, format="safetensors", out=tmp_path / "out", network=stated)
    loaded, again = rekindle.load(folder, network=stated), rekindle.load(done.out)
    assert loaded.mean == again.mean == (0.5, 0.5, 0.5) and rekindle.load(folder).mean == (0.43, 0.41, 0.296)
    assert torch.equal(loaded(_pixels()).sequence, again(_pixels()).sequence)
