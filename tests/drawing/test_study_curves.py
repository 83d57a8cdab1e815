# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rekindle.drawing.study_curves import Line, StudyPanel, _errors, write_bars, write_study_curves


def _line(name: str, difference: float) -> Line:
    shares = [0.1, 0.5, 1.0]
    values = [50.0 + difference] * 3
    return Line(name, shares, [50.0] * 3, values, [difference] * 3, [difference - 1.0] * 3, [difference + 2.0] * 3)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_bars_run_from_the_lower_to_the_upper_end() -> None:
    below, above = _errors(_line("m", 3.0))
    assert (below, above) == ([1.0] * 3, [2.0] * 3)
    outside = Line("m", [1.0], [0.0], [0.0], [0.5], [0.6], [0.9])
    assert _errors(outside) == [[0.0], [0.4]]


@pytest.mark.parametrize("kind", ["curves", "bars"])
def test_pictures_follow_their_values_and_repeat(tmp_path: Path, kind: str) -> None:
    for stem, difference in (("a", 1.0), ("b", 1.0), ("c", -4.0)):
        path = tmp_path / f"{stem}.png"
        if kind == "curves":
            write_study_curves(path, _panels(difference), "share, %", level=0.95)
        else:
            write_bars(path, _panels(difference), level=0.95)
    first, again, other = (_pixels(tmp_path / f"{stem}.png") for stem in "abc")
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def _panels(difference: float) -> list[StudyPanel]:
    lines = [_line("glare", difference), _line("dino", 0.5)]
    return [StudyPanel("linear-seg", "mIoU, %", lines), StudyPanel("depth", "AbsRel (ratio)", lines[:1])]


def _hollow(axes: Any) -> list[tuple[float, float]]:
    """Places of the marks that are drawn hollow."""
    drawn = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    return [(float(x), float(y)) for line in drawn for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


@pytest.mark.parametrize("kind", ["curves", "bars"])
def test_what_cannot_be_judged_is_drawn_hollow_and_said(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("rekindle.drawing.study_curves.save_figure", lambda figure, path: figures.append(figure))
    for is_judged in ([False, True, False], []):
        panels = [StudyPanel("linear-seg", "mIoU, %", [replace(_line("glare", 1.0), is_judged=is_judged)])]
        if kind == "curves":
            write_study_curves(tmp_path / "a.png", panels, "share, %", level=0.95)
        else:
            write_bars(tmp_path / "a.png", panels, level=0.95)
    places = {"curves": [(0.1, 1.0), (1.0, 1.0)], "bars": [(1.0, 0.0), (1.0, 0.0)]}[kind]
    assert _hollow(figures[0].axes[-1]) == places
    assert [text.get_text() for text in figures[0].texts] == ["hollow: cannot judge"]
    assert _hollow(figures[1].axes[-1]) == [] and not figures[1].texts
