# SPDX-License-Identifier: Apache-2.0
"""What a protocol fine-tuned is a MODEL: it loads, is measured, exported, looked at and trained from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle
from rekindle.adapters.saved import load_backbone, model_hash
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.result import read_result
from tests.engine.running import write_images
from tests.evaluation.pictures import write_classes
from tests.evaluation.toy import save_tiny, write_data

QUICK = {"steps": 2, "warmup_steps": 0, "batch_size": 2, "size_px": 16}
SEGMENTER = QUICK | {"crop_px": 16}
CASES: dict[str, dict[str, Any]] = {
    "finetune": QUICK,
    "fpn": SEGMENTER | {"channels": 8, "head_channels": 8},
    "upernet": SEGMENTER | {"channels": 8},
    "linear-decoder": SEGMENTER,
    "multi-label": {"source": "finetuned", "size_px": 16, "training": {"steps": 2, "warmup_steps": 0, "batch_size": 2}},
}


def data_of(protocol: str, root: Path) -> Path:
    return (write_classes if protocol == "finetune" else write_data)(root / protocol)


def fine_tune(model: str | Path, protocol: str, root: Path, folder: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {protocol.replace("-", "_"): CASES[protocol] | changes}
    rekindle.evaluate(
        model, protocol, data_of(protocol, root), out=str(root / f"{protocol}.json"), save_model=str(folder), **options
    )
    return folder


@pytest.mark.parametrize("protocol", CASES)
def test_what_was_fine_tuned_is_a_model_of_its_own(tmp_path: Path, protocol: str) -> None:
    start = save_tiny(tmp_path / "start")
    folder = fine_tune(start, protocol, tmp_path, tmp_path / "tuned")
    before, after = rekindle.load(start), rekindle.load(folder)
    moved = [n for n, p in after.named_parameters() if not torch.equal(p, dict(before.named_parameters())[n])]
    assert {"vit.patch_embed.proj.weight", "vit.blocks.0.attn.qkv.weight", "vit.blocks.1.mlp.fc2.weight"} <= {*moved}
    told = json.loads((folder / "model.json").read_text())
    assert told["base"]["name"] == str(start) and told["base"]["sha256"] == model_hash(before)
    assert (told["method"], told["train"], told["steps"], told["is_whole"]) == (protocol, "all", 2, True)


def test_figure_4_of_glare_and_table_9_of_tec_can_be_made(tmp_path: Path) -> None:
    """docs/studies.md: attention of a model fine-tuned on segmentation, and TEC from the backbone of a fine-tuned classifier."""
    start, images = save_tiny(tmp_path / "start"), write_images(tmp_path / "images")
    segmenter = fine_tune(start, "fpn", tmp_path, tmp_path / "segmenter")
    look = ["extract", str(segmenter), "--images", str(images), "--out", str(tmp_path / "look"), "--size-px", "16"]
    assert main([*look, "--pictures", "attention"]) == 0
    assert any((tmp_path / "look").rglob("*attention*"))
    classifier = fine_tune(start, "finetune", tmp_path, tmp_path / "classifier")
    tec = ["pretrain", "--images", str(images), "--backbone", str(classifier), "--method", "tec", "--out"]
    tec += [str(tmp_path / "tec"), "--steps", "1", "--batch-size", "2", "--views.global-size-px", "32"]
    assert main([*tec, "--tec.decoder-width", "16", "--tec.decoder-heads", "2", "--tec.blocks-per-group", "1"]) == 0
    assert json.loads((tmp_path / "tec" / "model.json").read_text())["base"]["name"] == str(classifier)
    knn, out = {"size_px": 16, "k": 2}, str(tmp_path / "k.json")
    assert rekindle.evaluate(classifier, "knn", tmp_path / "finetune", knn=knn, out=out).model == str(classifier)
    assert main(["export", str(segmenter), "--format", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert "fine-tuned" in (tmp_path / "timm" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["uniadapter", "lora"])
def test_adapters_are_fine_tuned_and_kept_with_their_base(tmp_path: Path, kind: str) -> None:
    images = write_images(tmp_path / "images")
    words = ["pretrain", "--images", str(images), "--backbone", str(save_tiny(tmp_path / "start")), "--method", "dino"]
    words += ["--adapter.kind", kind, "--adapter.rank", "4", "--out", str(tmp_path / "run"), "--steps", "1"]
    words += [
        "--batch-size",
        "2",
        "--views.global-size-px",
        "32",
        "--views.num-local",
        "0",
        "--dino.num-prototypes",
        "8",
    ]
    assert main(words) == 0
    folder = fine_tune(tmp_path / "run", "finetune", tmp_path, tmp_path / "tuned", steps=3)
    (tmp_path / "start").rename(tmp_path / "gone")  # the folder needs no base
    backbone, message = load_backbone(folder)
    assert "matched" in message
    adapters = [n for n, _ in backbone.named_parameters() if ".adapter." in n]
    assert adapters and all(bool(p.isfinite().all()) for p in backbone.parameters())
    assert read_result(tmp_path / "finetune.json").counts["steps"] == 3


@pytest.mark.parametrize(
    ("protocol", "options", "reason"),
    [
        (
            "knn",
            {},
            "knn leaves no fine-tuned backbone, for it trains none; protocols that may: linear-decoder, fpn, upernet",
        ),
        ("finetune", {"train": "head"}, "finetune.train = head leaves the backbone as it is"),
        ("linear-decoder", {"train_backbone": False}, "train_backbone = false leaves the backbone as it is"),
        ("fpn", {"drop_prefix": True}, "fpn.drop_prefix leaves a network without class token"),
        ("multi-label", {"source": "frozen"}, "multi-label.source = frozen trains a linear layer alone"),
    ],
)
def test_protocols_that_train_no_backbone_refuse_before_they_work(
    tmp_path: Path, protocol: str, options: dict[str, Any], reason: str
) -> None:
    data = (write_classes if protocol in ("knn", "finetune") else write_data)(tmp_path / "data")
    group: dict[str, Any] = CASES.get(protocol, {"size_px": 16, "k": 2}) | options
    asked: dict[str, Any] = {protocol.replace("-", "_"): group}
    with pytest.raises(RequestError, match=reason):
        rekindle.evaluate(
            save_tiny(tmp_path / "start"),
            protocol,
            data,
            out=str(tmp_path / "r.json"),
            save_model=str(tmp_path / "tuned"),
            **asked,
        )
    assert not (tmp_path / "tuned").exists() and not (tmp_path / "r.json").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start")
    with pytest.raises(RequestError, match="is not an empty folder; choose another one, or clear it"):
        fine_tune(start, "finetune", tmp_path, start)


def test_the_number_is_the_same_with_and_without_keeping(tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start")
    found = []
    for name in ("", str(tmp_path / "tuned")):
        options: dict[str, Any] = {"out": str(tmp_path / "r.json"), "save_model": name, "finetune": CASES["finetune"]}
        found.append(rekindle.evaluate(start, "finetune", data_of("finetune", tmp_path), **options))
    assert found[0].metrics == found[1].metrics and found[0].fingerprint == found[1].fingerprint
