# SPDX-License-Identifier: Apache-2.0
"""scripts/sum_up_frameworks.py: one line per data set and framework, over the rows of several files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running_scripts import run_script


def test_a_framework_is_summed_up_over_its_methods_in_all_files_of_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(framework: str, difference: float, verdict: str, overall: str) -> dict[str, object]:
        pooled = {"linear-seg": {"difference": difference, "verdict": verdict}}
        return {"framework": framework, "pooled": pooled, "overall": {"verdict": overall}}

    files = {
        "a": [row("adapters", 0.01, "better", "better"), row("all", -0.04, "worse", "mixed")],
        "b": [
            row("adapters", 0.03, "better", "better"),
            row("adapters", -0.02, "worse", "worse"),
            {"framework": "adapters", "pooled": {}, "overall": None},
        ],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    run_script("sum_up_frameworks", *(f"CamVid={tmp_path / name}.json" for name in files))
    assert capsys.readouterr().out.splitlines() == [
        "| CamVid | adapters | +1.00 (-2.00 to +3.00); 2 / 0 / 1 | 2 better, 1 worse |",
        "| CamVid | all | -4.00 (-4.00 to -4.00); 0 / 0 / 1 | 1 mixed |",
    ]
