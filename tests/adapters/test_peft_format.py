# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.peft_folder import CONFIG, TENSORS
from rekindle.adapters.peft_format import read_peft, write_peft
from rekindle.core.errors import RequestError
from tests.adapters.networks import GATED, PLAIN, ROTARY, ROTARY_GATED, adapted, adapter_parameters, build, images

ALL: dict[str, Any] = {"lora_targets": ("qkv", "proj", "fc1", "fc2"), "lora_alpha": 3.5}
CASES = [(PLAIN, {}), (PLAIN, ALL), (GATED, ALL), (ROTARY, ALL)]


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_what_is_written_is_read(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    backbone, other = adapted("lora", name, **extra), build(name)
    write_peft(tmp_path / "lora", backbone, "vit_tiny")
    options = read_peft(tmp_path / "lora", other)
    assert options == AdapterOptions(kind="lora", **({"rank": 4} | extra))
    assert torch.equal(other(images()).sequence, backbone(images()).sequence)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == adapter_parameters(backbone).keys()


def test_names_in_the_file_are_pefts(tmp_path: Path) -> None:
    write_peft(tmp_path, adapted("lora"), "vit_tiny")
    maps = [
        f"base_model.model.blocks.{i}.attn.{m}.lora_{half}.weight"
        for i in (0, 1)
        for m in ("proj", "qkv")
        for half in "AB"
    ]
    assert sorted(load_file(tmp_path / TENSORS)) == maps
    config = json.loads((tmp_path / CONFIG).read_text())
    wanted = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "vit_tiny"}
    assert wanted.items() <= config.items() and config["target_modules"] == ["attn.proj", "attn.qkv"]


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_peft_itself_reads_the_folder(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone, timm_model = adapted("lora", name, **extra), build(name).vit
    write_peft(tmp_path, backbone, "vit_tiny")
    model = peft.PeftModel.from_pretrained(timm_model, str(tmp_path)).eval()
    pixels = images()
    expected = backbone.forward_features(pixels)
    assert not torch.allclose(build(name).forward_features(pixels), expected, atol=1e-3)
    torch.testing.assert_close(model.forward_features(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.merge_and_unload().forward_features(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [["attn.qkv"], r".*\.attn\.(qkv|proj)", ["mlp.fc1", "mlp.fc2"]])
def test_what_peft_writes_is_read(targets: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(4)
    model = peft.get_peft_model(copy.deepcopy(build().vit), config).eval()
    model.save_pretrained(tmp_path)
    backbone = build()
    options = read_peft(tmp_path, backbone)
    assert (options.rank, options.lora_alpha) == (3, 7.0)
    torch.testing.assert_close(
        backbone.forward_features(images()), model.forward_features(images()), atol=1e-5, rtol=1e-5
    )


def test_maps_that_the_file_leaves_out_keep_a_zero_update(tmp_path: Path) -> None:
    backbone, other = adapted("lora"), build()
    write_peft(tmp_path, backbone, "vit_tiny")
    save_file(
        {n: t for n, t in load_file(tmp_path / TENSORS).items() if "blocks.1.attn.qkv" not in n}, tmp_path / TENSORS
    )
    read_peft(tmp_path, other)
    with torch.no_grad():
        backbone.vit.blocks[1].adapter.attn.qkv.lora_B.weight.zero_()
    assert torch.equal(other(images()).sequence, backbone(images()).sequence)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"this backbone has none; train with adapter\.kind = lora"):
        write_peft(tmp_path, adapted("bias"), "base")
    with pytest.raises(RequestError, match=r"PEFT would ignore the update of attn\.qkv .*; write fold\(backbone\)"):
        write_peft(tmp_path, adapted("lora", ROTARY_GATED), "base")
    assert not list(tmp_path.iterdir())
    write_peft(tmp_path, adapted("lora", ROTARY_GATED, lora_targets=("proj", "fc1")), "base")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = IA3 is not supported"),
        (
            {"use_dora": True},
            r"use_dora = True is not supported; merge it with PEFT .*, or train with use_dora = False",
        ),
        ({"use_rslora": True}, "use_rslora = True is not supported"),
        ({"rank_pattern": {"qkv": 3}}, "rank_pattern = .* is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"r": 512}, r"adapter_config\.json: rank = 512 is not low"),
        ({"lora_alpha": 0}, r"adapter_config\.json: lora_alpha = 0: input should be greater than 0"),
        ({"r": 3}, r"does not fit this backbone \(first: base_model\.model\.blocks\.0"),
    ],
)
def test_other_peft_files_are_refused_by_name(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_peft(tmp_path, adapted("lora"), "base")
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | changed))
    with pytest.raises(RequestError, match=message):
        read_peft(tmp_path, build())


def test_missing_foreign_and_double_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"adapter_config\.json cannot be read"):
        read_peft(tmp_path, build())
    write_peft(tmp_path, adapted("lora"), "base")
    with pytest.raises(RequestError, match="this backbone has adapters already; read"):
        read_peft(tmp_path, adapted("lora"))
    save_file({"base_model.model.head.lora_A.weight": torch.zeros(4, 32)}, tmp_path / TENSORS)
    with pytest.raises(RequestError, match="updates none of the maps"):
        read_peft(tmp_path, build())
    (tmp_path / TENSORS).write_bytes(b"no")
    with pytest.raises(RequestError, match="missing or damaged"):
        read_peft(tmp_path, build())
