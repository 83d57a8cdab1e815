# SPDX-License-Identifier: Apache-2.0
"""TEC through the public call: a run's model is any MODEL, and the base of the next round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle
from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.saved import load_backbone
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import nested
from rekindle.methods.tec import Tec
from rekindle.networks.backbone import Backbone
from rekindle.networks.block_outputs import walk_blocks
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.parts.base_model import BaseModel
from rekindle.networks.parts.conditioning import read_conditioning
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import build_method
from tests.adapters.networks import adapter_parameters
from tests.engine.running import TINY, Recorder, assert_same_training, checkpoint, metrics, stop_after, write_images

SMALL = {"tec.decoder_width": 16, "tec.decoder_heads": 2, "tec.blocks_per_group": 1, "tec.num_selected": 3}


def _asked(images: Path, out: Path, backbone: str, **changes: Any) -> dict[str, Any]:
    kept = {
        k: v for k, v in TINY.items() if not k.startswith("glare.") and k not in ("train", "init", "views.num_local")
    }
    flat = kept | SMALL | {"method": "tec", "images": str(images), "out": str(out), "backbone": backbone, "steps": 3}
    return nested({**flat, "optim.lr_per_256": 0.01, **{k.replace("__", "."): v for k, v in changes.items()}})


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base in a file, a first run on it and a second run on the first."""
    folder = tmp_path_factory.mktemp("tec")
    write_images(folder / "images")
    base, _ = load_backbone(TINY["backbone"], init="random")
    write_checkpoint(base, folder / "base.safetensors")
    rekindle.pretrain(**_asked(folder / "images", folder / "one", str(folder / "base.safetensors")))
    rekindle.pretrain(**_asked(folder / "images", folder / "two", str(folder / "one"), seed=1))
    return folder


def _in_memory(folder: Path, run: str, backbone: str) -> Tec:
    """The method of a run as it was when training ended."""
    resolved = resolve({}, _asked(folder / "images", folder / run, str(folder / backbone)))
    base, _ = load_backbone(str(folder / backbone))
    method, _ = build_method(resolved, base, machine_of(resolved.options))
    method.load_state_dict(checkpoint(folder / run)["method"], strict=False)
    assert isinstance(method, Tec)
    return method.eval()


def _targets(backbone: Backbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    view = BaseModel(backbone, last_layers=2)(pixels)
    return view.features, view.attention.rows(torch.arange(16).expand(len(pixels), -1))


def test_a_run_is_an_ordinary_model_whose_targets_are_those_of_the_network_in_memory(rounds: Path) -> None:
    """Property 21: export, read back, use as the base."""
    method = _in_memory(rounds, "one", "base.safetensors")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(
        _targets(rekindle.load(rounds / "one"), pixels), _targets(method.exported(), pixels), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    keep = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        rekindle.load(rounds / "one").forward_features(pixels), method.encode(pixels, keep)[-1], atol=1e-6, rtol=1e-6
    )


def test_the_second_round_learns_from_the_first_and_starts_anew(rounds: Path) -> None:
    first, second = rekindle.load(rounds / "one"), rekindle.load(rounds / "two")
    method = _in_memory(rounds, "two", "one")
    for name, tensor in method.base_model.backbone.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    weights = [m.vit.blocks[0].attn.qkv.weight for m in (first, second)]
    assert float((weights[0] - weights[1]).detach().abs().mean()) > 0.05
    assert rekindle.extract(second, rounds / "images" / "00.png").patches.shape == (6, 7, 32)
    assert all({"fea", "att", "target_entropy"} <= line.keys() for line in metrics(rounds / "two"))


@torch.no_grad()
def test_adapters_come_back_from_a_runs_checkpoint(rounds: Path) -> None:
    """For parameter-efficient fine-tuning: the class token, its MLP and the encoder adapters do what they did."""
    method = _in_memory(rounds, "one", "base.safetensors")
    conditioning, token = read_conditioning(rounds / "one" / "checkpoints" / "last.ckpt")
    assert conditioning.input is not None and conditioning.encoder is not None
    model = rekindle.load(rounds / "one")
    torch.testing.assert_close(conditioning.input(token), model.vit.cls_token, atol=1e-6, rtol=1e-6)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = [step.after for step in walk_blocks(model, pixels)]
    outputs[-1] = model.vit.norm(outputs[-1])
    wanted = method.conditioning.fuse(method.encode(pixels, torch.arange(16).expand(2, -1)))
    torch.testing.assert_close(conditioning.fuse(outputs), wanted, atol=1e-5, rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(rounds: Path, tmp_path: Path) -> None:
    asked = _asked(rounds / "images", tmp_path / "run", str(rounds / "base.safetensors"))
    rekindle.pretrain(**asked, watcher=stop_after(1))
    assert checkpoint(tmp_path / "run")["step"] == 1
    rekindle.pretrain(**asked, resume=True)
    assert_same_training(rounds / "one", tmp_path / "run")


def test_shares_of_a_step_give_what_the_whole_batch_gives(rounds: Path, tmp_path: Path) -> None:
    """Every image draws its own masks, and all hide as many patches, so averages over shares are averages over the batch."""
    changes = {"optim.eps": 1e-4}  # with less, AdamW turns the rounding of a gradient near 0 into a whole step
    for name, size in (("whole", 4), ("shares", 2)):
        asked = _asked(rounds / "images", tmp_path / name, str(rounds / "base.safetensors"), **changes)
        asked["engine"]["micro_batch_size"] = size
        rekindle.pretrain(**asked)
    whole, shares = (checkpoint(tmp_path / name)["method"] for name in ("whole", "shares"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, shares[name], atol=2e-5, rtol=1e-3)


def test_a_checkpoint_holds_neither_the_base_nor_what_never_changes(rounds: Path) -> None:
    names = checkpoint(rounds / "one")["method"].keys()
    assert not any(n.startswith("base_model.") for n in names) and "student.vit.pos_embed" not in names
    assert any(n.startswith("conditioning.encoder.") for n in names)


def test_a_copy_of_the_base_may_be_adapted(rounds: Path, tmp_path: Path) -> None:
    """With adapters on a copy of the base, the file holds the adapters alone, and loads on the base."""
    changes = {"train": "adapters", "adapter.rank": 4, "tec.start": "base", "tec.input_adapter": False}
    base = str(rounds / "base.safetensors")
    rekindle.pretrain(**_asked(rounds / "images", tmp_path / "run", base, **changes))
    model, base_model = rekindle.load(tmp_path / "run").state_dict(), rekindle.load(base).state_dict()
    assert torch.equal(model["vit.cls_token"], base_model["vit.cls_token"])
    assert any(".adapter." in n and bool(t.abs().max() > 0) for n, t in model.items())


def test_norms_of_a_copy_of_the_base_may_move(rounds: Path, tmp_path: Path) -> None:
    base = str(rounds / "base.safetensors")
    rekindle.pretrain(**_asked(rounds / "images", tmp_path / "run", base, train="norm", **{"tec.start": "base"}))
    model, base_model = rekindle.load(tmp_path / "run").state_dict(), rekindle.load(base).state_dict()
    moved = {n for n, t in model.items() if not torch.equal(t, base_model[n])}
    assert "vit.cls_token" in moved and all(n == "vit.cls_token" or "norm" in n for n in moved)


def test_a_smaller_encoder_and_bfloat16_run_through(rounds: Path, tmp_path: Path) -> None:
    changes = {"tec.arch": "vit:width=16,depth=2,heads=2", "precision": "bf16"}
    recorder = Recorder()
    asked = _asked(rounds / "images", tmp_path / "run", str(rounds / "one"), **changes)
    rekindle.pretrain(**asked, watcher=recorder)
    model = rekindle.load(tmp_path / "run")
    assert (model.width, model.patch_size) == (16, 8) and len(recorder.steps) == 3


def test_a_random_encoder_is_not_frozen(rounds: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="leave it as it was drawn; use --train all"):
        rekindle.pretrain(**_asked(rounds / "images", tmp_path / "run", str(rounds / "one"), train="adapters"))


@pytest.mark.parametrize("kind", ["uniadapter", "lora"])
def test_a_run_with_adapters_is_a_base_and_they_act_in_its_targets(rounds: Path, kind: str) -> None:
    """The default of a continual run, GLARE's for example, leaves adapters on its base."""
    adapted, _ = load_backbone(str(rounds / "base.safetensors"))
    plain, _ = load_backbone(str(rounds / "base.safetensors"))
    options = AdapterOptions(kind=kind, rank=2)
    attach(adapted, options, train="adapters")
    with torch.no_grad():
        for parameter in adapter_parameters(adapted).values():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    resolved = resolve({}, _asked(rounds / "images", rounds / "unused", str(rounds / "base.safetensors")))
    method, attachment = build_method(resolved, adapted, machine_of(resolved.options))
    assert isinstance(method, Tec)
    assert not any("adapter" in name for name in attachment.trained)
    assert not any(p.requires_grad for p in method.base_model.parameters())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = _targets(method.base_model.backbone, pixels)[0]
    torch.testing.assert_close(features, _targets(adapted, pixels)[0], atol=1e-4, rtol=1e-4)
    assert float((features - _targets(plain, pixels)[0]).abs().max()) > 1e-2
    assert not any("adapter" in name for name in method.exported().state_dict())


@pytest.mark.parametrize("change", [{"train": "adapters"}, {"train": "norm"}, {"adapter__in_full_training": True}])
def test_a_new_encoder_is_trained_whole(rounds: Path, change: dict[str, Any]) -> None:
    asked = _asked(rounds / "images", rounds / "unused", str(rounds / "base.safetensors"), **change)
    base, _ = load_backbone(str(rounds / "base.safetensors"))
    with pytest.raises(RequestError, match=r"tec trains a new network, .* use --train all"):
        resolved = resolve({}, asked)
        build_method(resolved, base, machine_of(resolved.options))
