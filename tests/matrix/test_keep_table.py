# SPDX-License-Identifier: Apache-2.0
"""scripts/keep_table.py: what is kept of a table, and its rows in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running_scripts import run_script


def test_a_kept_table_has_every_score_and_no_folder_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooled = {"difference": 0.0123456789, "low": -0.001, "high": 0.02, "verdict": "no difference"}
    row = {"method": "glare", "framework": "adapters", "seeds": [0], "images": 0.5}
    table = {
        "grid": {"seeds": [0, 1], "data": "/secret/camvid", "out": "/secret/runs"},
        "protocols": ["linear-seg", "knn"],
        "cells": [{"run": "runs/a", "options": {"images": "/secret/camvid/images"}, "scores": {"x": 0.123456789}}],
        "rows": [
            {**row, "pooled": {"linear-seg": pooled}, "overall": {"verdict": "no difference"}},
            {**row, "images": 1.0, "seeds": [], "pooled": {}, "overall": None},
        ],
    }
    (tmp_path / "mine").mkdir()
    source, out = tmp_path / "mine" / "table.json", tmp_path / "kept.json"
    source.write_text(json.dumps(table))
    run_script("keep_table", source, out, "--strip", "/secret/")
    assert capsys.readouterr().out.splitlines() == [
        "| glare, 50% of the images (1 of 2 seeds) | adapters | +1.23 (-0.10 to +2.00), no difference | no difference |",
        "| glare (0 of 2 seeds) | adapters | not run |",
    ]
    kept = json.loads(out.read_text())
    assert kept["grid"] == {"seeds": [0, 1], "data": "camvid", "out": "mine"}
    assert kept["cells"] == [{"run": "runs/a", "scores": {"x": 0.123457}}]
    assert kept["rows"][0]["pooled"]["linear-seg"]["difference"] == 0.0123457
