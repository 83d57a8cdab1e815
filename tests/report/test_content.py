# SPDX-License-Identifier: Apache-2.0
"""What a report says of a run is what lies on disk; what does not lie there is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rekindle.core.errors import RequestError
from rekindle.engine.watcher import LoggingWatcher
from rekindle.evaluation.scores.result import read_result, read_rows
from rekindle.report.comparisons import compare_command, find_comparisons
from rekindle.report.content import distinct_names, overview_of, report_of
from rekindle.report.cost import training_seconds
from rekindle.report.curves import run_curves
from rekindle.report.images import extremes
from rekindle.report.options import ReportOptions
from rekindle.report.page import Report
from rekindle.report.record import RunRecord, read_record
from tests.report.made import Made


def told(made: Made, run: Path | None = None, **options: object) -> Report:
    values = {"runs": (str(run or made.run),), "images": 3, **options}
    return report_of(ReportOptions.model_validate(values), LoggingWatcher())


@pytest.fixture(scope="module")
def report(made: Made) -> Report:
    return told(made)


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """The run where no comparison lies around it."""
    return Path(shutil.copytree(made.run, tmp_path / "elsewhere" / "run"))


def test_a_comparison_beside_the_run_is_found_by_the_hash_of_the_model(made: Made, report: Report) -> None:
    stored = json.loads((made.comparison / "comparison.json").read_text())
    assert [(row.protocol, row.found.difference) for row in report.rows] == [
        (row["protocol"], row["verdict"]["difference"]) for row in stored["rows"]
    ]
    assert {(row.found.items, row.found.evaluation_seeds, row.data) for row in report.rows} == {(6, 2, "data, val")}
    assert "against the base that the run started from" in report.compared[0]
    assert list(report.notes) == stored["notes"] and any("this run, not its recipe" in note for note in report.notes)


def test_metrics_and_classes_are_means_of_the_result_files(made: Made, report: Report) -> None:
    files = sorted(made.comparison.glob("linear-seg-1-*-s?.json"))
    values = [read_result(path).metrics["mIoU"] for path in files]
    line = next(m for m in report.metrics if (m.protocol, m.metric) == ("linear-seg", "mIoU"))
    assert len(values) == line.seeds == 2
    assert line.model == pytest.approx(np.mean(values)) and line.model_std == pytest.approx(np.std(values, ddof=1))
    red = next(t for t in report.classes if t.protocol == "linear-seg").rows["red"]
    assert red[0] is not None and red[1] is not None and red[1] - red[0] == pytest.approx(red[2])


def test_worst_and_best_images_are_those_whose_own_score_changed_most(made: Made) -> None:
    """Each image's mIoU by hand from the counts: intersection over label + predicted - intersection, classes there are."""
    sides = []
    for number in (0, 1):
        found = []
        for path in sorted(made.comparison.glob(f"linear-seg-{number}-*-s?.json")):
            result = read_result(path)
            items, rows = read_rows(path.with_suffix(".csv"), result)
            per = rows.reshape(len(items), 3, 3)
            union = per[:, 1] + per[:, 2] - per[:, 0]
            iou = np.where(union > 0, per[:, 0] / np.maximum(union, 1), np.nan)
            found.append(np.nanmean(iou, axis=1))
        sides.append(np.mean(found, axis=0))
    change = sides[1] - sides[0]
    order = [items[i] for i in np.argsort(change, kind="stable")]
    cards = told(made, images=6).cards
    assert [c.name for c in cards if c.why == "worst"] == order[:3]
    assert [c.name for c in cards if c.why == "best"] == order[:3:-1]
    assert cards[0].why == "typical" and cards[0].name == order[3]


def test_maps_are_of_both_models_on_one_scale(report: Report) -> None:
    assert len(report.cards) == 3 and any(
        "fitted to base and adapted model together" in note for note in report.maps_note
    )
    for card in report.cards:
        assert [pair.kind for pair in card.pairs] == ["tokens", "attention", "similarity"]
        assert "true classes" in card.extra
        assert all(pair.base.shape == pair.adapted.shape for pair in card.pairs)


def test_curves_hold_every_number_of_the_log(made: Made, report: Report) -> None:
    lines = [json.loads(line) for line in (made.run / "metrics.jsonl").read_text().splitlines()]
    titles = {panel.title for panels in report.curves.values() for panel in panels}
    assert {"loss", "glob", "learning rate", "entropy", "gradient norm", "memory, GiB"} <= titles
    assert any("RankMe" in t for t in titles) and any("drift" in t for t in titles)
    loss = next(p for panels in report.curves.values() for p in panels if p.title == "loss")
    assert loss.lines["loss"] == [line["loss"] for line in lines]


def test_cost_settings_environment_and_skipped_are_what_was_recorded(made: Made, report: Report) -> None:
    assert [line.partition(": ")[0] for line in report.skipped] == [str(made.images / "broken.png")]
    assert "GiB at most" in report.cost["memory"] and "images/s" in report.cost["speed"]
    assert report.cost["work"].startswith("6 steps of 4 images: 24 images seen")
    set_by = {s.name: (s.value, s.source) for s in report.settings}
    assert set_by["steps"] == ("6", "asked") and set_by["optim.beta1"] == ("0.9", "default")
    assert "torch " in report.environment["software"]
    assert f"--config {made.run / 'config.yaml'}" in report.commands["From its configuration, whatever started it"]


def test_the_command_of_the_comparison_names_what_differs_from_the_defaults(made: Made) -> None:
    measured = find_comparisons(read_record(made.run), [])[0]
    command = compare_command(measured, "base", "run")
    assert command.startswith("rekindle compare base run --protocol linear-seg dense-retrieval --data ")
    assert "--linear-seg.steps 20" in command and "--dense-retrieval.size-px 32" in command and "--seeds 2" in command
    assert "--linear-seg.batch-size" not in command


def test_the_views_are_those_of_the_options(report: Report) -> None:
    """Two large views of 32 px and two small ones of 16, of four images, each with a margin of 4."""
    assert report.views[0].pixels.shape == (4 * 36, 2 * 36 + 2 * 20, 3)


def test_a_run_without_comparison_shows_its_own_images_and_says_so(made: Made, copied: Path) -> None:
    report = told(made, copied)
    assert not report.rows and any("There is no comparison with the base" in line for line in report.missing)
    assert {card.why for card in report.cards} == {"sample"} and "not chosen by any result" in report.maps_note[0]
    found = told(made, copied, comparison=(str(made.comparison),))
    assert len(found.rows) == 2


def test_data_that_moved_is_named_and_can_be_given(made: Made, tmp_path: Path) -> None:
    data = made.data.rename(tmp_path / "moved")
    try:
        assert any("Worst and best images are not known" in line for line in told(made).missing)
        assert told(made, data=str(data)).cards[0].why == "typical"
    finally:
        data.rename(made.data)


def test_a_run_that_stopped_early_or_broke_still_has_a_report(made: Made, copied: Path) -> None:
    (copied / "model.json").unlink()
    (copied / "probes.jsonl").unlink()
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    bad = json.loads(lines[2]) | {"loss": float("nan"), "glob": "words"}
    (copied / "metrics.jsonl").write_text("\n".join([*lines[:2], json.dumps(bad), "[1, 2]", lines[3][:20]]))
    report = told(made, copied)
    missing = " ".join(report.missing)
    assert "has not finished" in missing and "loss is not a finite number at 1 of 3 steps (3)" in missing
    assert "glob is not a finite number" in missing and "2 lines that cannot be read" in missing
    assert "Rank and drift were not measured" in missing
    assert "3 of 6 steps" in report.lead and not report.cards


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.log", "sources.json", "sessions.jsonl", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{"])
def test_any_missing_or_broken_file_is_survived(made: Made, copied: Path, name: str, content: bytes | None) -> None:
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_bytes(content)
    assert told(made, copied, images=1).title == "Rekindle: run"


def test_what_is_no_run_is_refused(tmp_path: Path, made: Made) -> None:
    with pytest.raises(RequestError, match=r"holds no config\.yaml"):
        read_record(tmp_path)
    with pytest.raises(RequestError, match="no such folder"):
        read_record(tmp_path / "nothing")
    with pytest.raises(RequestError, match="did not measure this model"):
        told(made, made.base, comparison=(str(made.comparison / "comparison.json"),))


def test_several_runs_stand_side_by_side(made: Made) -> None:
    options = ReportOptions(runs=(str(made.base), str(made.run)), images=0)
    overview = overview_of(options, LoggingWatcher())
    assert [run.name for run in overview.runs] == ["base", "run"]
    assert [len(run.rows) for run in overview.runs] == [0, 2]
    assert [note for note in overview.notes if "this run, not its recipe" in note]
    loss = next(p for panels in overview.curves.values() for p in panels if p.title == "loss")
    assert list(loss.lines) == ["base", "run"] and loss.lines["base"][1:] == [None] * 5


def test_runs_of_one_name_are_told_apart() -> None:
    assert distinct_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]


def test_time_is_summed_over_starts() -> None:
    """A start that reached 3 s, and one, after a resume, that reached 2 s."""
    lines = [{"step": i, "speed": {"seconds": s}} for i, s in enumerate([1.0, 2.0, 3.0, 0.5, 2.0])]
    record = RunRecord.__new__(RunRecord)
    record.metrics = lines
    assert training_seconds(record) == 5.0


@pytest.mark.parametrize("count", range(9))
def test_extremes_are_distinct_and_as_many_as_asked(count: int) -> None:
    found = extremes(6, count)
    assert len({place for place, _ in found}) == len(found) == min(count, 6)


def test_a_constant_is_said_and_not_drawn(made: Made) -> None:
    curves = run_curves(read_record(made.run))
    assert "weight_decay" in curves.constants
    assert "weight_decay" not in {p.title for panels in curves.panels.values() for p in panels}
