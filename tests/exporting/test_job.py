# SPDX-License-Identifier: Apache-2.0
"""An export is whole, checked and described, or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rekindle
from rekindle.adapters.saved import load_backbone, model_hash
from rekindle.core.errors import RekindleError, RequestError
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.result import EvalResult
from rekindle.evaluation.verdict.judging import Verdict
from rekindle.exporting.card import escape, hub_name
from rekindle.exporting.parity import check_parity
from rekindle.exporting.source import short_name
from rekindle.measuring.comparison import Comparison, Row
from rekindle.networks.tokens import Tokens
from tests.exporting.making import VIT, write_base, write_run

IOU = MeanIou(class_names=["a"])
WRITERS = {
    "timm": "timm_model.tensors_of",
    "hf": "hf_names.tensors_of",
    "mmseg": "mmseg.tensors_of",
    "safetensors": "whole.whole_tensors",
    "onnx": "onnx_model.folded",
}


@pytest.mark.parametrize("format", WRITERS)
def test_a_wrong_tensor_fails_the_export_and_leaves_nothing(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in {"hf": ["transformers"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(format, []):
        pytest.importorskip(package)
    base = write_base(tmp_path, VIT)

    def spoiled(backbone: Any) -> Any:
        copy, _ = load_backbone(base)
        with torch.no_grad():
            copy.vit.blocks[1].mlp.fc2.bias[3] += 0.01
        if format == "onnx":
            return copy.eval()
        return dict((copy if format == "safetensors" else copy.vit).state_dict())

    monkeypatch.setattr(f"rekindle.exporting.{WRITERS[format]}", spoiled)
    (tmp_path / "out").mkdir()
    with pytest.raises(RekindleError, match=r"does not give the original's features.*nothing was kept") as error:
        rekindle.export(base, format=format, out=tmp_path / "out")
    assert error.value.exit_code == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "out"]
    assert not any((tmp_path / "out").iterdir())


def test_not_a_number_and_a_missing_token_are_differences(tmp_path: Path) -> None:
    backbone = rekindle.load(write_base(tmp_path, VIT))

    def broken(pixels: torch.Tensor) -> Tokens:
        tokens = backbone(pixels)
        return Tokens(tokens.cls * torch.nan, tokens.registers, tokens.patches)

    def without(pixels: torch.Tensor) -> Tokens:
        tokens = backbone(pixels)
        return Tokens(None, tokens.registers, tokens.patches)

    with pytest.raises(RekindleError, match="largest difference nan"):
        check_parity(backbone, broken, [(1, 32, 32)])
    with pytest.raises(RekindleError, match=r"cls of shape None, the original \[1, 32\]"):
        check_parity(backbone, without, [(1, 32, 32)])
    assert check_parity(backbone, backbone, [(1, 32, 32)]).difference == 0.0


def test_the_folder_appears_where_there_was_none_or_an_empty_one_and_nowhere_else(tmp_path: Path) -> None:
    base = write_base(tmp_path, VIT)
    done = rekindle.export(base, format="timm", out=tmp_path / "deep" / "new")
    assert os.fspath(done) == str(tmp_path / "deep" / "new")
    assert set(done.files) == {"README.md", "config.json", "factory.json", "model.safetensors"}
    with pytest.raises(RequestError, match="not an empty folder; choose another one"):
        rekindle.export(base, format="timm", out=done)
    with pytest.raises(RequestError, match="not an empty folder"):
        rekindle.export(base, format="timm", out=base.with_name("base.safetensors").parent)
    with pytest.raises(RequestError, match=r"an export is a folder.*without \.onnx"):
        rekindle.export(base, format="onnx", out=tmp_path / "model.onnx")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="is a link"):
        rekindle.export(base, format="timm", out=tmp_path / "link")


def test_requests_that_cannot_be_met_say_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown format 'onx'; did you mean 'onnx'"):
        rekindle.export("x", format="onx", out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"--format is missing \(timm, hf, onnx, mmseg, peft, safetensors\)"):
        rekindle.export("x", format="", out=tmp_path / "out")
    with pytest.raises(RequestError, match="verdit"):
        rekindle.export("x", format="timm", out=tmp_path / "out", verdit="y")
    with pytest.raises(RequestError, match="does not exist"):
        rekindle.export(tmp_path / "absent.pth", format="timm", out=tmp_path / "out")


def test_a_base_that_moved_is_given_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path, VIT, kind="uniadapter")
    moved = (tmp_path / "base.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(RequestError, match="stands on the base"):
        rekindle.export(run, format="safetensors", out=tmp_path / "out")
    assert rekindle.export(run, format="safetensors", out=tmp_path / "out", base=moved).parity.difference == 0.0


def test_the_card_tells_base_training_licence_and_parity_but_no_path(tmp_path: Path) -> None:
    run = write_run(tmp_path, VIT, kind="lora")
    done = rekindle.export(run, format="timm", out=tmp_path / "out")
    text = (done.out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "timm"
    assert {"rekindle", "glare", "lora"} <= set(front["tags"]) and "base_model" not in front
    for told in (
        "| Method | glare |",
        "| Optimizer steps | 7 |",
        "| Adapters | lora, rank = 4 |",
        "| Images | beaches |",
        "| Licence of its weights | apache-2.0 |",
        str(done.parity),
        model_hash(rekindle.load(run)),
        model_hash(rekindle.load(tmp_path / "base.safetensors")),
    ):
        assert told in text
    for file in done.out.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes() and b"secret" not in file.read_bytes()


def test_text_from_files_cannot_become_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path, VIT, kind="lora")
    path = run / "model.json"
    hostile = "x\\n---\\n# <script>alert(1)</script> | [a](https://evil.example) `b`"
    path.write_text(
        path.read_text().replace('"apache-2.0"', f'"{hostile}"').replace('"method": "glare"', f'"method": "{hostile}"')
    )
    done = rekindle.export(run, format="timm", out=tmp_path / "out")
    _, front, body = (done.out / "README.md").read_text().split("---\n", 2)
    tree = yaml.safe_load(front)
    assert tree["license"] == "other" and "\n" not in tree["license_name"]
    for markup in ("<script>", "[a](", "https://", "\n# <", " `b"):
        assert markup not in body.replace("# or, with a timm", "").replace("```python", "").split("## How to load")[0]
    assert escape("# a\nb | c") == "\\# a b \\| c"


@pytest.mark.parametrize(
    ("name", "shown", "hub"),
    [
        ("vit_small_patch16_224.dino", "vit_small_patch16_224.dino", "timm/vit_small_patch16_224.dino"),
        ("hf-hub:facebook/dinov2-small", "hf-hub:facebook/dinov2-small", "facebook/dinov2-small"),
        ("/home/me/x.pth", "x.pth", None),
        ("models/x.safetensors", "x.safetensors", None),
        ("x.pth", "x.pth", None),
        ("x.safetensors", "x.safetensors", None),
        ("C:\\me\\x.pth", "x.pth", None),
    ],
)
def test_names_of_the_hub_are_kept_and_paths_are_cut(name: str, shown: str, hub: str | None) -> None:
    assert short_name(name) == shown and hub_name(name) == hub


def test_the_verdict_is_taken_only_from_a_comparison_of_this_very_model(tmp_path: Path) -> None:
    run = write_run(tmp_path, VIT, kind="lora")
    folder = tmp_path / "compare"
    folder.mkdir()
    (folder / "comparison.json").write_text(_comparison(model_hash(rekindle.load(run))).model_dump_json())
    done = rekindle.export(run, format="mmseg", out=tmp_path / "out", verdict=folder)
    text = (done.out / "README.md").read_text()
    assert "| knn | mIoU | 40.0 | 45.0 | +5.0 points | +1.0 to +9.0 (95 %) | **better** |" in text
    assert (
        "- knn: better: +5.0 points (95 %: +1.0 to +9.0; older rule). The interval was made by the older rule" in text
    )
    assert "11.1" not in text  # the row of the other model
    (folder / "comparison.json").write_text(_comparison("0" * 64).model_dump_json())
    with pytest.raises(RequestError, match="none of which has the tensors of"):
        rekindle.export(run, format="mmseg", out=tmp_path / "other", verdict=folder)
    with pytest.raises(RequestError, match=r"give comparison\.json"):
        rekindle.export(run, format="mmseg", out=tmp_path / "other", verdict=tmp_path / "absent.json")
    with pytest.raises(RequestError, match=r"is not the comparison\.json"):
        rekindle.export(run, format="mmseg", out=tmp_path / "other", verdict=run / "model.json")


def _comparison(content: str) -> Comparison:
    def row(model: str, base: float) -> Row:
        verdict = Verdict(
            verdict="better", difference=0.05, low=0.01, high=0.09, level=0.95, base=base, model=base + 0.05,
            base_std=0.0, model_std=0.0, per_class={},
        )  # fmt: skip
        return Row(protocol="knn", metric="mIoU", score=IOU, model=model, verdict=verdict)

    result = EvalResult(
        protocol="knn", model="runs/mine", model_hash=content, data="d", split="val", seed=0, config={}, fingerprint="f",
        metrics={}, score=IOU, per_item=None, counts={}, software={},
    )  # fmt: skip
    return Comparison(
        base="b",
        data="d",
        split="val",
        seeds=[0],
        rows=[row("runs/mine", 0.4), row("runs/other", 0.1111)],
        results=[result],
    )
