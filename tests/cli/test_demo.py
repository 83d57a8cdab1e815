# SPDX-License-Identifier: Apache-2.0
"""`rekindle demo`: the whole story, small; and the folder it may write to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from rekindle.cli import main
from rekindle.demo.options import DemoOptions
from rekindle.demo.story import protocol_settings
from tests.curves import drawn

SMALL = "--steps 2 --images 16 --labelled 8 --val 8 --seeds 1".split()
PICTURES = ("tokens", "attention", "similarity")


def _short(options: DemoOptions, out: Path) -> dict[str, object]:
    """The comparison of the demo with a decoder that trains for a tenth of its steps."""
    settings = protocol_settings(options, out)
    assert isinstance(settings["linear_seg"], dict)
    return settings | {"linear_seg": settings["linear_seg"] | {"steps": 30}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    with drawn(), patch("rekindle.demo.story.protocol_settings", _short):
        assert main(["demo", "--out", str(out), *SMALL]) == 0
    return out


def test_the_story_leaves_data_run_comparison_pictures_and_page(demo: Path) -> None:
    result = json.loads((demo / "demo.json").read_text(encoding="utf-8"))
    comparison = json.loads((demo / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    assert [r["protocol"] for r in result["rows"]] == ["linear-seg", "dense-retrieval"]
    for row, full in zip(result["rows"], comparison["rows"], strict=True):
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["verdict"], row["difference"]) == (
            full["verdict"]["verdict"],
            full["verdict"]["difference"],
        )
    for name in PICTURES:
        with Image.open(demo / "pictures" / f"{name}.png") as picture:
            assert picture.size[0] > 300
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert result["page"] == str(demo / "report.html") and result["verdict"] in page
    assert (
        all(Path(path).is_file() for path in result["pictures"])
        and str(demo / "pictures" / "intervals.svg") in result["pictures"]
    )
    assert "RankMe" in page and "images are chosen by the change" in page.lower()
    assert (demo / "run" / "model.safetensors").is_file()


def test_scenes_for_training_have_no_labels_and_are_not_those_that_judge(demo: Path) -> None:
    unlabelled = {p.read_bytes() for p in (demo / "unlabelled").rglob("*.jpg")}
    judged = {p.read_bytes() for p in (demo / "data" / "images").rglob("*.jpg")}
    assert len(unlabelled) == 16 and len(judged) == 16 and not unlabelled & judged
    assert not list((demo / "unlabelled").rglob("*.png"))


def test_a_foreign_folder_is_refused_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path), *SMALL]) == 2
    assert "choose a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_is_replaced_but_not_what_was_put_beside_it(tmp_path: Path) -> None:
    from rekindle.demo.options import DemoOptions
    from rekindle.demo.story import MARKER, claim

    (tmp_path / MARKER).write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, DemoOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER, "notes.txt"]


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--stepz", "3"]) == 2
    assert "stepz" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from rekindle.cli import main; main(['demo', '-h']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--steps" in done.stdout


@pytest.mark.slow
def test_the_full_demo_as_a_user_runs_it(tmp_path: Path) -> None:
    """Whatever the verdict, the base has learned: one class for all pixels would give 0.04."""
    command = [sys.executable, "-m", "rekindle", "demo", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert all(row["base"] > 0.2 for row in result["rows"])
    assert (tmp_path / "out" / "report.html").stat().st_size < 5_000_000
    assert sum(result["seconds"].values()) < 300 and result["seconds"]["report"] < 20
