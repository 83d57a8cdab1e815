# SPDX-License-Identifier: Apache-2.0
"""The harness that kills runs, in its short form; the full one: `python -m tests.robustness.kills`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.running import run, write_images
from tests.robustness.kills import compare


def test_runs_that_are_killed_six_times_equal_runs_that_were_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.robustness.kills", "--count", "6", "--seed", "2", "--out"]
    done = subprocess.run([*command, str(tmp_path / "found.json")], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(found["kills"].values()) == 6
    assert found["lost"] == []


@pytest.mark.slow
def test_sixty_kills_over_processes_workers_and_accumulation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.robustness.kills", "--count", "60", "--seed", "4", "--out"]
    done = subprocess.run([*command, str(tmp_path / "found.json")], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]


def test_the_harness_notices_another_seed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    run(images, tmp_path / "one")
    run(images, tmp_path / "two", seed=1)
    with pytest.raises(AssertionError):
        compare(tmp_path / "one", tmp_path / "two")
