# SPDX-License-Identifier: Apache-2.0
"""Relative improvement over a baseline, averaged over data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.evaluation.scores.kinds import AnyScore, Means
from rekindle.evaluation.scores.relative import relative_table
from rekindle.evaluation.scores.result import EvalResult, write_result

MIOU = Means(headline="mIoU", names=["mIoU"])
COLUMNS = "ADE PCtx VOC City BDD Cam IDD KIT SUN ISP SUIM".split()
ROWS = {
    "random S": [20.4, 20.7, 32.1, 43.7, 39.2, 41.6, 44.0, 38.2, 18.9, 35.6, 56.1],
    "LOCA S": [44.8, 51.3, 74.0, 70.9, 60.5, 56.6, 55.0, 47.9, 45.2, 43.0, 73.5],
    "random B": [21.1, 19.6, 29.1, 51.4, 40.2, 43.3, 45.2, 39.0, 19.7, 28.1, 53.0],
    "LOCA B": [47.9, 54.9, 76.7, 79.8, 62.8, 56.1, 55.6, 48.5, 47.7, 45.6, 74.0],
}


def write(
    folder: Path, model: str, data: str, value: float, *, seed: int = 0, score: AnyScore = MIOU, print_: str = "f"
) -> str:
    result = EvalResult(
        protocol="linear-decoder", model=model, model_hash="h", data=data, split="val", seed=seed, config={},
        fingerprint=print_ + data, metrics={score.name: value}, score=score, per_item=None, counts={}, software={},
    )  # fmt: skip
    path = folder / f"{model}-{data}-{seed}.json".replace(" ", "-")
    write_result(result, path, ["a"], np.array([[value, 1.0]]))
    return str(path)


@pytest.mark.parametrize(("size", "published"), [("S", 72.0), ("B", 82.1)])
def test_the_published_rows_give_the_published_mean(tmp_path: Path, size: str, published: float) -> None:
    """LOCA, property 24."""
    paths = [
        write(tmp_path, model, data, value / 100)
        for model in (f"random {size}", f"LOCA {size}")
        for data, value in zip(COLUMNS, ROWS[model], strict=True)
    ]
    table = relative_table(paths, f"random {size}")
    assert table.delta[f"LOCA {size}"] == pytest.approx(published, abs=0.05)


def test_seeds_are_averaged_and_less_can_be_better(tmp_path: Path) -> None:
    error = Means(headline="AbsRel", names=["AbsRel"], better="lower")
    values = {"base": (0.4, 0.6), "better": (0.2, 0.2)}
    paths = [
        write(tmp_path, model, "d", v, seed=s, score=error) for model, own in values.items() for s, v in enumerate(own)
    ]
    table = relative_table(paths, "base")
    assert table.delta["better"] == pytest.approx(60.0)
    assert table.columns[0].baseline == pytest.approx(0.5)


def test_a_model_that_misses_a_data_set_has_no_mean(tmp_path: Path) -> None:
    paths = [write(tmp_path, m, d, 0.5) for m, d in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert relative_table(paths, "a").delta == {"b": None}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a", "x", 0.5), write(tmp_path, "b", "x", 0.5, print_="g")
    with pytest.raises(RequestError, match=r"linear-decoder on x \(val\): the files differ in options or items"):
        relative_table([one, two], "a")
    with pytest.raises(RequestError, match="the baseline c is in none of the files; they are of a"):
        relative_table([one], "c")
    with pytest.raises(RequestError, match="no result of the baseline a"):
        relative_table([one, write(tmp_path, "b", "y", 0.5)], "a")
    with pytest.raises(RequestError, match="two files of a have the same seed"):
        relative_table([one, one], "a")
    with pytest.raises(RequestError, match="mIoU is 0"):
        relative_table([write(tmp_path, "z", "x", 0.0)], "z")
    with pytest.raises(RequestError, match="at least one result file"):
        relative_table([], "a")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        write(tmp_path, m, d, v) for m, d, v in (("a", "x", 0.2), ("b", "x", 0.3), ("a", "y", 0.5), ("b", "y", 0.6))
    ]
    assert main(["compare", "--results", *paths, "--relative-to", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["delta"]["b"] == pytest.approx(35.0)
    assert main(["compare", "--relative-to=a", "--results", *paths]) == 0
    assert "+35.0 %" in capsys.readouterr().out
    assert main(["compare", "--results", *paths]) == 2
    assert "--relative-to is missing" in capsys.readouterr().err
    assert main(["compare", "--results", *paths, "--relative-to", "a", "--seeds", "3"]) == 2
