# SPDX-License-Identifier: Apache-2.0
"""`rekindle study` on miniature data, and how a study reads a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import checked
from rekindle.engine.watcher import StepReport
from rekindle.evaluation.scores.result import read_result
from rekindle.evaluation.verdict.judging import Words
from rekindle.matrix.adapters_off import compared
from rekindle.matrix.grid import read_grid
from rekindle.matrix.study import Curve, Point, _forgotten, by_share, run_study
from rekindle.matrix.study_options import StudyOptions, study_grid
from rekindle.measuring.options import with_protocols
from tests.engine.running import Recorder, write_images
from tests.evaluation.toy import save_tiny, tiny_backbone, write_data
from tests.matrix.making import COMMON

QUICK = ["--protocol", "linear-seg", "--linear-seg.size-px", "16", "--linear-seg.steps", "4"]
QUICK += ["--linear-seg.warmup-steps", "1", "--evaluation-seeds", "1", "--resamples", "100", "--worst-images", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_tiny(folder / "base")
    write_images(folder / "images", 8)
    write_data(folder / "data")
    write_data(folder / "far", num_train=4, num_test=2)
    (folder / "run.yaml").write_text(yaml.safe_dump({k: v for k, v in COMMON.items() if k not in ("steps", "dino")}))
    return folder


def _words(folder: Path, kind: str, out: str, *more: str) -> list[str]:
    request = ["study", kind, str(folder / "base"), "--data", str(folder / "data"), "--out", str(folder / out)]
    return [*request, *QUICK, *more]


def _training(folder: Path) -> list[str]:
    return ["--images", str(folder / "images"), "--config", str(folder / "run.yaml"), "--steps", "3"]


@pytest.fixture(scope="module")
def forgetting(folder: Path) -> Path:
    """A study of forgetting that was done."""
    asked = _words(folder, "forgetting", "forgetting", "--tests", f"far={folder / 'far'}", *_training(folder))
    assert main(asked) == 0
    return folder / "forgetting"


def test_forgetting_measures_elsewhere_and_checks_that_the_base_is_still_there(forgetting: Path) -> None:
    study = json.loads((forgetting / "study.json").read_text())
    assert [(c["panel"], c["test"]) for c in study["curves"]] == [("linear-seg", ""), ("linear-seg on far", "far")]
    (check,) = study["adapters_off"]
    assert check["has_adapters"] and check["is_base"] and not check["is_base_of_start"]
    (answer,) = study["answers"]
    assert answer["verdict"] == "cannot judge"  # two images
    assert answer["sentence"].startswith("cannot judge: too little was measured to judge: linear-seg on far (")
    assert "on the images adapted to: cannot judge in linear-seg (" in answer["sentence"]
    assert (forgetting / "curves.png").stat().st_size > 1000
    assert "with its adapters off is the start, bit for bit" in (forgetting / "study.md").read_text()


def test_the_grid_of_a_study_is_one_that_can_be_read_again(forgetting: Path) -> None:
    grid = read_grid(forgetting / "grid.yaml")
    assert [column.name for column in grid.columns()] == ["linear-seg", "linear-seg on far"]
    table = json.loads((forgetting / "table.json").read_text())
    assert table["grid"] == grid.model_dump(mode="json")


def test_adapters_that_leak_into_the_base_are_found() -> None:
    base, trained = tiny_backbone(), tiny_backbone()
    assert compared(base, trained, "r").is_base is None  # nothing to switch off
    attach(trained, AdapterOptions(rank=4), train="adapters")
    assert compared(base, trained, "r").is_base
    with torch.no_grad():
        trained.vit.norm.weight += 1e-6
    assert compared(base, trained, "r").is_base is False


def test_label_efficiency_measures_finished_runs_with_shares_of_the_labels(
    folder: Path, forgetting: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = forgetting / "runs" / "start" / "glare" / "adapters" / "seed-0"
    asked = _words(folder, "label-efficiency", "labels", "--runs", str(run), "--fractions", "1", "0.4")
    assert main([*asked, "--json"]) == 0
    study = json.loads(capsys.readouterr().out)
    (curve,) = study["curves"]
    assert (curve["method"], [p["share"] for p in curve["points"]]) == ("seed-0", [0.4, 1.0])
    assert not (folder / "labels" / "runs").exists()
    results = sorted((folder / "labels" / "results").rglob("*eval-0.json"))
    assert {read_result(path).counts["train_images"] for path in results} == {1, 3}


def _request(folder: Path, out: str, **changes: Any) -> StudyOptions:
    tree: dict[str, Any] = {
        "kind": "data-scale",
        "start": str(folder / "base"),
        "images": str(folder / "images"),
        "data": str(folder / "data"),
        "out": str(folder / out),
        "config": str(folder / "run.yaml"),
        "steps": 3,
        "fractions": [0.5, 1.0],
        "protocol": ["linear-seg"],
        "linear_seg": {"size_px": 16, "steps": 4, "warmup_steps": 1},
        "evaluation_seeds": 1,
        "resamples": 100,
        "worst_images": 0,
    }
    return checked(with_protocols(StudyOptions, ["linear-seg"]), tree | changes, "study")


def test_data_scale_goes_on_after_an_interrupt_and_says_the_same(folder: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    whole, _ = run_study(_request(folder, "whole"))
    assert whole.is_complete
    (curve,) = whole.curves
    assert [point.share for point in curve.points] == [0.5, 1.0]
    stopped, _ = run_study(_request(folder, "again"), watcher=Recorder(stop))
    assert stopped.is_stopped and not stopped.is_complete
    assert stopped.answers[0].sentence == ("incomplete: adapters, 50 % of the images seed 0, adapters seed 0 not done")
    again, table = run_study(_request(folder, "again"))
    assert again.curves == whole.curves and again.answers == whole.answers
    assert [cell.key.images for cell in table.cells] == [0.5, 1.0]


def test_a_dry_run_lists_the_runs_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_words(folder, "data-scale", "dry", *_training(folder)), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "[1/4] start / glare / adapters / 10 % of the images / seed 0: 3 steps, to do; 0 of 1 measurements" in told
    assert not (folder / "dry").exists()


def _curve(panel: str, test: str, word: Words, difference: float) -> Curve:
    point = Point(share=1.0, start=0.5, mean=0.5 + difference, difference=difference, low=-1, high=1, verdict=word)
    return Curve(method="m", panel=panel, test=test, metric="mIoU", points=[point])


def test_only_other_data_can_be_forgotten() -> None:
    curves = [_curve("fpn", "", "worse", -0.02), _curve("fpn on far", "far", "better", 0.01)]
    found = _forgotten("m", curves)
    assert found.verdict == "no forgetting"
    assert found.sentence == (
        "no forgetting: nowhere below the start within the interval (fpn on far); better than the start: fpn on far (+1.00); "
        "on the images adapted to: worse in fpn (-2.00)"
    )
    lost = _forgotten("m", [*curves, _curve("knn on far", "far", "worse", -0.3)])
    assert lost.verdict == "forgetting"
    assert lost.sentence.startswith("forgetting: worse than the start: knn on far (-30.00); better")


def test_what_was_too_little_to_judge_is_no_proof_that_nothing_was_forgotten() -> None:
    far, small = _curve("fpn on far", "far", "no difference", -0.01), _curve("fpn on few", "few", "cannot judge", -0.2)
    point = far.points[0].model_copy(update={"smallest_effect": 0.012})
    found = _forgotten("m", [far.model_copy(update={"points": [point]}), small])
    assert found.verdict == "no forgetting"
    assert found.sentence == (
        "no forgetting: nowhere below the start within the interval (fpn on far, where less than 1.2 points cannot be seen "
        "reliably); too little was measured to judge: fpn on few (-20.00)"
    )
    assert _forgotten("m", [small]).verdict == "cannot judge"
    same = _forgotten("m", [_curve("fpn on far", "far", "equivalent", -0.01)])
    assert same.sentence.endswith(
        "nowhere below the start within the interval (fpn on far); equivalent to the start: fpn on far (-1.00)"
    )


def test_an_answer_rests_on_the_words_over_all_columns_together() -> None:
    """Eight data sets, nothing forgotten: one is worse by itself in a third of such studies."""
    curve = _curve("fpn on far", "far", "worse", -0.02)
    point = curve.points[0].model_copy(update={"of_all": "no difference"})
    assert _forgotten("m", [curve]).verdict == "forgetting"
    assert _forgotten("m", [curve.model_copy(update={"points": [point]})]).verdict == "no forgetting"


def test_shares_are_told_by_their_verdict() -> None:
    assert by_share({0.1: "cannot judge", 0.5: "equivalent"}) == "equivalent at 50 %; cannot judge at 10 %"
    assert by_share({0.125: "worse", 0.5: "no difference", 1.0: "worse"}) == (
        "worse at 12.5 %, 100 %; no difference at 50 %"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "forgetting", "fractions": []}, "--tests is missing: labelled data that the adapted model"),
        ({"kind": "forgetting", "tests": ["a=b"]}, "--fractions belongs to data-scale"),
        ({"data": ""}, "--data is missing"),
        ({"images": ""}, "--images is missing"),
        ({"runs": ["r"]}, "--runs: data-scale trains on shares"),
        ({"start": ""}, "START is missing"),
        ({"tests": ["a=b", "a=c"]}, "--tests: the names a, a are not distinct"),
        ({"kind": "label-efficiency", "runs": ["r", "r"]}, "--runs names a run twice"),
    ],
)
def test_requests_that_cannot_be_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        study_grid(_request(folder, "x", **change))
    assert message in str(raised.value)


def test_tests_have_names(folder: Path) -> None:
    with pytest.raises(RequestError, match="'camvid' is not NAME=DATA"):
        _request(folder, "x", tests=["camvid"])


def test_an_unknown_study_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "forgeting", "start"]) == 2
    assert "did you mean 'forgetting'" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(folder: Path) -> None:
    asked = _request(folder, "x", kind="label-efficiency", runs=["a/glare/seed-0", "a/dino/seed-0"], images="")
    grid, _ = study_grid(asked)
    assert {name: entry.run for name, entry in grid.methods.items()} == {
        "glare-seed-0": "a/glare/seed-0",
        "dino-seed-0": "a/dino/seed-0",
    }
