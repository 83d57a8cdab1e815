# SPDX-License-Identifier: Apache-2.0
"""What the terminal and Python print of a comparison: the words with what they leave open."""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.cli.compare import _print_table
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.verdict.judging import Verdict
from rekindle.evaluation.verdict.overall import overall
from rekindle.measuring.comparison import Comparison, ModelOverall, Row
from rekindle.measuring.options import CompareOptions

UNSEEN = "effects below 1.2 points cannot be seen reliably with 52 queries; about 200 would show 0.6"


def _row(model: str, **more: Any) -> Row:
    values = {
        "difference": 0.03,
        "low": 0.01,
        "high": 0.05,
        "level": 0.95,
        "rule": "student",
        "units": 52,
        "items": 52,
    }
    values |= {"evaluation_seeds": 3, "smallest_effect": 0.012, "units_for_half": 203, "per_class": {}}
    values |= {"base": 0.4, "model": 0.43, "base_std": 0.01, "model_std": 0.02}
    verdict = Verdict.model_validate(values | more)
    score = Means(headline="mAP", names=["mAP"])
    return Row(protocol="image-retrieval", metric="mAP", score=score, model=model, verdict=verdict)


def _comparison(*rows: Row) -> Comparison:
    overalls = [
        ModelOverall(model=row.model, overall=overall({row.protocol: row.verdict.verdict}, {}, 0.95)) for row in rows
    ]
    return Comparison(
        base="b",
        data="d",
        split="val",
        seeds=[0, 1, 2],
        rows=list(rows),
        overall=overalls,
        results=[],
        notes=["Known."],
    )


BETTER = _row("one", verdict="better")
OPEN = _row("two", verdict="no difference", difference=0.005, low=-0.001, high=0.011)


def test_python_prints_a_line_for_each_verdict_for_each_model_and_for_each_note() -> None:
    assert str(_comparison(BETTER, OPEN)).splitlines() == [
        "one, image-retrieval, mAP: better: +3.0 points (95 %: +1.0 to +5.0)",
        f"two, image-retrieval, mAP: no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); {UNSEEN}",
        "one, overall: better: better in image-retrieval (95 %)",
        "two, overall: no difference: no difference in image-retrieval (95 %)",
        "note: Known.",
    ]


def test_the_terminal_says_under_a_table_what_its_words_leave_open(capsys: pytest.CaptureFixture[str]) -> None:
    options = CompareOptions(protocol=("image-retrieval",))
    _print_table(_comparison(BETTER, OPEN), options)
    told = capsys.readouterr().out
    assert f"\n  two: {UNSEEN}\n" in told and "  one:" not in told
    _print_table(_comparison(OPEN), options)
    assert f"\n  {UNSEEN}\n" in capsys.readouterr().out
