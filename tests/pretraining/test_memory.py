# SPDX-License-Identifier: Apache-2.0
"""What a run takes, and advice that holds when it is followed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.cli.arguments import parse_run
from rekindle.core.errors import RequestError
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.packed_maps import pack_trunk
from rekindle.pretraining import advice as advising
from rekindle.pretraining.advice import Advice, advise, memory_asked
from rekindle.pretraining.costs import Head, Trunk
from rekindle.pretraining.memory import Setting, Sizes, fits_into, memory_of
from rekindle.pretraining.network_sizes import trunk_of, vit_without_weights
from rekindle.pretraining.options import PretrainOptions, resolve
from tests.engine.running import write_images

TABLE = Path(__file__).parents[2] / "results" / "performance" / "memory-table.json"
LARGE = Sizes(Trunk(1024, 24, 16, 4096, 14, rank=64), 2_000_000, Head(1024), device="gpu")


def _advice(*arguments: str, gib: float | None) -> Advice:
    return advise(parse_run(arguments, program="plan")[0], None if gib is None else gib * 2**30)


def test_every_counted_cell_is_met_within_a_seventh(monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, object] = {}

    def once(options: PretrainOptions) -> object:
        if options.backbone not in built:
            built[options.backbone] = vit_without_weights(options)
        return built[options.backbone]

    monkeypatch.setattr(advising, "vit_without_weights", once)
    models = json.loads(TABLE.read_text())["models"]
    cells = {(m, v, s): cell for m, views in models.items() for v, of in views.items() for s, cell in of.items()}
    counted = {name: cell for name, cell in cells.items() if "counted_mib" in cell}
    assert {model for model, *_ in counted} == {"ViT-S", "ViT-B"}
    assert len(counted) == 20 and len(cells) == 40
    for name, cell in counted.items():
        now = advise(resolve({}, cell["options"]), 1.0).as_asked.memory.tensors / 2**20
        assert now == pytest.approx(cell["tensor_mib"], rel=0.01), name
        assert now == pytest.approx(cell["counted_mib"], rel=0.15), name


def test_every_measure_takes_memory_off() -> None:
    plain = Setting(is_bf16=True, micro_batch=8, batch=8)
    total = memory_of(LARGE, plain).total
    for setting in (
        *(replace(plain, trunk_bits=bits) for bits in (16, 8, 4)),
        replace(plain, recompute=True),
        replace(plain, micro_batch=4),
    ):
        assert memory_of(LARGE, setting).total < total
    packed = [memory_of(LARGE, replace(plain, trunk_bits=bits)).trunk for bits in (16, 8, 4)]
    assert packed == sorted(packed, reverse=True)


def test_adapters_in_the_last_blocks_keep_nothing_before_them() -> None:
    last = replace(LARGE, trunk=replace(LARGE.trunk, trained_blocks=6))
    whole, part = (memory_of(sizes, Setting(is_bf16=True, micro_batch=8)) for sizes in (LARGE, last))
    rows = memory_of(replace(LARGE, trunk=replace(LARGE.trunk, trained_blocks=0)), Setting(is_bf16=True, micro_batch=8))
    assert part.activations - rows.activations == pytest.approx((whole.activations - rows.activations) / 4)
    assert part.trained < whole.trained and part.trunk == whole.trunk


def test_sets_come_from_the_cheapest_on_with_the_largest_micro_batch_that_fits() -> None:
    sets = fits_into(LARGE, Setting(is_bf16=True, micro_batch=64, batch=64), 4.5 * 2**30, may_pack=True)
    measures = [(one.setting.trunk_bits, one.setting.recompute) for one in sets]
    assert measures == [(None, False), (16, False), (8, False), (8, True), (4, False), (4, True)]
    for one in sets:
        assert one.fits == (one.memory.total <= 4.5 * 2**30)
        if one.fits and one.setting.micro_batch < 64:
            twice = replace(one.setting, micro_batch=2 * one.setting.micro_batch)
            assert memory_of(LARGE, twice).total > 4.5 * 2**30
    assert not any(one.setting.trunk_bits for one in fits_into(LARGE, Setting(), 1.0, may_pack=False))


@pytest.mark.parametrize("gib", [1.5, 8.0])
def test_advice_that_is_followed_fits(gib: float) -> None:
    asked = [
        "--backbone",
        "vit_large_patch14_dinov2",
        "--accelerator",
        "gpu",
        "--batch-size",
        "32",
        "--adapter.rank",
        "64",
    ]
    found = _advice(*asked, gib=gib)
    assert found.proposal is not None
    again = _advice(*asked, *found.proposal.setting.arguments(), gib=gib)
    assert again.as_asked.setting == found.proposal.setting
    assert again.as_asked.fits and again.as_asked.memory.total <= gib * 2**30


def test_the_less_there_is_the_dearer_the_set() -> None:
    places = []
    for gib in (16.0, 2.5, 1.8, 1.4):
        sets = fits_into(LARGE, Setting(is_bf16=True, micro_batch=32, batch=32), gib * 2**30, may_pack=True)
        places.append([one.fits for one in sets].index(True))
    assert places[0] == 0 and places == sorted(set(places))
    assert not any(one.fits for one in fits_into(LARGE, Setting(), 2**29, may_pack=True))


@pytest.mark.parametrize(
    ("name", "width", "depth", "mlp_maps"),
    [("vit_huge_plus_patch16_dinov3", 1280, 32, 3), ("vit:width=64,depth=3,heads=2,patch=8,img=32", 64, 3, 2)],
)
def test_sizes_are_told_without_weights(name: str, width: int, depth: int, mlp_maps: int) -> None:
    options = resolve({}, {"backbone": name}).options
    vit = vit_without_weights(options)
    assert {p.device.type for p in vit.parameters()} == {"meta"}
    trunk = trunk_of(vit, options)
    assert (trunk.width, trunk.depth, trunk.mlp_maps) == (width, depth, mlp_maps)


def test_a_folder_tells_by_its_configuration(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "mlp_ratio": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "dinov2"}))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    assert _advice("--backbone", str(tmp_path), gib=8).network == "2 blocks of width 64, patches of 14 px"
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "dinov2"}))
    with pytest.raises(RequestError, match="does not give the sizes of a plain ViT"):
        _advice("--backbone", str(tmp_path), gib=8)


def test_packed_blocks_have_the_same_sizes() -> None:
    options = resolve({}, {}).options
    backbone, _ = create_backbone("vit:width=64,depth=2,heads=2,patch=8,img=32", NetworkOptions(), init="random")
    before = trunk_of(backbone.vit, options)
    pack_trunk(backbone.requires_grad_(False), 4)
    assert trunk_of(backbone.vit, options) == before


def test_the_command_prints_options_that_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--backbone", "vit_small_patch16_224.dino", "--accelerator", "gpu", "--memory-gib", "2"]
    assert main([*arguments, "--batch-size", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--batch-size", "8"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("options"))
    typed = shlex.split(line.removeprefix("options"))
    assert typed == told["proposal"]["options"]
    assert told["proposal"]["total_bytes"] <= told["memory_bytes"] == 2 * 2**30
    assert main([*arguments[:-1], "0.1"]) == 0
    assert "fits     nothing: 4-bit trunk, micro-batch 1, recomputation takes" in capsys.readouterr().out


def test_a_run_that_does_not_fit_into_what_is_free_does_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    monkeypatch.setattr(advising, "free_bytes", lambda: 2**28)
    arguments = ["plan", "--images", str(images), "--backbone", "vit_large_patch14_dinov2", "--accelerator", "cpu"]
    assert main([*arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["proposal"] is None
    assert "does not fit into free memory, so no step is done" in shown.err


def test_wrong_sizes_and_contradictions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory_asked("free") is None and memory_asked("1.5") == 1.5 * 2**30
    for text in ("eight", "-1", "0", "nan", "inf"):
        with pytest.raises(RequestError, match=r"--memory-gib .*: give a size in GiB above 0"):
            memory_asked(text)
    assert main(["plan", "--backbone", "vit_small_patch16_224", "--memory-gib", "8", "--measure", "2"]) == 2
    assert "there is nothing to --measure" in capsys.readouterr().err
    with pytest.raises(RequestError, match="would download it"):
        _advice("--backbone", "hf-hub:owner/name", gib=8)
    with pytest.raises(RequestError, match="--backbone is missing"):
        _advice(gib=8)
    with pytest.raises(RequestError, match="use --train adapters"):
        _advice("--backbone", "vit_small_patch16_224", "--train", "all", "--engine.trunk-bits", "8", gib=8)
