# SPDX-License-Identifier: Apache-2.0
"""Pictures of a running job go to TensorBoard at the asked interval, and change nothing of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rekindle.core.errors import RequestError
from tests.engine.running import assert_same_training, run, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def shown(out: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_come_at_the_interval_and_at_the_end_and_leave_training_alone(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "plain", steps=5, engine__tensorboard=True)
    run(images, tmp_path / "live", steps=5, engine__tensorboard=True, engine__pictures_every=2)
    assert shown(tmp_path / "live") == {"pictures/tokens": [2, 4, 5], "pictures/attention": [2, 4, 5]}
    assert shown(tmp_path / "plain") == {}
    assert_same_training(tmp_path / "plain", tmp_path / "live")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_method_itself_draws_is_shown_too(images: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {k: None for k in (*_glare(), "views.local_size_px", "views.num_local")}
    run(
        images,
        tmp_path / "tec",
        method="tec",
        steps=2,
        tec__blocks_per_group=1,
        engine__tensorboard=True,
        engine__pictures_every=1,
        **changes,
    )
    assert "pictures/targets" in shown(tmp_path / "tec")


def test_an_interval_without_tensorboard_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="shows pictures in TensorBoard, which tensorboard = False switches off"):
        run(images, tmp_path / "run", engine__pictures_every=2)


def test_costs_and_the_session_are_recorded(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "run", steps=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["speed"]["seconds"] for line in lines]
    assert 0 < seconds[0] < seconds[1] and lines[0]["speed"]["memory_bytes"] > 1 << 20
    session = json.loads((tmp_path / "run" / "sessions.jsonl").read_text())
    assert session["software"]["torch"] == torch.__version__ and session["device"].startswith("CPU")
    told = json.loads((tmp_path / "run" / "sources.json").read_text())
    assert told["sources"]["steps"] == "asked" and told["sources"]["optim.beta1"] == "default"


def _glare() -> list[str]:
    from tests.engine.running import TINY

    return [name for name in TINY if name.startswith("glare.")]
