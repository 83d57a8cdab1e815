# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
