# SPDX-License-Identifier: Apache-2.0
"""`rekindle compare --rows`: one row of a matrix minus another one, with seeds crossed and paired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.evaluation.verdict.telling import points
from rekindle.matrix.run import compare_grid
from tests.matrix.making import tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two matrices of two rows and two training seeds: `crossed` and `paired`."""
    folder = tmp_path_factory.mktemp("rows")
    for name, evaluation_seeds in (("crossed", 1), ("paired", "paired")):
        compare_grid(tree(folder, seeds=[0, 1], evaluation_seeds=evaluation_seeds), out=str(folder / name))
    return folder


@pytest.mark.parametrize("name", ["crossed", "paired"])
def test_the_difference_of_two_rows_is_that_of_their_means(
    folder: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = folder / name, tmp_path / "rows.json"
    assert _rows(matrix, "glare/adapters", matrix, "dino/adapters", "--out", out) == 0
    found = json.loads(out.read_text())["differences"]["linear-seg"]
    rows = {
        row["method"]: row["pooled"]["linear-seg"] for row in json.loads((matrix / "table.json").read_text())["rows"]
    }
    assert found["difference"] == pytest.approx(rows["glare"]["mean"] - rows["dino"]["mean"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["trainings"] == [2, 2]
    told = capsys.readouterr().out
    assert f"linear-seg         cannot judge: {points(found['difference'])} points (95 %: " in told
    assert "images; a verdict needs 30 (or 8 groups)" in told
    assert _rows(matrix, "glare/adapters", matrix, "glare/adapters", "--out", out) == 0
    same = json.loads(out.read_text())["differences"]["linear-seg"]
    assert (same["difference"], same["verdict"]) == (0.0, "cannot judge")
    if name == "paired":
        assert same["low"] == same["high"] == 0.0  # the same pairs are drawn for both


def test_what_cannot_be_compared_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossed, paired = folder / "crossed", folder / "paired"
    for asked, message in (
        ((crossed, "glare/LoRA", crossed, "glare/adapters"), "rows (METHOD/FRAMEWORK): dino/adapters, glare/adapters"),
        ((crossed, "glare/adapters", paired, "glare/adapters"), "not measured on the same evaluation seeds and images"),
        ((tmp_path, "glare/adapters", paired, "glare/adapters"), "name a folder that `rekindle compare --grid` wrote"),
        ((crossed, "glare/adapters", paired), "--rows takes two matrices and a row of each"),
        ((*[crossed, "glare/adapters"] * 2, "--out", tmp_path / "no" / "x.json"), "its folder does not exist"),
    ):
        assert _rows(*asked, "--json") == 2
        assert message in capsys.readouterr().err


def test_as_json_it_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _rows(*[folder / "crossed", "glare/adapters"] * 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"]["linear-seg"]["verdict"] == "cannot judge"


def _rows(*arguments: object) -> int:
    return main(["compare", "--rows", *map(str, arguments)])
