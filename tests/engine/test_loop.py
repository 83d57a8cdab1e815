# SPDX-License-Identifier: Apache-2.0
"""S35, and what a run promises about state, failure and stopping."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.decoding import read_image
from rekindle.methods import METHODS
from rekindle.methods.base import LossBreakdown
from tests.engine.running import (
    TINY,
    Recorder,
    assert_same_training,
    checkpoint,
    metrics,
    options,
    run,
    stop_after,
    write_images,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(images, out)
    return out


def test_a_run_leaves_what_the_contract_names(whole: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/last.ckpt", "model.safetensors", "model.json", "run.log"):
        assert (whole / name).is_file(), name
    description = json.loads((whole / "model.json").read_text())
    assert description["method"] == "glare" and description["steps"] == 6
    assert [line["step"] for line in metrics(whole)] == [1, 2, 3, 4, 5, 6]


def test_a_long_first_step_is_told_after_its_first_micro_batch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    for name, limit in {"long": 0.0, "short": 1e6}.items():
        monkeypatch.setattr("rekindle.engine.loop.LONG_STEP_S", limit)
        watcher = Recorder()
        run(images, tmp_path / name, steps=3, engine__micro_batch_size=1, watcher=watcher)
        told.append([m for m in watcher.messages if m.startswith("the first 1 of 4 images took ")])
    assert [len(messages) for messages in told] == [1, 0]  # once, and only where it takes long
    assert "all 3 steps 0:00:" in told[0][0]


@pytest.mark.parametrize(("method", "looks"), [("glare", 1), ("mae", 0)])
def test_what_comes_before_the_first_loss_is_told_where_all_images_are_looked_at(
    method: str, looks: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rekindle.engine.loop.LONG_STEP_S", 0.0)
    watcher = Recorder()
    run(images, tmp_path / "run", **_tiny(method), engine__micro_batch_size=1, watcher=watcher)
    assert len([m for m in watcher.messages if "the teacher looks at all 4 images of a step" in m]) == looks


def test_the_record_says_how_levels_were_scaled(whole: Path) -> None:
    record = json.loads((whole / "sessions.jsonl").read_text().splitlines()[0])
    assert record["decoding"]["16-bit grey"] == "level / 257"
    deep = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    stream = io.BytesIO()
    deep.save(stream, "PNG")
    assert read_image(stream.getvalue())[0].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_stopping_and_resuming_gives_the_numbers_of_never_having_stopped(
    images: Path, whole: Path, tmp_path: Path, stop_at: int
) -> None:
    out, watcher = tmp_path / "run", stop_after(stop_at)
    first = run(images, out, watcher=watcher)
    assert [m for m in watcher.messages if "asked to stop: this step ends first" in m]
    assert not first.is_finished and first.steps == stop_at
    assert not (out / "model.json").exists()
    second = run(images, out, resume=True)
    assert second.is_finished
    assert_same_training(whole, out)
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_number_of_workers_changes_nothing(images: Path, whole: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "run", data__num_workers=2)
    assert_same_training(whole, tmp_path / "run")


def test_another_seed_gives_other_numbers(images: Path, whole: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "run", seed=1)
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(whole)[0]["loss"]


def test_a_metrics_file_with_lines_of_steps_not_kept_is_put_right(images: Path, whole: Path, tmp_path: Path) -> None:
    """A killed run has logged steps after its last checkpoint, and perhaps half a line."""
    out = tmp_path / "run"
    run(images, out, watcher=stop_after(3))
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "loss": 0.0, "speed": {}}\n{"step": 5, "lo')
    run(images, out, resume=True)
    assert_same_training(whole, out)


@pytest.mark.parametrize("balance", ["centre", "sinkhorn"])
def test_micro_batches_of_any_size_train_the_same(balance: str, images: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"network__drop_path": 0.3, "glare__balance": balance}
    changes["optim__eps"] = 1e-4  # with less, AdamW turns the rounding of a gradient near 0 into a whole step
    run(images, tmp_path / "one", **changes)
    run(images, tmp_path / "two", **changes, engine__micro_batch_size=1)
    one, two = checkpoint(tmp_path / "one")["method"], checkpoint(tmp_path / "two")["method"]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*(m for m in METHODS if m not in ("dino", "tec")), "glare sinkhorn", "mmc drawn"])
def test_two_processes_in_parts_equal_one_that_sees_the_step_whole(method: str, images: Path, tmp_path: Path) -> None:
    """DINO is GLARE's first term, and TEC's loss is a mean over images as MAE's is."""
    changes = _tiny(method.split()[0])
    if method == "mmc drawn":
        changes |= {"mmc__max_negatives": 12}
    if method == "glare sinkhorn":
        changes |= {"glare__balance": "sinkhorn", "glare__teacher_temperature": (0.02, 0.02)}
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys, torch
            from pathlib import Path
            torch.set_num_threads(1)
            from tests.engine.running import run
            changes = {"devices": 2, "engine__micro_batch_size": 1, **json.loads(sys.argv[3])}
            run(Path(sys.argv[1]), Path(sys.argv[2]), **changes)
            """
        )
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
    ]
    result = subprocess.run(
        [*launcher, str(script), str(images), str(tmp_path / "two"), json.dumps(changes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    run(images, tmp_path / "one", **changes)
    one, two = checkpoint(tmp_path / "one")["method"], checkpoint(tmp_path / "two")["method"]
    for name, tensor in one.items():
        # class tokens of random weights hardly differ, so normalising by four of them magnifies rounding; a process's own
        # statistics would be off by 2e-3
        torch.testing.assert_close(
            tensor, two[name], atol=2e-4 if method.split()[0] in ("mmc", "mocov3", "sit") else 2e-5, rtol=1e-3
        )
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        names = ("loss", "glob", "reg", "loc1", "loc2") if method.startswith("glare") else ("loss",)
        figures = ("position_accuracy", "used_prototypes", *(n for n in a if n.startswith("divergence_")))
        for name in (*names, *(n for n in figures if n in a)):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name


def _tiny(method: str) -> dict[str, Any]:
    """Changes of the tiny run for a method, whose options replace GLARE's. Steps of AdamW on a gradient near 0 are damped."""
    changes: dict[str, Any] = {"network__drop_path": 0.3, "steps": 2, "optim__eps": 1e-4}
    if method == "glare":
        return changes
    changes |= dict.fromkeys(name for name in TINY if name.startswith("glare."))
    options: dict[str, Any] = {
        "num_prototypes": 32,
        "head_hidden": 32,
        "head_bottleneck": 16,
        "freeze_last_layer_epochs": 0,
    }
    if method in ("udi", "flsl"):
        options |= {"window": 2, "local_window": 1}
    if method == "loca":
        options["mask_ratio"] = 0.5
    if method == "leopart":
        options |= {"queue_length": 8, "queue_per_image": 2, "cells": 3}  # full after the first step
    if method == "fd":
        options = {"drop_path": 0.0}
    if method == "udi":
        changes["backbone"] = TINY["backbone"] + ",registers=1"
    if method in ("mae", "paka"):
        options = (
            {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2} if method == "mae" else {"sample_grid": 3}
        )
    if method in ("mcssl", "mmc", "sit"):
        options |= {"pixel_hidden": 32, "max_block": 0.6, "replace_p": 0.5}
    if method == "mocov3":
        options = {"projector_hidden": 32, "projector_out": 16}
    if method in ("mmc", "msn", "sit"):
        options["head_out"] = 16
        unknown = ("num_prototypes",) if method != "msn" else ()
        options = {
            k: v for k, v in options.items() if k not in ("head_bottleneck", "freeze_last_layer_epochs", *unknown)
        }
    if method in ("mmc", "mocov3", "sit"):
        changes["optim__eps"] = 1e-3
    return changes | {"method": method} | {f"{method}.{name}": value for name, value in options.items()}


def test_fewer_images_than_the_batch_train_with_a_smaller_batch(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(images, tmp_path / "run", batch_size=512, steps=2, watcher=recorder)
    assert result.steps == 2
    assert any("8 images (asked for 512)" in m for m in recorder.messages)


def test_a_loss_that_is_not_finite_stops_before_anything_moves(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rekindle.methods.glare import Glare

    state: dict[str, object] = {}
    original = Glare._part

    def poisoned(self: Glare, *known: Any) -> LossBreakdown:
        found = original(self, *known)
        state.setdefault("calls", 0)
        state["calls"] = int(str(state["calls"])) + 1
        if state["calls"] == 3:
            state["method"] = self
            state["before"] = {n: t.clone() for n, t in self.state_dict().items()}
            nan = float("nan")
            return LossBreakdown(found.total * nan, {**found.terms, "glob": found.terms["glob"] * nan}, found.stats)
        return found

    monkeypatch.setattr(Glare, "_part", poisoned)
    with pytest.raises(
        RekindleError, match=r"loss \(term glob\) is not finite at step 2; nothing.*Images: .*png.*step is 2, and"
    ):
        run(images, tmp_path / "run")
    method, before = state["method"], state["before"]
    assert isinstance(method, Glare) and isinstance(before, dict)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not (tmp_path / "run" / "model.json").exists()
    named = (tmp_path / "run" / "not_finite.txt").read_text().splitlines()
    assert len(named) == 4 and set(named) <= {str(path) for path in images.iterdir()}
    assert checkpoint(tmp_path / "run")["step"] == 2
    monkeypatch.setattr(Glare, "_part", original)
    run(images, tmp_path / "run", resume=True)  # goes on from the last good step as if nothing had been
    assert_same_training(whole, tmp_path / "run")


def test_a_gradient_that_is_not_finite_stops_before_anything_moves(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rekindle.methods.glare import Glare

    original = Glare._part
    seen: dict[str, Glare] = {}

    def poisoned(self: Glare, *known: Any) -> LossBreakdown:
        found = original(self, *known)
        seen["method"] = self
        found.total.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        return found

    monkeypatch.setattr(Glare, "_part", poisoned)
    with pytest.raises(RekindleError, match="gradient is not finite at step 0"):
        run(images, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    for parameter in seen["method"].parameters():
        assert bool(parameter.isfinite().all())


def test_resuming_another_plan_is_refused_with_both_values(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(images, out, watcher=stop_after(2))
    with pytest.raises(RequestError, match=r"steps = 6, and this run has steps = 7"):
        run(images, out, resume=True, steps=7)


def test_adapter_mode_saves_trained_tensors_alone_and_the_base_is_untouched(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapted"
    run(images, out, backbone=str(whole), init="pretrained", train="adapters", adapter__rank=8, steps=2)
    tensors = load_file(out / "model.safetensors")
    assert tensors and all(".adapter." in name for name in tensors)
    assert not any("vit.patch_embed" in name for name in checkpoint(out)["method"])


def test_an_adapted_model_is_adapted_further_and_loads_through_its_whole_lineage(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    import rekindle

    adapted: dict[str, Any] = {"init": "pretrained", "train": "adapters", "adapter__rank": 8, "steps": 2}
    run(images, tmp_path / "one", backbone=str(whole), **adapted)
    run(images, tmp_path / "two", backbone=str(tmp_path / "one"), **adapted)
    second = rekindle.load(tmp_path / "two").state_dict()
    saved = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(second[name], tensor) for name, tensor in saved.items())
    with pytest.raises(RequestError, match="rank = 8, not 4"):
        run(images, tmp_path / "three", backbone=str(tmp_path / "one"), **{**adapted, "adapter__rank": 4})
    with pytest.raises(RequestError, match="this backbone has adapters"):
        run(images, tmp_path / "four", backbone=str(tmp_path / "one"), **{**adapted, "train": "all"})
    assert not (tmp_path / "four").exists()


def test_a_base_that_changed_under_an_adapted_run_is_noticed(images: Path, whole: Path, tmp_path: Path) -> None:
    import shutil

    import rekindle

    base = tmp_path / "base"
    shutil.copytree(whole, base)
    run(images, tmp_path / "one", backbone=str(base), init="pretrained", train="adapters", adapter__rank=8, steps=1)
    shutil.rmtree(base)
    with pytest.raises(RequestError, match="could not be loaded"):
        rekindle.load(tmp_path / "one")
    run(images, base, seed=3)
    with pytest.raises(RequestError, match="was trained on a base with hash"):
        rekindle.load(tmp_path / "one")
    assert rekindle.load(tmp_path / "one", base=str(whole)).depth == 2


def test_adapters_in_full_training_are_counted_saved_and_loaded(images: Path, whole: Path, tmp_path: Path) -> None:
    import rekindle

    plain = run(images, tmp_path / "plain", backbone=str(whole), init="pretrained", steps=1)
    both: dict[str, Any] = {"adapter__in_full_training": True, "adapter__rank": 8}
    counted = run(images, tmp_path / "both", backbone=str(whole), init="pretrained", steps=2, **both)
    assert counted.trained_parameters - plain.trained_parameters == 2 * (2 * 32 * 8 + 8 + 32)
    saved = load_file(tmp_path / "both" / "model.safetensors")
    loaded = rekindle.load(tmp_path / "both").state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_norm_mode_moves_layer_norms_alone(images: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "norm"
    run(images, out, backbone=str(whole), init="pretrained", train="norm", steps=3)
    before, after = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("norm" in name for name in changed)


def test_speed_is_reported_beside_the_numbers(whole: Path) -> None:
    line = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["speed"]["images_per_s"] > 0 and 0 <= line["speed"]["data_wait"] <= 1
    assert {
        "loss",
        "glob",
        "reg",
        "loc1",
        "loc2",
        "lr",
        "grad_norm",
        "trained_norm",
        "momentum",
        "teacher_temperature",
        "entropy_cls",
    } <= line.keys()


def test_options_of_the_tests_are_known(images: Path, tmp_path: Path) -> None:
    assert options(images, tmp_path)["glare"]["num_prototypes"] == 32
