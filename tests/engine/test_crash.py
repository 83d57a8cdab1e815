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
workers = int(sys.argv[4])
run(Path(sys.argv[1]), Path(sys.argv[2]), resume=True, steps=int(sys.argv[3]), engine__checkpoint_steps=2,
    data__num_workers=workers)
"""


@pytest.mark.slow
def test_three_kills_and_resumes_equal_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    steps = 120
    images, out = write_images(tmp_path / "images"), tmp_path / "killed"
    run(images, tmp_path / "whole", steps=steps, engine__checkpoint_steps=2)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(images), str(out), str(steps), "0"]
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


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_saves_and_exits_cleanly(tmp_path: Path) -> None:
    """Schedulers and Ctrl-C reach the data workers too; they leave the decision to the parent."""
    steps = 60
    images, out = write_images(tmp_path / "images"), tmp_path / "stopped"
    run(images, tmp_path / "whole", steps=steps, engine__checkpoint_steps=2)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(images), str(out), str(steps), "2"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while _lines(out) < 5 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not (out / "model.json").exists(), "the run ended before it was stopped; give it more steps"
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert_same_training(tmp_path / "whole", out)


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
