# SPDX-License-Identifier: Apache-2.0
"""A measuring option stands once: two files are touched, its field and its reader, and every command and file has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rekindle

FIELD = '''class MeasuringOptions(Options):
    trial_zoom: float = Field(1.0, gt=0.0)
    """How far the trial zooms."""
'''
READER = """def build_protocol(name, options, *rest):
    return f"{name} read {options.trial_zoom}"


def _unused("""
USE = """
from rekindle.cli import main
from rekindle.matrix.grid import check_grid
from rekindle.matrix.study_options import StudyOptions, study_grid
from rekindle.measuring.measurement import build_protocol, result_config
from rekindle.measuring.options import compare_options, evaluate_options, with_protocols

asked = {"protocol": "linear-seg", "trial_zoom": 2.0}
single = evaluate_options(asked)
pair = compare_options(asked | {"protocol": ["linear-seg"]})
for options in (single, pair):
    assert build_protocol("linear-seg", options) == "linear-seg read 2.0"
    assert result_config(options, "linear-seg")["trial_zoom"] == 2.0
tree = {"images": "i", "data": "d", "out": "o", "starts": {"a": "vit"}, "methods": {"glare": {}}, "trial_zoom": 3.0}
grid = check_grid(tree)
assert grid.measuring(grid.columns()[0]).trial_zoom == 3.0
study = with_protocols(StudyOptions, ["linear-seg"])(
    kind="data-scale", start="vit", images="i", data="d", out="o", protocol=("linear-seg",), trial_zoom=4.0
)
grid, tree = study_grid(study)
assert grid.measuring(grid.columns()[0]).trial_zoom == tree["trial_zoom"] == 4.0
for command in ("evaluate", "compare", "study"):
    main([command, "--help"])
"""


def test_a_new_one_is_a_field_and_a_reader_and_nothing_else(tmp_path: Path) -> None:
    package = Path(rekindle.__file__).parent
    shutil.copytree(package, tmp_path / "rekindle", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    _change(tmp_path / "rekindle" / "measuring" / "options.py", "class MeasuringOptions(Options):\n", FIELD)
    _change(tmp_path / "rekindle" / "measuring" / "measurement.py", "def build_protocol(", READER)
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=_only(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--trial-zoom") == 3


def _change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")


def _only(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
