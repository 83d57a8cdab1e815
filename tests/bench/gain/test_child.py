# SPDX-License-Identifier: Apache-2.0
"""A training that pauses is the training that does not, whatever happens in between."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rekindle.adapters.saved import load_backbone, model_hash, read_description
from rekindle.bench.gain.child import Talk, trained
from tests.engine.running import options, run, write_images


class Script(Talk):
    """A parent that has said everything beforehand."""

    def __init__(self, *lines: str) -> None:
        super().__init__(io.StringIO())
        self.told: list[dict[str, Any]] = []
        self._lines = [*lines]
        self.on_pause: Any = lambda: None

    def say(self, **told: object) -> None:
        self.told.append(json.loads(json.dumps(told)))

    def hear(self) -> str:
        self.on_pause()
        return self._lines.pop(0) if self._lines else self._end()

    def _end(self) -> str:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return ""


def request(tmp_path: Path, out: str, *, resume: bool = False) -> dict[str, Any]:
    asked = options(write_images(tmp_path / "images"), tmp_path / out)
    return {"file": {}, "asked": asked, "label": "a side", "resume": resume, "threads": None}


def plan(tmp_path: Path, *pauses: int, head_steps: int | None = None) -> str:
    return json.dumps({"pauses": pauses, "models": str(tmp_path / "marks"), "head_steps": head_steps})


def test_pauses_and_stops_change_nothing_and_leave_the_model_of_their_step(tmp_path: Path) -> None:
    """Six steps at once, against two, a pause, one more, a parent that goes away, and the rest in another process's place."""
    whole = run(write_images(tmp_path / "images"), tmp_path / "whole")
    first = Script(plan(tmp_path, 2, 3), "go", "go")
    assert trained(request(tmp_path, "parts"), first) == {"steps": 3, "is_finished": False}
    assert first.told[0]["ready"]["steps"] == 6 and first.told[0]["ready"]["batch_size"] == 4
    assert [told.get("paused", told.get("step")) for told in first.told[1:]] == [1, 2, 2, 3, 3]
    assert all(told["seconds"] > 0 for told in first.told if "step" in told)
    second = Script(plan(tmp_path, 6), "go", "go")
    assert trained(request(tmp_path, "parts", resume=True), second) == {"steps": 6, "is_finished": True}
    assert [told["step"] for told in second.told if "step" in told] == [4, 5, 6]
    assert read_description(tmp_path / "parts")["model_hash"] == whole.model_hash
    marked, _ = load_backbone(tmp_path / "marks" / "step-000002")
    assert read_description(tmp_path / "marks" / "step-000002")["steps"] == 2
    assert model_hash(marked) == read_description(tmp_path / "marks" / "step-000002")["model_hash"] != whole.model_hash
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["step-000002", "step-000003"]


def test_what_happens_in_a_pause_is_no_part_of_a_step(tmp_path: Path) -> None:
    import time

    slow = Script(plan(tmp_path, 2, 4), *["go"] * 4)
    slow.on_pause = lambda: time.sleep(0.5)
    trained(request(tmp_path, "run"), slow)
    assert max(told["seconds"] for told in slow.told if told.get("step", 1) > 1 and "step" in told) < 0.5
