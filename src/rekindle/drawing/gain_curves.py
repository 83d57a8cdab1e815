# SPDX-License-Identifier: Apache-2.0
"""Picture of a time to gain: the score over seconds of training, a line for each side with a band over its trainings."""

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
class GainLine:
    """One side.

    Attributes:
        name: for the legend.
        seconds: of its points, rising, from 0.
        scores: at them, mean over the trainings.
        low: least of the trainings; high: largest.
        reached: seconds at which it is at the target to stay; None where it is not.
    """

    name: str
    seconds: Sequence[float]
    scores: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    reached: float | None


def write_gain_curves(
    path: Path, lines: Sequence[GainLine], metric: str, target: float | None, target_name: str
) -> None:
    """Write a PNG: the score over the time of training, the start as a level line, the target dashed.

    Args: metric, title of the score's axis; target, None where there is none.
    """
    longest = max(line.seconds[-1] for line in lines)
    unit, size = ("s", 1.0) if longest < 300 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
    figure = Figure(figsize=(8.0, 4.8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(1, 1, 1)
    axes.axhline(lines[0].scores[0], color=START, linewidth=1, label="start")
    if target is not None:
        axes.axhline(target, color=START, linestyle="--", linewidth=1, label=target_name)
    looks = zip(lines, cycle(PALETTE), cycle(STYLES), cycle(MARKS), strict=False)
    for line, colour, style, mark in looks:
        times = [second / size for second in line.seconds]
        axes.fill_between(times, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(times, line.scores, color=colour, linestyle=style, marker=mark, markersize=4, label=line.name)
        if line.reached is not None and target is not None:
            axes.plot([line.reached / size], [target], color=colour, marker="|", markersize=18, markeredgewidth=2)
    axes.set_xlabel(f"training, {unit} (without start-up and scoring)", fontsize=9)
    axes.set_ylabel(metric, fontsize=9)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper center", ncols=min(4, len(lines) + 2), fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    save_figure(figure, path)
