# SPDX-License-Identifier: Apache-2.0
"""Turns, times and what is kept of them; a program that trains nothing stands in for the trainings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rekindle.bench.gain import remote
from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.sides import Side
from rekindle.bench.gain.trainings import time_in_turn, told_seconds, train_in_turn
from rekindle.core.errors import RekindleError, RequestError

OPTIONS = GainOptions(marks=(0.5,))


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHILD", Path(__file__).with_name("standin.py"))


def side(tmp_path: Path, label: str, **changes: Any) -> Side:
    recipe = {"steps": 4, "heads": 1, "seconds": [1.0, 3.0], "told": str(tmp_path / "told.txt")}
    return Side(label, recipe | changes, sys.executable)


def quiet(line: str) -> None: ...


def test_sides_train_in_turn_from_mark_to_mark_and_their_seconds_add_up(tmp_path: Path) -> None:
    sides = [side(tmp_path, "a"), side(tmp_path, "b", steps=2, seconds=[0.5, 0.25])]
    lines: list[str] = []
    done = train_in_turn(sides, 0, OPTIONS, tmp_path / "work", lines.append)
    order = (tmp_path / "told.txt").read_text().splitlines()
    assert order == ["a 1", "a 2", "b 1", "b 2", "a 3", "a 4"]  # in the second round b begins
    (a, of_a), (b, of_b) = done["a"], done["b"]
    assert [(mark.step, mark.seconds) for mark in of_a.marks] == [(2, 4.0), (4, 10.0)]
    assert [(mark.step, mark.seconds) for mark in of_b.marks] == [(1, 0.5), (2, 0.75)]
    assert of_a.marks[-1].model == tmp_path / "work" / "a" / "seed-0" / "run"
    assert a.end == 4 and b.peak_bytes > 0 and a.usual == 3.0
    assert any("left" in line and "step 4 of 4" in line for line in lines)


def test_what_is_trained_is_not_trained_again_and_a_changed_recipe_is_refused(tmp_path: Path) -> None:
    first = train_in_turn([side(tmp_path, "a")], 0, OPTIONS, tmp_path, quiet)
    lines: list[str] = []
    again = train_in_turn([side(tmp_path, "a")], 0, OPTIONS, tmp_path, lines.append)
    assert again == first and lines == ["a, seed 0: trained before"]
    with pytest.raises(RequestError, match=r"was begun with recipe = .*remove that folder to train anew"):
        train_in_turn([side(tmp_path, "a", steps=8)], 0, OPTIONS, tmp_path, quiet)
    with pytest.raises(RequestError, match=r"was begun with marks = \[0.5, 1.0\]"):
        train_in_turn([side(tmp_path, "a")], 0, GainOptions(marks=(0.25,)), tmp_path, quiet)


def test_a_training_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'a', seed 0, cannot begin: steps = 0: give more"):
        train_in_turn([side(tmp_path, "a", fails=True)], 0, OPTIONS, tmp_path / "1", quiet)
    with pytest.raises(RekindleError, match=r"'a', seed 0, ended with exit code 1:\nthe disk is full"):
        train_in_turn([side(tmp_path, "a", dies=1)], 0, OPTIONS, tmp_path / "2", quiet)


def test_steps_are_timed_one_at_a_time_in_turn_and_counted_up_by_kind(tmp_path: Path) -> None:
    """By hand: 20 steps of 1 s in which heads move alone, 80 of 3 s, timed from two and five of them."""
    sides = [side(tmp_path, "a", steps=100, heads=20), side(tmp_path, "b", steps=10, heads=0, seconds=[9.0, 0.5])]
    found = time_in_turn(sides, GainOptions(time_only=5), tmp_path, quiet)
    assert found["a"].whole_seconds == 20 * 1.0 + 80 * 3.0 and found["a"].timed_steps == 7
    assert found["a"].seconds_at(30) == 20 * 1.0 + 10 * 3.0
    assert found["b"].whole_seconds == 5.0 and found["b"].head_step_seconds is None
    assert found["a"].images_per_s == pytest.approx(400 / 260)
    order = (tmp_path / "told.txt").read_text().splitlines()
    assert order == ["a 1", "a 2", "a 3", *("a 4", "b 1"), *("b 2", "a 5"), *("a 6", "b 3"), *("b 4", "a 7"),
                     *("a 8", "b 5"), *("b 6", "a 9")]  # fmt: skip


def test_a_run_too_short_to_be_timed_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--time-only 3: a has 4 steps, and timing takes 6 with the untimed ones"):
        time_in_turn([side(tmp_path, "a")], GainOptions(time_only=3), tmp_path, quiet)


@pytest.mark.parametrize(
    ("seconds", "told"), [(99.4, "99.4 s"), (100, "1:40 min"), (3599, "59:59 min"), (3600, "1:00 h")]
)
def test_seconds_are_told_as_people_read_them(seconds: float, told: str) -> None:
    assert told_seconds(seconds) == told
