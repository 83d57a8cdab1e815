# SPDX-License-Identifier: Apache-2.0
"""scripts/plot_tables.py: rows by framework, those of several files together, each at its number in the colour of its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.running_scripts import function_of, run_script


def _row(method: str, framework: str, difference: float, verdict: str) -> dict[str, object]:
    pooled = {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "verdict": verdict}
    return {"method": method, "framework": framework, "pooled": {"linear-seg": pooled}}


FIRST = [_row("glare", "adapters", 0.02, "better"), _row("glare", "all", -0.05, "worse")]
REST = [_row("udi", "adapters", 0.0, "no difference")]


def test_rows_stand_by_framework_at_their_difference_in_the_colour_of_their_verdict() -> None:
    panel = function_of("plot_tables", "draw")({"CamVid": FIRST + REST}).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["adapters: glare", "adapters: udi", "all: glare"]
    marks = [line for line in panel.lines if line.get_marker() == "o"]
    found = {float(mark.get_ydata()[0]): (float(mark.get_xdata()[0]), mark.get_color()) for mark in marks}
    assert found == {0.0: (2.0, "#1a7f4b"), 1.0: (0.0, "#7f8c8d"), 2.0: (-5.0, "#c0392b")}


def test_a_data_set_named_twice_has_the_rows_of_both_files(tmp_path: Path) -> None:
    heights = []
    for name, rows in (("a", FIRST), ("b", REST)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    for files in ("a", "ab"):
        run_script("plot_tables", "--out", tmp_path / "out.png", *(f"CamVid={tmp_path / f}.json" for f in files))
        heights.append(imread(tmp_path / "out.png").shape[0])
    assert heights[1] - heights[0] == pytest.approx(0.3 * 110, abs=1)  # one row more, at 110 dots an inch
