# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.kinds import MeanIou, Means
from rekindle.evaluation.scores.result import EvalResult, read_groups, read_result, read_rows, write_result

RESULT = EvalResult(
    protocol="linear-seg",
    model="m",
    model_hash="0" * 8,
    data="d",
    split="val",
    seed=0,
    config={"steps": 3},
    fingerprint="f",
    metrics={"mIoU": 0.5},
    score=MeanIou(class_names=["a", "b", "c", "d"]),
    per_item=None,
    counts={"images": 2},
    software={"torch": "2"},
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = np.arange(2 * 3 * 4).reshape(2, -1)
    written = write_result(RESULT, tmp_path / "r.json", ["a", "deep/b"], rows)
    assert read_result(tmp_path / "r.json") == written
    assert written.per_item == "r.csv"
    items, again = read_rows(tmp_path / "r.csv", written)
    assert items == ["a", "deep/b"]
    assert np.array_equal(again, rows)
    header = (tmp_path / "r.csv").read_text().splitlines()[0].split(",")
    assert header[:2] == ["item", "intersection_0"]
    assert header[-1] == "predicted_3"
    keys = (
        "protocol model model_hash data split seed config fingerprint metrics score per_item group_by shared_groups maps counts "
        "software"
    )
    assert list(json.loads((tmp_path / "r.json").read_text())) == keys.split()


def test_groups_are_a_column_where_there_are_any_and_older_tables_have_none(tmp_path: Path) -> None:
    rows = np.arange(2 * 12).reshape(2, -1)
    told = RESULT.model_copy(update={"group_by": "folder"})
    written = write_result(told, tmp_path / "r.json", ["s/a", "t/b"], rows, ["s", "t"])
    assert (tmp_path / "r.csv").read_text().startswith("item,group,intersection_0,")
    items, again = read_rows(tmp_path / "r.csv", written)
    assert items == ["s/a", "t/b"]
    assert np.array_equal(again, rows)
    assert read_groups(tmp_path / "r.csv", written) == ["s", "t"]
    plain = write_result(RESULT, tmp_path / "p.json", ["s/a", "t/b"], rows)
    assert read_groups(tmp_path / "p.csv", plain) is None
    with pytest.raises(RequestError, match="evaluate again"):
        read_rows(tmp_path / "p.csv", written)
    before = json.loads((tmp_path / "p.json").read_text())
    del before["group_by"], before["shared_groups"]
    (tmp_path / "old.json").write_text(json.dumps(before))
    assert read_result(tmp_path / "old.json") == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "is not a result of `rekindle evaluate`: protocol"), (None, "No such file")],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_result(path)


@pytest.mark.parametrize(
    "text", ["item,intersection_0,label_0,predicted_0\na,1,2,3\n", "item,{columns}\na,1,x" + ",3" * 10 + "\n"]
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.csv").write_text(text.format(columns=",".join(RESULT.score.columns)))
    with pytest.raises(RequestError, match="evaluate again"):
        read_rows(tmp_path / "r.csv", RESULT)


def test_real_numbers_are_read_back_to_the_last_digit(tmp_path: Path) -> None:
    score = Means(headline="accuracy", names=["accuracy", "MSE (log²)"])
    rows = np.random.default_rng(0).standard_normal((5, 3))
    written = write_result(RESULT.model_copy(update={"score": score}), tmp_path / "r.json", list("abcde"), rows)
    read = read_result(tmp_path / "r.json")
    assert read.score == score
    assert np.array_equal(read_rows(tmp_path / "r.csv", written)[1], rows)


def test_requests_and_results_need_no_torch() -> None:
    code = (
        "import sys, rekindle.evaluation.scores.result, rekindle.measuring.options, rekindle.cli.compare, "
        "rekindle.cli.catalogue; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
