# SPDX-License-Identifier: Apache-2.0
"""`rekindle report`: where the page goes, what is printed, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from rekindle.cli import main
from tests.report.made import Made


def test_json_says_where_the_page_is_and_what_it_lacks(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(made.run), "--images", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = made.run / "report.html"
    assert told["report"] == str(page) and told["bytes"] == page.stat().st_size and told["seconds"] > 0
    assert told["verdict"] in page.read_text(encoding="utf-8") and told["missing"] == []


def test_several_runs_get_one_page_in_the_folder_that_holds_them(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(made.run), str(made.base)]) == 0
    page = made.run.parent / "report.html"
    assert f"done: {page}" in capsys.readouterr().out
    assert "2 runs side by side" in page.read_text(encoding="utf-8")


def test_pictures_are_the_same_as_files(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    arguments = ["--out", str(tmp_path / "r.html"), "--pictures", str(out), "--images", "3"]
    assert main(["report", str(made.run), *arguments]) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert {"tokens.png", "tokens-1.png", "attention.png", "similarity.png", "intervals.svg", "curve-loss.svg"} <= names
    single = [name for name in names if name.startswith("images/")]
    assert len(single) == 3 * 9  # image, place, classes, three maps of two models
    with Image.open(out / next(n for n in single if n.endswith("tokens-base.png"))) as picture:
        assert picture.size == (48, 16)
    for path in out.glob("*.svg"):
        ElementTree.parse(path)


def test_hostile_names_do_no_harm(made: Made, tmp_path: Path) -> None:
    """Names of a class, an image and the run are markup; nothing of it is in the page as markup."""
    evil = "<img src=x onerror=alert(1)>"
    folder = tmp_path / f"{evil[:4]}run"
    shutil.copytree(made.run, folder)
    with (folder / "run.log").open("a", encoding="utf-8") as stream:
        stream.write(f"2026-01-01 00:00:00,000 warning at step 1: {evil}\n")
    (folder / "skipped.txt").write_text(evil)
    comparison = shutil.copytree(made.comparison, tmp_path / "comparison")
    path = comparison / "comparison.json"
    path.write_text(path.read_text().replace('"red"', json.dumps(evil)).replace("IoU/red", f"IoU/{evil}"))
    out = tmp_path / "r.html"
    assert main(["report", str(folder), "--comparison", str(comparison), "--images", "0", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<img src=x" not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN is missing"),
        (["nowhere"], "there is no such folder"),
        (["{run}", "--out", "page.pdf"], "ends in .html"),
        (["{run}", "--comparison", "nowhere"], "there is no such file"),
        (["{run}", "--comparison", "{run}/model.json"], "is not a comparison"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_with_the_fix(
    made: Made, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(a.format(run=made.run) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from rekindle.cli import main; main(['report', '-h']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--comparison" in done.stdout
