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
from rekindle.measuring.choosing import choices_of
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
    values = {line["step"]: line["multi-label/choosing mAP"] for line in found}
    assert all("multi-label/mAP" in line for line in found), "the curve of all images stays"
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


@pytest.mark.parametrize("headlines", [[0.3, 0.9, 0.5], [0.3, 0.5, 0.9]])
def test_a_chosen_model_says_what_chose_it(
    headlines: list[float], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of three looks, be it the last one or not: had another been better, it would stand there."""
    found = iter(headlines)
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(found)))
    data, run, watcher = write_data(tmp_path / "data", num_test=8), tmp_path / "run", Recorder()
    request = asked(images, run, probe=("multi-label",), every=3, probe_data=str(data), probe_share=0.25)
    pretrain(resolve({}, request), watcher=watcher)
    best_step = 3 * headlines.index(0.9)
    for folder in (run, run / "best"):
        (choice,) = choices_of(str(folder))
        record = choice.record
        assert (record.protocol, record.split, record.share) == ("multi-label", "val", 0.25)
        assert (record.step, record.looks) == (best_step, 3), "later looks count for the earlier best as well"
        assert (record.items_chosen, record.items_of, len(choice.names)) == (2, 8, 2)
        assert record.data == str(data.resolve())
    if best_step < 6:
        assert choices_of(str(run / "last")) == [], "the last step was simply kept"
    assert any(
        "the step was chosen on 2 of 8 labelled images; `rekindle compare` leaves them out" in text
        for text in watcher.messages
    )


def test_groups_choose_as_a_whole_and_the_record_has_their_rule(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, 0.5))
    data, run = write_data(tmp_path / "data", num_test=8), tmp_path / "run"
    request = asked(images, run, probe=("multi-label",), probe_data=str(data), probe_group_by="every:2")
    pretrain(resolve({}, request))
    (choice,) = choices_of(str(run))
    assert choice.record.group_by == "every:2" and len(choice.names) == 4
    assert all((f"val{2 * k}" in choice.names) == (f"val{2 * k + 1}" in choice.names) for k in range(4))


def test_the_last_step_that_is_simply_kept_has_no_record(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(found)))
    data, run, watcher = write_data(tmp_path / "data"), tmp_path / "run", Recorder()
    request = asked(images, run, probe=("multi-label",), every=3, probe_data=str(data), probe_keep="last")
    pretrain(resolve({}, request), watcher=watcher)
    assert "chosen" not in json.loads((run / "model.json").read_text())
    assert choices_of(str(run)) == [] and len(choices_of(str(run / "best"))) == 1
    assert not any("the step was chosen" in text for text in watcher.messages)


def test_a_stopped_run_keeps_the_number_of_its_looks_and_the_part_that_chooses(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.1, 0.4, 0.2, 0.3, 0.1, 0.4, 0.2, 0.3])  # of the one, and of the other before and after its stop
    monkeypatch.setattr(ModelProbe, "measure", lambda self, backbone: Reading({}, next(found)))
    data = write_data(tmp_path / "data", num_test=6)
    request = {"probe": ("multi-label",), "every": 2, "probe_data": str(data), "engine__checkpoint_steps": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(resolve({}, asked(images, whole, **request)))
    pretrain(resolve({}, asked(images, stopped, **request)), watcher=stop_after(3))
    assert json.loads((stopped / "best_probe.json").read_text())["looked"] == [0, 2]
    pretrain(resolve({}, asked(images, stopped, **request)), resume=True)
    first, second = (choices_of(str(run))[0] for run in (whole, stopped))
    assert first == second and first.record.looks == 4
    assert (whole / "choosing.txt").read_bytes() == (stopped / "choosing.txt").read_bytes()


@pytest.mark.parametrize("before", [{"compared": "other", "looked": [0]}, {}])
def test_headlines_of_other_items_do_not_count_when_a_run_goes_on(before: dict[str, Any], tmp_path: Path) -> None:
    """Of other items, or of a version that did not say of which."""
    folder, watcher = RunFolder(tmp_path), Recorder()
    old = {"step": 0, "headline": 0.9, "last_step": 0, "last": 0.9} | before
    folder.best_probe.write_text(json.dumps(old))
    saved: list[tuple[int, int]] = []
    probe = Probe(lambda: Reading({}, 0.4), lambda step, looks: saved.append((step, looks)), compared="these")
    probe.open(folder, 2, watcher, tensorboard=False)
    assert probe.standing is None and "counted from here on" in watcher.messages[0]
    probe.run(3, folder, watcher)
    probe.close(watcher)
    assert saved == [(3, 1)]


def test_images_that_define_no_headline_choose_nothing_and_it_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelProbe, "_of_those_that_choose", lambda self, outcome: float("nan"))
    run, watcher = tmp_path / "run", Recorder()
    data = write_data(tmp_path / "data")
    pretrain(resolve({}, asked(images, run, probe=("multi-label",), every=6, probe_data=str(data))), watcher=watcher)
    assert any("define no mAP, so no step is the best one" in text for text in watcher.messages)
    assert not (run / "best").exists() and choices_of(str(run)) == []


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
        ({"probe": ("one-shot",), "probe_data": "d"}, "draws its episodes from all .* use --probe-share 1.0"),
    ],
)
def test_probes_that_cannot_be_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        pretrain(resolve({}, asked(images, tmp_path / "run", **change)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "change", "message"),
    [
        (1, {}, r"--probe-share 0.5: the labelled items of the probe are all one \('val0'\)"),
        (4, {"probe_group_by": "evrey:2"}, "--probe-group-by is a rule of --group-by: .*did you mean every"),
        (4, {"probe_group_by": "every:4"}, "--probe-group-by is a rule of --group-by: .*in one group"),
    ],
)
def test_items_that_cannot_be_parted_are_refused_before_anything_is_written(
    count: int, change: dict[str, Any], message: str, images: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", num_test=count)
    request = {"probe": ("multi-label",), "probe_data": str(data)} | change
    with pytest.raises(RequestError, match=message):
        pretrain(resolve({}, asked(images, tmp_path / "run", **request)))
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
    probe = Probe(measure=measure, save_best=lambda step, looks: None)
    probe.open(folder, 0, LoggingWatcher(), tensorboard=False)
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
