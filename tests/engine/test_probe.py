# SPDX-License-Identifier: Apache-2.0
"""Probes while training: they change nothing, are written down, and the best step is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rekindle
from rekindle.adapters.saved import model_hash
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import nested
from rekindle.engine.probe import Probe, Reading
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import LoggingWatcher
from rekindle.pretraining.options import resolve
from rekindle.pretraining.probes import ModelProbe, collapse_alarms
from rekindle.pretraining.run import pretrain
from tests.engine.running import TINY, Recorder, assert_same_training, stop_after, write_images
from tests.evaluation.toy import write_data


def asked(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    flat = TINY | {"images": str(images), "out": str(out)}
    return nested(flat | {k.replace("__", "."): v for k, v in changes.items()})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "images"
    write_images(folder)
    return folder


def test_health_is_measured_first_last_and_in_between_and_changes_nothing(images: Path, tmp_path: Path) -> None:
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    pretrain(resolve({}, asked(images, plain)))
    pretrain(resolve({}, asked(images, probed, probe=("health",), every=2, probe_images=4)))
    assert_same_training(plain, probed)
    found = lines(probed)
    assert [line["step"] for line in found] == [0, 2, 4, 6]
    assert found[0]["health/Gram drift"] == 0.0
    assert found[-1]["health/Gram drift"] > 0.0
    assert found[-1]["health/RankMe patch (dimensions)"] > 1.0
    assert not (probed / "best").exists()


def test_a_protocol_remembers_the_best_step_as_a_model(images: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    request = asked(images, tmp_path / "run", probe=("multi-label",), every=3, probe_data=str(data), train="all")
    watcher = Recorder()
    pretrain(resolve({}, request), watcher=watcher)
    found = lines(tmp_path / "run")
    values = {line["step"]: line["multi-label/mAP"] for line in found}
    best = json.loads((tmp_path / "run" / "best_probe.json").read_text())
    assert best["headline"] == max(values.values()) == values[best["step"]]
    assert any(f"best probe was at step {best['step']}" in text for text in watcher.messages)
    kept, left = rekindle.load(tmp_path / "run" / "best"), rekindle.load(tmp_path / "run")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    is_best = best["headline"] > values[6] or best["step"] == 6
    assert torch.equal(kept.forward_features(pixels), left.forward_features(pixels)) == is_best


@pytest.mark.parametrize(("keep", "left"), [("best", 3), ("last", 6)])
def test_a_run_whose_probe_gets_worse_leaves_its_best_step(
    keep: str, left: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headlines = iter([0.3, 0.9, 0.5])  # at steps 0, 3 and 6
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(headlines)))
    data, run, watcher = write_data(tmp_path / "data"), tmp_path / "run", Recorder()
    request = asked(images, run, probe=("multi-label",), every=3, probe_data=str(data), probe_keep=keep)
    result = pretrain(resolve({}, request), watcher=watcher)
    described = json.loads((run / "model.json").read_text())
    assert described["steps"] == left
    assert result.model_hash == described["model_hash"] == model_hash(rekindle.load(run))
    assert any("better at step 3 (0.9) than at the end (0.5)" in text for text in watcher.messages) == (keep == "best")
    assert (run / "last").exists() == (keep == "best")
    if keep == "best":
        assert json.loads((run / "last" / "model.json").read_text())["steps"] == 6
        assert (run / "model.safetensors").read_bytes() == (run / "best" / "model.safetensors").read_bytes()


def test_a_stopped_run_goes_on_with_its_probes(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    request = asked(images, run, probe=("health",), every=2, probe_images=4)
    pretrain(resolve({}, request), watcher=stop_after(3))
    pretrain(resolve({}, request), resume=True)
    assert [line["step"] for line in lines(run)] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": ("helth",)}, "helth"),
        ({"probe": ("dense-retrieval",)}, "--probe dense-retrieval needs labelled data: give --probe-data"),
    ],
)
def test_probes_that_cannot_be_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        pretrain(resolve({}, asked(images, tmp_path / "run", **change)))
    assert not (tmp_path / "run").exists()


def test_without_a_number_of_steps_a_probe_waits_until_it_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("rekindle.engine.probe.time.monotonic", lambda: now[0])

    def measure() -> Reading:
        now[0] += 4.0
        return Reading({"x": 1.0})

    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    probe = Probe(measure=measure, save_best=lambda step: None)
    probe.open(folder, 0, tensorboard=False)
    probe.run(0, folder, LoggingWatcher())
    due = []
    for step in range(1, 201):
        now[0] += 1.0
        if probe.is_due(step, 1000):
            due.append(step)
            probe.run(step, folder, LoggingWatcher())
    probe.close(LoggingWatcher())
    assert due == [46, 92, 138, 184]  # four seconds are 8 % of fifty
    assert probe.is_due(1000, 1000)


def test_collapse_is_told_with_what_to_change() -> None:
    first = {"RankMe image (dimensions)": 20.0, "RankMe patch (dimensions)": 40.0, "attention spread": 0.8}
    assert collapse_alarms(first, first) == []
    fallen = first | {"RankMe patch (dimensions)": 15.0, "attention spread": 0.995}
    alarms = collapse_alarms(fallen, first)
    assert len(alarms) == 2
    assert "rank of the patch features" in alarms[0] and "--optim.lr-per-256" in alarms[0]
    assert "attends to all patches alike" in alarms[1]
