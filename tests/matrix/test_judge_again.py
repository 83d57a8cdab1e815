# SPDX-License-Identifier: Apache-2.0
"""scripts/judge_again.py: the estimate from a stored table is near the interval that the rows themselves give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.verdict.difference import deviation, difference_of
from tests.running_scripts import function_of, run_script

TOP1 = Means(headline="top-1", names=["top-1"])


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.6])
def test_it_is_near_the_interval_of_the_rows(spread: float) -> None:
    source = np.random.default_rng(1)
    shared = source.normal(size=120)
    base = np.stack([shared, np.ones(120)], axis=-1)[None]
    runs = spread * np.array([-1.0, 0.2, 1.1])
    model = [base + np.stack([run + 0.4 * source.normal(size=120), np.zeros(120)], axis=-1) for run in runs]
    found = difference_of([base], model, TOP1, resamples=8000)
    low, high = np.quantile(found.draws, [0.025, 0.975])
    stored = {"difference": found.value, "low": low, "high": high, "level": 0.95}
    stored |= {"by_training_seed": found.model[:, 0].tolist(), "training_std": deviation(found.model[:, 0])}
    exact = found.interval(0.95)
    assert function_of("judge_again", "interval_now")(stored) == pytest.approx(exact, abs=0.06 * (exact[1] - exact[0]))


def test_words_are_counted_once_and_pairs_and_todays_tables_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def table(name: str, seeds: object, *pooled: dict[str, object]) -> Path:
        row = {"start": "base", "method": "glare", "framework": "adapters"}
        rows = [row | {"pooled": {"knn": entry}} for entry in pooled]
        (tmp_path / name).write_text(json.dumps({"grid": {"evaluation_seeds": seeds}, "rows": rows}))
        return tmp_path / name

    close = {"verdict": "better", "difference": 0.02, "low": 0.001, "high": 0.039, "level": 0.95}
    close |= {"by_training_seed": [0.1, 0.12, 0.14], "training_std": 0.02}
    clear = close | {"difference": 0.2, "low": 0.18, "high": 0.22}
    (tmp_path / "list.json").write_text("[]")
    files = [
        table("a.json", 3, close, clear),
        table("b.json", 3, close),
        table("pairs.json", "paired", close | {"low": 0.002}),
        table("today.json", 3, close | {"rule": "student", "low": 0.003}),
        tmp_path / "list.json",
    ]
    run_script("judge_again", *files, "--out", tmp_path / "out" / "again.json")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "2 differences over three or more trainings",
        "before: 2 better",
        "now:    1 better, 1 no difference",
    ]
    found = json.loads((tmp_path / "out" / "again.json").read_text())
    assert (found["before"], found["now"]) == ({"better": 2}, {"better": 1, "no difference": 1})
    (changed,) = found["changed"]
    assert (changed["row"], changed["word"]) == ("base -> glare, adapters", "better")
    assert changed["now"][0] < 0 < changed["before"][0]
