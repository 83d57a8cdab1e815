# SPDX-License-Identifier: Apache-2.0
"""Either executor feeds a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import assert_same_training, metrics, run, stop_after, write_images


def test_a_run_with_views_made_on_the_device_trains_like_one_with_views_of_the_workers(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    losses = {}
    for executor in ("worker", "device"):
        result = run(images, tmp_path / executor, views__executor=executor, engine__log_steps=1)
        assert result.is_finished
        losses[executor] = [line["loss"] for line in metrics(tmp_path / executor)]
    assert len(losses["device"]) == 6
    # The same draws: the views differ by rounding, and so does what is learned from them.
    assert losses["device"] == pytest.approx(losses["worker"], rel=0.01)
    assert losses["device"] != losses["worker"]  # the option was read


def test_a_run_with_views_made_on_the_device_resumes_bit_for_bit_and_whatever_the_workers(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    changes: dict[str, Any] = {"views__executor": "device", "engine__log_steps": 1}
    run(images, through, **changes)
    first = run(images, stopped, watcher=stop_after(3), **changes)
    assert not first.is_finished
    run(images, stopped, resume=True, data__num_workers=1, **changes)
    assert_same_training(through, stopped)
