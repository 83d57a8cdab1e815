# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG: where lines, ticks and gaps go. What is not finite is a gap, never a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rekindle.drawing.pictures import PALETTE, running_mean

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 24
MOST_POINTS = 300
DASHES = ("", "6 3", "2 2", "8 3 2 3")
SMOOTHED = 40  # points from which a single line is drawn with its running mean


@dataclass(frozen=True)
class Panel:
    """Curves over the steps of a run that share one scale.

    Attributes:
        title: what is shown, with its unit.
        steps: where, ascending.
        lines: name -> one value per step; None or NaN where there is none.
        note: what a reader should know.
        whole: steps of the run, the right end of the axis; 0 for the last step.
        is_noisy: a single line of many points is drawn with its running mean.

    """

    title: str
    steps: Sequence[int]
    lines: Mapping[str, Sequence[float | None]]
    note: str = ""
    whole: int = 0
    is_noisy: bool = False


@dataclass(frozen=True)
class DrawnLine:
    """One curve: its values at the steps of the panel, its path, and how it looks."""

    name: str
    values: list[float | None]
    path: str
    dots: list[tuple[str, str]]
    colour: int
    dash: str
    is_faint: bool


@dataclass(frozen=True)
class Tick:
    """A mark at a place of the drawing, with its number."""

    at: str
    label: str


@dataclass(frozen=True)
class DrawnPanel:
    """A panel ready for the template. `left` and `right` are where the first and the last step of the axis lie."""

    title: str
    note: str
    steps: list[int]
    lines: list[DrawnLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    first: int
    last: int
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def drawn_panel(panel: Panel) -> DrawnPanel:
    """Lay out a panel. Of many steps every k-th is kept, and the last."""
    kept = thinned(len(panel.steps))
    steps = [panel.steps[i] for i in kept]
    named = {name: [_finite(values[i]) for i in kept] for name, values in panel.lines.items()}
    curves = [(name, values, False) for name, values in named.items()]
    if panel.is_noisy and len(panel.lines) == 1 and len(panel.steps) >= SMOOTHED:
        curves = _with_mean(panel, kept, curves)
    found = [v for _, values, _ in curves for v in values if v is not None]
    low, high = _limits(found)
    first, last = (min(0, steps[0]) if steps else 0), max([panel.whole, *steps[-1:], 1])

    def place(step: float, value: float) -> tuple[str, str]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
        return f"{x:.1f}", f"{y:.1f}"

    lines = []
    for number, (name, values, is_faint) in enumerate(curves):
        path, dots = _path(steps, values, place)
        look = 0 if len(panel.lines) == 1 else number
        dash = DASHES[look % len(DASHES)]
        lines.append(DrawnLine(name, values, path, dots, look % len(PALETTE), dash, is_faint))
    y_ticks = [Tick(place(first, v)[1], _number(v)) for v in ticks(low, high, 4)]
    x_ticks = [Tick(place(v, low)[0], f"{v:g}") for v in ticks(first, last, 4)]
    return DrawnPanel(panel.title, panel.note, steps, lines, x_ticks, y_ticks, first, last)


def thinned(count: int, most: int = MOST_POINTS) -> list[int]:
    """Return at most about `most` places out of `count`, evenly, the last among them."""
    stride = max(1, -(-count // most))
    kept = list(range(0, count, stride))
    return kept if not count or kept[-1] == count - 1 else [*kept, count - 1]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers within [low, high], about `count` of them.

    Example:
        >>> ticks(0.0, 240.0, 4), ticks(15.2, 19.9, 4)
        ([0.0, 100.0, 200.0], [16.0, 18.0])

    """
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1.0, 2.0, 5.0, 10.0) if unit * m >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    stop = math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(start, stop + 1)]


def _with_mean(
    panel: Panel, kept: Sequence[int], curves: list[tuple[str, list[float | None], bool]]
) -> list[tuple[str, list[float | None], bool]]:
    """The one line faintly, and its running mean, unless it has gaps."""
    (name, every), window = next(iter(panel.lines.items())), max(2, len(panel.steps) // 20)
    values = [_finite(v) for v in every]
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return curves
    mean = running_mean(known, window)
    return [(name, curves[0][1], True), (f"mean of {window}", [float(mean[i]) for i in kept], False)]


def _path(steps: Sequence[int], values: Sequence[float | None], place: object) -> tuple[str, list[tuple[str, str]]]:
    """SVG commands of the runs of values, and the places of values without a neighbour."""
    assert callable(place)
    commands: list[str] = []
    dots: list[tuple[str, str]] = []
    run: list[tuple[str, str]] = []
    for step, value in [*zip(steps, values, strict=True), (0, None)]:
        if value is not None:
            run.append(place(step, value))
            continue
        if len(run) == 1:
            dots.append(run[0])
        elif run:
            commands.append("M" + "L".join(f"{x} {y}" for x, y in run))
        run = []
    return "".join(commands), dots


def _limits(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _finite(value: float | None) -> float | None:
    """A number that a page can hold, of five digits; None for what is no number."""
    return float(f"{value:.5g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value and abs(value) < 1e-3 else f"{value:g}"


def gaps(steps: Sequence[int], values: Sequence[float | None]) -> list[int]:
    """Return the steps at which a value is not finite."""
    return [s for s, v in zip(steps, values, strict=True) if _finite(v) is None]


def is_constant(values: Sequence[float | None]) -> bool:
    """Whether all values are one finite number."""
    return all(a == b for a, b in pairwise(values)) and bool(values) and _finite(values[0]) is not None
