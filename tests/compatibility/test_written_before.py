# SPDX-License-Identifier: Apache-2.0
"""Files that an earlier build wrote still load: models, stopped runs, results, comparisons, matrices.

`written_by_bc97a06.tar.xz` holds what that commit wrote from the images and labels of tests/engine/running.py and
tests/evaluation/toy.py: a DINO base, a GLARE run on its adapters, the same one stopped after three of six steps, a comparison, a
result, a matrix, and the tokens of the first image. `@ROOT@` stands for the folder.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rekindle
from rekindle.cli import main
from rekindle.core.option_trees import leaves, nested
from rekindle.evaluation.scores.result import read_result
from rekindle.measuring.comparison import Comparison
from tests.engine.running import metrics, write_images
from tests.evaluation.toy import write_data

DEFAULTS_OF_BEFORE = {"drop_ignored": False}  # of dense-retrieval; CHANGELOG, Numbers
PACKED = Path(__file__).with_name("written_by_bc97a06.tar.xz")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("before") / "root"
    with tarfile.open(PACKED) as packed:
        packed.extractall(root, filter="data")
    for path in root.rglob("*"):
        if path.suffix in (".json", ".yaml", ".jsonl", ".md", ".csv"):
            path.write_text(path.read_text(encoding="utf-8").replace("@ROOT@", str(root)), encoding="utf-8")
    write_images(root / "images")
    write_data(root / "data", num_test=4)
    return root


def test_a_model_gives_the_tokens_it_gave(before: Path) -> None:
    tokens = rekindle.extract(before / "whole", before / "images" / "00.png")
    with np.load(before / "tokens.npz") as stored:
        assert tokens.cls is not None
        torch.testing.assert_close(tokens.cls, torch.from_numpy(stored["cls"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tokens.patches, torch.from_numpy(stored["patches"]), rtol=1e-4, atol=1e-5)


def test_a_stopped_run_goes_on_to_where_the_whole_one_went(before: Path, tmp_path: Path) -> None:
    shutil.copytree(before / "stopped", tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 3
    assert rekindle.pretrain(out=tmp_path / "run", resume=True).is_finished
    gone_on, whole = metrics(tmp_path / "run"), metrics(before / "whole")
    assert [line["step"] for line in gone_on] == [line["step"] for line in whole]
    for line, expected in zip(gone_on, whole, strict=True):
        # stochastic depth draws other numbers now, so the steps after the stop agree to what they make, and no further
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-6 if line["step"] <= 3 else 1e-3)
    first, second = (rekindle.load(path).state_dict() for path in (tmp_path / "run", before / "whole"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-2, atol=1e-3)


def test_a_run_file_resolves_to_the_same_options(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = before / "whole" / "config.yaml"
    assert main(["config", str(path), "--json"]) == 0
    told = {name: entry["value"] for name, entry in json.loads(capsys.readouterr().out).items()}
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(told) > 80
    assert nested({name: told[name] for name in leaves(written)}) == written


def test_results_and_comparisons_are_read_and_measured_alike(before: Path, tmp_path: Path) -> None:
    files = [*sorted(before.glob("comparison/*-s?.json")), before / "one.json"]
    assert len(files) == 13
    assert {read_result(path).protocol for path in files} == {"linear-seg", "dense-retrieval", "similarity"}
    stored = Comparison.model_validate_json((before / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    again = rekindle.compare(
        before / "base",
        [before / "whole"],
        before / "data",
        out=tmp_path / "again",
        protocol=["dense-retrieval", "similarity"],
        seeds=2,
        resamples=100,
        dense_retrieval={"size_px": 32, "memory_size": 30} | DEFAULTS_OF_BEFORE,
        similarity={"size_px": 32},
    )
    expected = {row.protocol: row.verdict for row in stored.rows}
    assert [row.protocol for row in again.rows] == ["dense-retrieval", "similarity"]
    for row in again.rows:
        assert row.verdict.difference == pytest.approx(expected[row.protocol].difference, abs=1e-3)
        assert (row.verdict.rule, expected[row.protocol].rule) == ("student", "percentile")
        assert row.verdict.model == pytest.approx(expected[row.protocol].model, abs=1e-3)
    prints = {result.protocol: result.fingerprint for result in stored.results}
    assert all(result.fingerprint == prints[result.protocol] for result in again.results)


def test_a_page_is_made_of_a_run_and_a_comparison(before: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = ["report", str(before / "whole"), "--comparison", str(before / "comparison"), "--out", str(page)]
    assert main(asked) == 0
    text = page.read_text(encoding="utf-8")
    assert "linear-seg" in text and "similarity" in text


def test_a_matrix_knows_what_it_has_done(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = {path: path.stat().st_mtime_ns for path in (before / "matrix" / "results").rglob("*.json")}
    table = json.loads((before / "matrix" / "table.json").read_text(encoding="utf-8"))
    grid = yaml.safe_load((before / "grid.yaml").read_text(encoding="utf-8"))
    grid["dense_retrieval"] |= DEFAULTS_OF_BEFORE
    (before / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    assert main(["compare", "--grid", str(before / "grid.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for row, stored in zip(again["rows"], table["rows"], strict=True):
        assert row["metrics"] == stored["metrics"]
        for name, pooled in stored["pooled"].items():
            same = ("mean", "start_mean", "difference", "by_training_seed", "training_std", "evaluation_std")
            assert [row["pooled"][name][key] for key in same] == [pooled[key] for key in same]
    assert {path: path.stat().st_mtime_ns for path in written} == written  # measured before, and taken as it is
