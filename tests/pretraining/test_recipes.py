# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rekindle.cli import main
from rekindle.core.progress import Progress
from rekindle.core.schedules import cosine
from rekindle.demo.story import BASE
from rekindle.engine.watcher import LoggingWatcher
from rekindle.methods import METHODS
from rekindle.pretraining.options import Resolved, resolve
from rekindle.pretraining.recipes import with_recipe, with_view_sizes
from rekindle.pretraining.run import prepare
from tests.engine.running import write_images


def _filled(num_images: int, **asked: Any) -> Resolved:
    return with_recipe(resolve({}, {"recipe": "full", **asked}), num_images)


def test_more_images_have_more_steps_larger_batches_and_more_prototypes() -> None:
    runs = [_filled(n).options for n in (300, 500, 2_000, 5_000, 20_000)]
    for values in ([r.steps or 0 for r in runs], [r.batch_size for r in runs]):
        assert values == sorted(set(values))
    assert [r.glare.num_prototypes for r in runs] == [1024, 1024, 2048, 4096, 8192]  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_images", [12, 500, 2_000, 5_000, 20_000])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_for_every_size(method: str, num_images: int) -> None:
    filled = _filled(num_images, method=method)
    assert filled.options.optim.warmup_epochs > 0
    assert set(filled.reasons) == {n for n, source in filled.sources.items() if source == "recipe"}


@pytest.mark.parametrize("num_images", [500, 2_000, 20_000])
def test_the_teacher_really_moves(num_images: int) -> None:
    """The product of the momenta over the run is the share that it holds of its first weights."""
    filled = _filled(num_images)
    steps, momentum = filled.options.steps or 0, filled.options.glare.momentum  # type: ignore[attr-defined]
    held = sum(math.log(cosine(Progress(step, steps), *momentum)) for step in range(steps))
    assert math.exp(held) == pytest.approx(0.01, rel=0.2)


def test_what_is_asked_for_stays_and_the_rest_follows_it() -> None:
    filled = _filled(2_000, steps=300, batch_size=32, optim={"lr_per_256": 1e-3}, glare={"num_prototypes": 64})
    options = filled.options
    assert (options.steps, options.batch_size, options.optim.lr_per_256) == (300, 32, 1e-3)
    assert options.glare.num_prototypes == 64  # type: ignore[attr-defined]
    assert options.optim.warmup_epochs == pytest.approx(30 / (2_000 // 32), rel=1e-3)
    assert filled.sources["steps"] == "asked" and filled.sources["glare.momentum"] == "recipe"
    assert _filled(2_000, epochs=3).options.steps is None


@pytest.mark.parametrize(
    ("patch", "large", "small"), [(14, 224, 98), (16, 224, 96), (8, 224, 96), (32, 224, 96), (30, 210, 90)]
)
def test_sizes_of_views_that_nobody_set_follow_the_patch(patch: int, large: int, small: int) -> None:
    filled = with_view_sizes(_filled(300), patch)
    views = filled.options.views
    assert (views.global_size_px, views.local_size_px) == (large, small)
    assert (filled.sources["views.local_size_px"] == "backbone") == (small != 96)
    assert ("views.local_size_px" in filled.reasons) == (small != 96)


def test_sizes_of_views_that_were_asked_for_stay() -> None:
    filled = with_view_sizes(_filled(300, views={"local_size_px": 96}), 14)
    assert filled.options.views.local_size_px == 96 and filled.sources["views.local_size_px"] == "asked"
    filled = with_view_sizes(resolve({"views": {"local_size_px": 96}}, {}), 14)
    assert filled.options.views.local_size_px == 96 and filled.sources["views.local_size_px"] == "file"


@pytest.mark.parametrize(
    ("asked", "is_gpu", "short"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"accelerator": "cpu"}, True, True),
        ({"accelerator": "gpu"}, False, False),
        ({"recipe": "full"}, False, False),
        ({"recipe": "short"}, True, True),
        ({"recipe": "short", "method": "dino", "train": "all"}, True, True),
        ({"method": "dino"}, False, False),
        ({"train": "all"}, False, False),
    ],
)
def test_the_short_recipe_is_for_what_it_was_measured_with_on_a_cpu_or_who_asks(
    asked: dict[str, Any], is_gpu: bool, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_gpu)
    resolved = resolve({}, asked)
    filled = with_recipe(resolved, 300)
    options = filled.options
    assert (options.views.global_size_px == 112) == short and (options.batch_size == 32) != short
    head = getattr(options, options.method)
    assert (head.head_hidden, head.head_bottleneck) == ((512, 128) if short else (2048, 256))
    rate = 5e-5 if options.train == "all" else 2e-3 if short else 5e-4
    assert options.optim.lr_per_256 == rate and (filled.sources["views.num_local"] == "recipe") == short
    beside_others = with_recipe(resolved, 300, alike=False).options
    assert (beside_others.views.global_size_px == 112) == (asked.get("recipe") == "short")


@pytest.mark.parametrize("asked", [{"num_regions": 4}, {"region_start": "random"}, {"regional_weight": 1.0}])
def test_who_sets_something_of_regions_has_them(asked: dict[str, object]) -> None:
    plain = _filled(300, recipe="short")
    assert plain.options.glare.regional_weight == 0 and "regions" in plain.reasons["glare.regional_weight"]  # type: ignore[attr-defined]
    assert _filled(300, recipe="short", glare=asked).options.glare.regional_weight == 1  # type: ignore[attr-defined]
    assert _filled(300).options.glare.regional_weight == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "is_told"), [({}, True), ({"recipe": "full"}, False), ({"views": {"global_size_px": 64}}, False)]
)
def test_a_run_of_the_short_recipe_says_so_and_how_to_have_the_full_one(
    asked: dict[str, Any], is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = str(write_images(tmp_path / "images"))
    common = {"images": images, "backbone": str(BASE), "accelerator": "cpu", "out": str(tmp_path / "run")}
    with caplog.at_level(logging.INFO):
        prepare(resolve({}, common | asked), LoggingWatcher())
    told = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("recipe: short") and "--recipe full" in line for line in told) == is_told


@pytest.mark.parametrize(
    ("patch", "large", "small"), [(14, 112, 56), (16, 112, 64), (8, 112, 56), (32, 128, 64), (30, 120, 60)]
)
def test_small_views_of_the_short_recipe_follow_the_patch(patch: int, large: int, small: int) -> None:
    views = with_view_sizes(_filled(300, recipe="short"), patch).options.views
    assert (views.global_size_px, views.local_size_px) == (large, small)


@pytest.mark.parametrize("images", [True, False])
def test_config_tells_the_sizes_that_follow_the_backbone(
    images: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--images", str(write_images(tmp_path / "images")), "--recipe", "full"] if images else []
    for backbone in ("vit:width=32,depth=1,heads=2,patch=14,img=56", "vit_small_patch14_dinov2.lvd142m"):
        assert main(["config", "--backbone", backbone, *source, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["views.local_size_px"]
        assert (found["value"], found["source"]) == (98, "backbone") and "14 px" in found["why"]


def test_few_images_get_sharp_balanced_targets_and_narrow_adapters_unless_something_else_is_asked_for() -> None:
    few, many = _filled(300).options, _filled(2_000).options
    assert few.glare.balance == "sinkhorn" and few.glare.teacher_temperature == (0.01, 0.01)  # type: ignore[attr-defined]
    assert few.glare.norm_last_layer and not many.glare.norm_last_layer  # type: ignore[attr-defined]
    assert many.glare.balance == "centre" and many.glare.teacher_temperature == (0.04, 0.04)  # type: ignore[attr-defined]
    assert (few.adapter.rank, many.adapter.rank) == (64, None)
    assert _filled(300, adapter={"rank": 16}).options.adapter.rank == 16
    short = _filled(20_000, recipe="short").options
    assert (short.adapter.rank, short.glare.balance) == (64, "sinkhorn")  # type: ignore[attr-defined]
    assert "adapter.rank" not in _filled(300, adapter={"kind": "lora"}).reasons
    assert "adapter.rank" not in _filled(300, train="all").reasons
    warm = _filled(300, glare={"teacher_temperature": (0.05, 0.05)}).options.glare  # type: ignore[attr-defined]
    assert warm.balance == "centre" and not warm.norm_last_layer and warm.teacher_temperature == (0.05, 0.05)
    balanced = _filled(300, glare={"balance": "sinkhorn"}).options.glare  # type: ignore[attr-defined]
    assert balanced.teacher_temperature == (0.04, 0.04)
    assert _filled(300, method="dino").options.dino.teacher_temperature == (0.04, 0.04)  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [{"recipe": "paper"}, {"init": "random", "train": "all"}])
def test_the_papers_recipe_and_training_from_scratch_are_left_alone(asked: dict[str, Any]) -> None:
    filled, plain = with_recipe(resolve({}, asked), 700), resolve({}, asked)
    assert filled.options.model_dump() == plain.options.model_dump() and not filled.reasons


@pytest.mark.parametrize("asked", [{"recipe": "paper"}, {"init": "random", "train": "all"}])
@pytest.mark.parametrize("method", METHODS)
def test_no_head_goes_ahead_of_the_backbone_in_a_paper(method: str, asked: dict[str, Any]) -> None:
    for train in ("adapters", "all", "norm"):
        resolved = resolve({}, {"method": method, "train": train, **asked})
        assert resolved.options.optim.head_warmup == 0.0
    kept = resolve({}, {"method": method, **asked, "optim": {"head_warmup": 0.2}})
    assert kept.options.optim.head_warmup == 0.2 and kept.sources["optim.head_warmup"] == "asked"
    assert resolve({"recipe": "paper"}, {"method": "glare"}).options.optim.head_warmup == 0.0
    assert resolve({}, {"method": "glare"}).options.optim.head_warmup == 0.1


def test_the_command_line_and_a_run_file_name_the_recipe_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("recipe: paper\n")
    for words in (["--recipe", "paper"], ["--recipe=paper"], [str(tmp_path / "run.yaml")]):
        assert main(["config", *words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["optim.head_warmup"]
        assert told == {"value": 0.0, "source": "paper"}


def test_a_whole_backbone_gets_a_smaller_rate_than_adapters() -> None:
    rates = [_filled(500, train=train).options.optim.lr_per_256 for train in ("adapters", "all")]
    assert rates[1] <= rates[0] / 5
    assert "adapter.scale" not in _filled(500, train="all").reasons
    assert "adapter.scale" not in _filled(500, adapter={"kind": "lora"}).reasons


def test_adapters_of_a_run_are_trained_on_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"adapter": {"kind": "uniadapter", "rank": 8, "scale": 0.3}}))
    filled = _filled(500, backbone=str(tmp_path))
    assert (filled.options.adapter.rank, filled.options.adapter.scale) == (8, 0.3)
    assert filled.sources["adapter.rank"] == "base" and "adapters of" in filled.reasons["adapter.rank"]
    assert _filled(500, backbone=str(tmp_path), adapter={"rank": 4}).options.adapter.rank == 4


def test_config_says_what_was_chosen_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(3):
        (tmp_path / f"{place}.png").write_bytes(b"not read")
    assert main(["config", "--images", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steps"]["source"] == "recipe" and "3 images" in values["steps"]["why"]
    assert main(["config", "--images", str(tmp_path)]) == 0
    assert "glare.momentum" in (shown := capsys.readouterr().out) and "of its first weights" in shown
