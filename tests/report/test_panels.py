# SPDX-License-Identifier: Apache-2.0
"""Curves: values lie where they belong, and what is not finite is a gap."""

from __future__ import annotations

import math

import pytest

from rekindle.report.panels import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Panel,
    drawn_panel,
    gaps,
    is_constant,
    thinned,
    ticks,
)


def test_the_first_and_last_step_lie_at_the_ends_of_the_axis_and_higher_is_up() -> None:
    line = drawn_panel(Panel("loss", [0, 5, 10], {"loss": [1.0, 3.0, 2.0]})).lines[0]
    places = [tuple(map(float, p.split())) for p in line.path.removeprefix("M").split("L")]
    assert [x for x, _ in places] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert places[1][1] < places[2][1] < places[0][1]
    assert all(TOP <= y <= HEIGHT for _, y in places)


def test_a_value_that_is_not_finite_is_a_gap_and_a_lone_value_a_dot() -> None:
    values = [1.0, 2.0, math.nan, 3.0, None, 4.0, math.inf]
    line = drawn_panel(Panel("loss", list(range(7)), {"loss": values})).lines[0]
    assert line.path.count("M") == 1 and line.path.count("L") == 1 and len(line.dots) == 2
    assert line.values == [1.0, 2.0, None, 3.0, None, 4.0, None]
    assert gaps(list(range(7)), values) == [2, 4, 6]


def test_nothing_but_gaps_is_still_drawn() -> None:
    panel = drawn_panel(Panel("loss", [1, 2], {"loss": [math.nan, math.nan]}))
    assert panel.lines[0].path == "" and panel.y_ticks
    assert drawn_panel(Panel("loss", [], {"loss": []})).lines[0].values == []


def test_a_noisy_line_gets_its_running_mean_by_hand() -> None:
    values = [float(i % 2) for i in range(100)]
    panel = drawn_panel(Panel("loss", list(range(100)), {"loss": values}, is_noisy=True))
    raw, mean = panel.lines
    assert raw.is_faint and mean.name == "mean of 5"
    assert mean.values[10] == pytest.approx(sum(values[6:11]) / 5)
    assert len(drawn_panel(Panel("lr", list(range(100)), {"lr": values})).lines) == 1


def test_thinning_keeps_the_last_step() -> None:
    kept = thinned(1001, 300)
    assert kept[0] == 0 and kept[-1] == 1000 and len(kept) <= 302
    assert thinned(0) == [] and thinned(1) == [0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-6), (-3.2, 7.9), (15.2, 15.3), (0.0, 48000.0)])
def test_ticks_are_round_ascending_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 4)
    assert 1 <= len(found) <= 6 and found == sorted(set(found))
    assert all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in found)


def test_constant_means_one_finite_number() -> None:
    assert (
        is_constant([2.0, 2.0]) and not is_constant([2.0, 3.0]) and not is_constant([math.nan]) and not is_constant([])
    )
