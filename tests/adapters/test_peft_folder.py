# SPDX-License-Identifier: Apache-2.0
"""A folder that PEFT saved is a MODEL: loaded, measured, trained on and exported like any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.peft_folder import CONFIG, TENSORS
from rekindle.cli import main
from rekindle.core.errors import RequestError
from tests.adapters.networks import images
from tests.engine.running import run, write_images
from tests.evaluation.toy import write_data
from tests.exporting.making import DINOV3, VIT, write_base, write_run


def tokens(model: Any) -> torch.Tensor:
    sequence: torch.Tensor = model(images()).sequence
    return sequence


def exported(folder: Path, arch: str = VIT, **adapter: Any) -> tuple[Path, Path]:
    """A run with LoRA, and what `rekindle export --format peft` makes of it."""
    made = write_run(folder, arch, kind="lora", **adapter)
    out = folder / "peft"
    assert main(["export", str(made), "--format", "peft", "--out", str(out)]) == 0
    return made, out


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


@pytest.mark.parametrize("arch", [VIT, DINOV3])
def test_from_a_run_to_pefts_files_and_back_nothing_changes(arch: str, tmp_path: Path) -> None:
    made, out = exported(tmp_path, arch, lora_targets=("qkv", "fc1"), lora_alpha=3.5)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", CONFIG, TENSORS]
    assert (
        json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == "base.safetensors"
    )  # nothing of this computer
    expected = tokens(rekindle.load(made))
    assert torch.equal(tokens(rekindle.load(out, base=str(tmp_path / "base.safetensors"))), expected)
    change(out, base_model_name_or_path=str(tmp_path / "base.safetensors"))
    assert torch.equal(tokens(rekindle.load(out)), expected)
    again = rekindle.export(out, format="safetensors", out=tmp_path / "whole")
    assert torch.equal(tokens(rekindle.load(again.out)), expected)
    assert "| Trained | adapters; the base is frozen |" in (again.out / "README.md").read_text()
    assert main(["export", str(out), "--format", "peft", "--out", str(tmp_path / "second")]) == 0
    assert (tmp_path / "second" / TENSORS).read_bytes() == (out / TENSORS).read_bytes()


def test_lora_in_the_last_blocks_names_its_layers_and_comes_back(tmp_path: Path) -> None:
    made, out = exported(tmp_path, blocks=1)
    config = json.loads((out / CONFIG).read_text())
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([1], "blocks")
    base = tmp_path / "base.safetensors"
    assert torch.equal(tokens(rekindle.load(out, base=str(base))), tokens(rekindle.load(made)))
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(rekindle.load(base).vit), str(out))
    pixels, ours = images(), rekindle.load(made)
    torch.testing.assert_close(ours.forward_features(pixels), theirs.forward_features(pixels), atol=1e-5, rtol=1e-5)


def test_a_base_beside_the_files_is_found(tmp_path: Path) -> None:
    made, out = exported(tmp_path)
    (tmp_path / "base.safetensors").rename(out / "base.safetensors")
    found = rekindle.load(out)
    assert torch.equal(tokens(found), tokens(rekindle.load(made, base=str(out / "base.safetensors"))))


def test_peft_and_we_read_each_others_folders(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = rekindle.load(write_base(tmp_path, VIT))
    made = peft.get_peft_model(
        copy.deepcopy(base.vit), peft.LoraConfig(r=3, target_modules=["attn.qkv"], init_lora_weights=False)
    )
    made.eval().save_pretrained(tmp_path / "theirs")
    with pytest.raises(RequestError, match="base_model_name_or_path is empty, so the base is not known"):
        rekindle.load(tmp_path / "theirs")
    ours = rekindle.load(tmp_path / "theirs", base=str(tmp_path / "base.safetensors"))
    pixels = images()
    torch.testing.assert_close(ours.forward_features(pixels), made.forward_features(pixels), atol=1e-5, rtol=1e-5)
    done = rekindle.export(
        tmp_path / "theirs", base=tmp_path / "base.safetensors", format="peft", out=tmp_path / "ours"
    )
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base.vit), str(done.out)).eval()
    torch.testing.assert_close(read.forward_features(pixels), made.forward_features(pixels), atol=1e-5, rtol=1e-5)


def test_it_is_measured_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, (_, out) = tmp_path / "base.safetensors", exported(tmp_path)
    change(out, base_model_name_or_path=str(base))
    data = write_data(tmp_path / "data")
    asked = ["--data", str(data), "--protocol", "dense-retrieval", "--out"]
    assert main(["evaluate", str(out), *asked, str(tmp_path / "r.json")]) == 0
    assert f"{out}: matched 8 of 8 tensors of LoRA (rank 4), base {base}" in capsys.readouterr().err
    assert main(["compare", str(base), str(out), *asked, str(tmp_path / "c"), "--seeds", "1"]) == 0
    sources = write_images(tmp_path / "images", 2)
    assert main(["extract", str(out), "--images", str(sources), "--size-px", "32", "--out", str(tmp_path / "f")]) == 0


def test_a_run_goes_on_from_it_with_its_adapters(tmp_path: Path) -> None:
    _, out = exported(tmp_path, lora_alpha=3.5)
    change(out, base_model_name_or_path=str(tmp_path / "base.safetensors"))
    sources = write_images(tmp_path / "images", 4)
    result = run(sources, tmp_path / "on", train="adapters", init="pretrained", steps=2, backbone=str(out))
    description = json.loads((result.run / "model.json").read_text())
    options = AdapterOptions.model_validate(description["adapter"])
    assert (options.kind, options.rank, options.lora_alpha) == ("lora", 4, 3.5)
    assert description["base"]["name"] == str(out)
    assert not torch.equal(tokens(rekindle.load(result.run)), tokens(rekindle.load(out)))


def test_the_base_that_is_named_is_the_one_under_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what that one was trained from, with all weights: its updates on those would be another model, without a word."""
    base, sources = write_base(tmp_path, VIT), write_images(tmp_path / "images", 4)
    shared: dict[str, Any] = {"init": "pretrained", "steps": 2}
    whole = run(sources, tmp_path / "whole", train="all", backbone=str(base), **shared).run
    first = run(sources, tmp_path / "first", train="adapters", backbone=str(whole), adapter__kind="lora", **shared).run
    second = run(
        sources, tmp_path / "second", train="adapters", backbone=str(first), adapter__kind="lora", **shared
    ).run
    monkeypatch.chdir(tmp_path)  # where names without a folder lead
    for made in (first, second):
        out = rekindle.export(made, format="peft", out=tmp_path / f"peft-{made.name}").out
        assert json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == "whole"
        assert torch.equal(tokens(rekindle.load(out)), tokens(rekindle.load(made)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": None}, r"base_model_name_or_path is empty.* put its MODEL there"),
        ({"base_model_name_or_path": "gone.safetensors"}, r"stands on the base gone\.safetensors, which could not be"),
        ({"base_model_name_or_path": "vit_smal_patch16_224"}, r"could not be loaded: unknown model .* did you mean"),
        ({"use_dora": True}, r"use_dora = True is not supported; merge it with PEFT"),
        ({"rank_pattern": {"qkv": 2}}, r"rank_pattern = .* is not supported"),
    ],
)
def test_what_cannot_be_read_is_a_wrong_request(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, out = exported(tmp_path)
    change(out, **values)
    with pytest.raises(RequestError, match=message):
        rekindle.load(out)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_updates_that_changed_their_base_are_refused_and_both_ways_out_work(start: str, tmp_path: Path) -> None:
    """Oracle: PEFT's own features. Read as plain LoRA, the updates stand on a base that PEFT has taken them out of."""
    peft = pytest.importorskip("peft")
    base = write_base(tmp_path, VIT)
    vit = rekindle.load(base).vit
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["qkv"], init_lora_weights=start)
    model = peft.get_peft_model(copy.deepcopy(vit), config)
    model.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(pixels)
    model.save_pretrained(tmp_path / "peft")
    change(tmp_path / "peft", base_model_name_or_path=str(base))
    with pytest.raises(
        RequestError, match=f"init_lora_weights = '{start}' changes the base .*merge_and_unload.*path_initial"
    ):
        rekindle.load(tmp_path / "peft")
    change(tmp_path / "first", init_lora_weights=True)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's page on the conversion does
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    change(tmp_path / "plain", base_model_name_or_path=str(base))
    merged = model.merge_and_unload()
    torch.save(merged.state_dict(), tmp_path / "merged.pth")
    for place, arch in ((tmp_path / "plain", None), (tmp_path / "merged.pth", VIT)):
        torch.testing.assert_close(rekindle.load(place, arch=arch)(pixels).sequence, expected, atol=1e-4, rtol=1e-4)


def test_missing_files_are_named(tmp_path: Path) -> None:
    _, out = exported(tmp_path)
    (out / TENSORS).rename(out / "adapter_model.bin")
    with pytest.raises(RequestError, match=r"adapter_model\.safetensors is missing .* safe_serialization=True"):
        rekindle.load(out)
    (out / CONFIG).unlink()
    with pytest.raises(RequestError, match=r"holds neither model\.json \(a run\) nor .* nor adapter_config\.json"):
        rekindle.load(out)


def test_a_register_under_its_updates_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = exported(tmp_path)
    asked = ["--data", str(write_data(tmp_path / "data")), "--network.add-register", "--out", str(tmp_path / "r.json")]
    assert main(["evaluate", str(out), *asked]) == 2
    assert "has adapters, which learned among tokens without a register" in capsys.readouterr().err


def test_only_lora_leaves_as_pefts_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_run(tmp_path, VIT, kind="bias")
    assert main(["export", str(made), "--format", "peft", "--out", str(tmp_path / "out")]) == 2
    assert "cannot hold this model: it has no LoRA" in capsys.readouterr().err
