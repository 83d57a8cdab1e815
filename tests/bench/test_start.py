# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rekindle.bench import start
from rekindle.bench.options import BenchOptions
from rekindle.bench.running import build_case
from rekindle.engine.watcher import StepReport


def test_each_line_of_news_ends_a_part_and_the_wait_is_told_from_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the step ends at 20; since the loop began it took 8 / 2 = 4 s, a quarter of them waiting: the batch came at 17."""
    clock = iter([10.0, 11.0, 13.0, 14.0, 20.0, 20.0])
    monkeypatch.setattr("rekindle.bench.start.time.time", lambda: next(clock))
    marks = start._Marks(batch_size=8)
    for line in ("5 images in x", "vit: random weights", "glare: 1 M numbers train", "image store"):
        marks.message(line)
    marks.step(StepReport(1, 1, 1.0, 2.0, 0.25, 0, 0.0))
    assert [marks.at[part] for part in start.PARTS] == [10.0, 11.0, 13.0, 14.0, 17.0, 20.0]


def test_medians_of_the_parts_and_times_of_the_rounds_are_reported() -> None:
    taken = [(5.0, {"imports": 3.0}), (6.0, {"imports": 4.0}), (9.0, {"imports": 4.5})]
    row = start._measured("5 files", taken)
    assert (row.seconds, row.median, row.facts) == ((5.0, 6.0, 9.0), 6.0, {"split": {"imports": 4.0}})
    assert start._measured("import", [(1.0, {})]).facts == {}


@pytest.mark.slow
def test_the_first_step_of_real_processes_is_timed() -> None:
    options = BenchOptions(
        name="start", num_images=20, rounds=1, warmup=0, batch_size=2, accelerator="cpu", num_prototypes=16
    )
    said: list[str] = []
    rows = {row.label: row for row in start.run(options, build_case(options), said.append)}
    assert list(rows) == ["import rekindle", "rekindle --help", "1 files", "2 files", "20 files"]
    assert "making 20 files" in said
    for label in ("1 files", "20 files"):
        split = rows[label].facts["split"]
        assert isinstance(split, dict) and list(split) == list(start.PARTS)
        assert all(seconds >= 0 for seconds in split.values())
        assert sum(split.values()) == pytest.approx(rows[label].median, abs=0.01)
        assert rows[label].median > rows["import rekindle"].median
