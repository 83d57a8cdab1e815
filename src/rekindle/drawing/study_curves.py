# SPDX-License-Identifier: Apache-2.0
"""Pictures of studies: values and differences over a share of images or labels, or differences by data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rekindle.drawing.pictures import PALETTE, STYLES, save_figure

MARKS = "osD^vP"
START = "#555555"


@dataclass(frozen=True)
class Line:
    """One way to adapt.

    Attributes:
        name: for the legend.
        shares: in (0, 1], rising.
        start: values of the start, one per share.
        values: of the adapted model.
        differences: between them.
        low: lower ends of the intervals of the differences.
        high: upper ends.
        is_judged: whether there is enough for a verdict; of those without, marks are hollow. Empty: everywhere.

    """

    name: str
    shares: Sequence[float]
    start: Sequence[float]
    values: Sequence[float]
    differences: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    is_judged: Sequence[bool] = ()

    @property
    def unjudged(self) -> list[int]:
        """Places of what cannot be judged."""
        return [place for place, is_judged in enumerate(self.is_judged) if not is_judged]


@dataclass(frozen=True)
class StudyPanel:
    """What was measured in one way: its title, the metric with its unit, and the lines."""

    title: str
    metric: str
    lines: Sequence[Line]


def write_study_curves(path: Path, panels: Sequence[StudyPanel], what: str, *, level: float) -> None:
    """Write a PNG: for each panel the values above, the start dashed, and the differences with their intervals below.

    Args:
        path: of the file.
        panels: side by side.
        what: title of the share's axis, which is logarithmic.
        level: coverage of the intervals.

    """
    figure = _figure(0.6 + 3.6 * len(panels), 5.8)
    for place, panel in enumerate(panels):
        above: Any = figure.add_subplot(2, len(panels), place + 1)
        below: Any = figure.add_subplot(2, len(panels), len(panels) + place + 1, sharex=above)
        shares = sorted({share for line in panel.lines for share in line.shares})
        longest = max(panel.lines, key=lambda line: len(line.shares))
        above.plot(longest.shares, longest.start, color=START, linestyle="--", marker=".", zorder=5, label="start")
        for index, (line, colour, style, mark) in enumerate(_looks(panel.lines)):
            above.plot(line.shares, line.values, color=colour, linestyle=style, marker=mark, label=line.name)
            shift = 1.0 + 0.025 * (index - (len(panel.lines) - 1) / 2)  # so that bars do not hide each other
            below.errorbar(
                [shift * share for share in line.shares],
                line.differences,
                yerr=_errors(line),
                color=colour,
                linestyle=style,
                marker=mark,
                capsize=3,
                label=line.name,
            )
            hollow = [(shift * line.shares[at], line.differences[at]) for at in line.unjudged]
            _hollow(below, hollow, colour, mark)
        below.axhline(0.0, color=START, linestyle="--", linewidth=1)
        above.set_title(panel.title, fontsize=10)
        above.set_ylabel(panel.metric, fontsize=9)
        below.set_ylabel(f"difference to the start\n({level:.0%} interval)", fontsize=9)
        below.set_xlabel(what, fontsize=9)
        above.set_xscale("log")
        above.set_xticks(shares, [f"{100 * share:.3g}" for share in shares])
        above.set_xticks([], minor=True)
        _tidy(above, below)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=min(len(names), 2 * len(panels)), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.05 * -(-len(names) // (2 * len(panels)))))
    _hollow_note(figure, panels)
    save_figure(figure, path)


def write_bars(path: Path, panels: Sequence[StudyPanel], *, level: float) -> None:
    """Write a PNG: the difference of every line in every panel with its interval, one under the other, zero marked.

    Panels of one metric share an axis; a metric with another unit gets its own.
    """
    metrics = list(dict.fromkeys(panel.metric for panel in panels))
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    rows = max(sum(panel.metric == metric for panel in panels) for metric in metrics)
    figure = _figure(1.5 + 4.6 * len(metrics), 1.4 + 0.32 * rows * (1 + len(names)))
    looks = {name: look for (name, *look) in _named_looks(names)}
    for place, metric in enumerate(metrics):
        axes: Any = figure.add_subplot(1, len(metrics), place + 1)
        own = [panel for panel in panels if panel.metric == metric]
        for row, panel in enumerate(own):
            for line in panel.lines:
                colour, _, mark = looks[line.name]
                y = row + 0.6 * (names.index(line.name) - (len(names) - 1) / 2) / max(1, len(names))
                axes.errorbar(
                    line.differences,
                    [y] * len(line.differences),
                    xerr=_errors(line),
                    color=colour,
                    marker=mark,
                    linestyle="none",
                    capsize=3,
                    label=line.name if row == 0 else None,
                )
                _hollow(axes, [(line.differences[at], y) for at in line.unjudged], colour, mark)
        axes.axvline(0.0, color=START, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(own)), [panel.title for panel in own], fontsize=9)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_xlabel(f"{metric}: difference to the start ({level:.0%} interval)", fontsize=9)
        _tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / figure.get_figheight()))
    _hollow_note(figure, panels)
    save_figure(figure, path)


def _hollow(axes: Any, places: Sequence[tuple[float, float]], colour: str, mark: str) -> None:
    """Draw marks hollow: too little was measured for a verdict."""
    if places:
        across, up = zip(*places, strict=True)
        axes.plot(across, up, linestyle="none", marker=mark, color=colour, markerfacecolor="white", zorder=5)


def _hollow_note(figure: Figure, panels: Sequence[StudyPanel]) -> None:
    if any(line.unjudged for panel in panels for line in panel.lines):
        figure.text(0.995, 0.005, "hollow: cannot judge", ha="right", va="bottom", fontsize=8, color=START)


def _errors(line: Line) -> list[list[float]]:
    """Lengths below and above; the mean of a skewed bootstrap may lie a little outside its interval, which gives 0."""
    below = [max(0.0, d - low) for d, low in zip(line.differences, line.low, strict=True)]
    return [below, [max(0.0, high - d) for d, high in zip(line.differences, line.high, strict=True)]]


def _looks(lines: Sequence[Line]) -> list[tuple[Line, str, str, str]]:
    found = _named_looks([line.name for line in lines])
    return [(line, *look[1:]) for line, look in zip(lines, found, strict=True)]


def _named_looks(names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    return list(zip(names, cycle(PALETTE), cycle(STYLES), cycle(MARKS), strict=False))


def _tidy(*all_axes: Any) -> None:
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
