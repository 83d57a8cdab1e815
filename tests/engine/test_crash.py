# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at random moments: nothing is lost and nothing changes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.running import assert_same_training, run, write_images

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.engine.running import run
run(Path(sys.argv[1]), Path(sys.argv[2]), resume=True, steps=int(sys.argv[3]), engine__checkpoint_steps=2)
"""


@pytest.mark.slow
def test_three_kills_and_resumes_equal_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    steps = 120
    images, out = write_images(tmp_path / "images"), tmp_path / "killed"
    run(images, tmp_path / "whole", steps=steps, engine__checkpoint_steps=2)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(images), str(out), str(steps)]
    dice, kills = random.Random(0), 0
    while kills < 3:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines_before = _lines(out)
        while _lines(out) <= lines_before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0.0, 0.5))
        assert process.poll() is None, "the run ended before it could be killed; give it more steps"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert_same_training(tmp_path / "whole", out)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
