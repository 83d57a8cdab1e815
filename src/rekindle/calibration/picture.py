# SPDX-License-Identifier: Apache-2.0
"""calibration.png: wrong words by situation, coverage, and power by effect, the rule of before beside that of now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rekindle.calibration.cells import Section
from rekindle.calibration.limits import COVERED, NOW, WRONG, Calibration, Together
from rekindle.calibration.page import BEFORE
from rekindle.calibration.simulate import Measured
from rekindle.calibration.tally import Rate
from rekindle.drawing.pictures import save_figure

Line = tuple[str, dict[str, Rate]]
"""A situation, and the rate of wrong words by rule."""
COLOURS = {BEFORE: "#999999", NOW: "#0072B2"}
SHOWN: tuple[Section, ...] = ("items", "groups", "seeds", "trainings", "overall", "stray", "chosen")
OF_EVERY_SCORE = ("30 items", "15 groups of 20, share 0.65")
"""Situations that are shown for every kind of score; the others are for mIoU alone."""


def write_picture(path: Path, found: Calibration) -> None:
    """Write the PNG."""
    cells = [cell for section in SHOWN for cell in found.measured if cell.section == section and _is_shown(cell)]
    lines = [(f"{cell.world}: {cell.label}", {rule: cell.by(rule).wrong for rule in COLOURS}) for cell in cells]
    lines += _of_real(found.together)
    effects = [cell for cell in found.measured if cell.section == "effects" and cell.world == "mIoU" and cell.effect]
    height = max(4.0, 1.8 + 0.17 * len(lines))
    figure = Figure(figsize=(13.0, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1.0))
    _wrong(figure.add_subplot(grid[:, 0]), lines)
    if effects:
        _power(figure.add_subplot(grid[0, 1]), effects)
    _covered(figure.add_subplot(grid[1, 1]), [cell for cell in found.measured if cell.is_promised])
    save_figure(figure, path)


def _is_shown(cell: Measured) -> bool:
    return cell.world in ("mIoU", "several") or cell.label in OF_EVERY_SCORE


def _of_real(rows: Sequence[Together]) -> list[Line]:
    """One line for all small models, where there are any."""
    rates = {row.rule: row.wrong for row in rows if row.section == "real" and row.wrong is not None}
    return [("small real models, all protocols together", rates)] if rates else []


def _wrong(axes: Any, lines: Sequence[Line]) -> None:
    """A dot with its interval for every situation in which nothing differs."""
    for place, (_, rates) in enumerate(lines):
        for rule, shift in ((BEFORE, -0.15), (NOW, 0.15)):
            _bar(axes, rates[rule], place + shift, COLOURS[rule], rule if place == 0 else None)
    axes.axvline(100 * WRONG, color="#D55E00", linestyle="--", linewidth=1, label=f"limit {WRONG:.0%}")
    axes.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=6.5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xscale("symlog", linthresh=10)
    ticks = (0, 2, 4, 6, 8, 10, 20, 50, 100)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("a difference is claimed where there is none, % of trials")
    axes.set_title("How often the verdict is wrong", fontsize=11)
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(axis="x", alpha=0.3)


def _bar(axes: Any, rate: Rate, height: float, colour: str, label: str | None) -> None:
    ends = [[100 * (rate.value - rate.least)], [100 * (rate.most - rate.value)]]
    axes.errorbar(
        [100 * rate.value], [height], xerr=ends, fmt="o", markersize=3, color=colour, linewidth=1, label=label
    )


def _power(axes: Any, cells: Sequence[Measured]) -> None:
    """How often a planted effect is seen, by its size, a line per number of items."""
    for style, kind in zip(("-", "--", ":", "-."), sorted({_kind(cell) for cell in cells}), strict=False):
        own = sorted((cell for cell in cells if _kind(cell) == kind), key=lambda cell: cell.effect or 0.0)
        for rule in (BEFORE, NOW):
            points = [cell.effect for cell in own]
            axes.plot(
                points,
                [100 * cell.by(rule).better.value for cell in own],
                color=COLOURS[rule],
                linestyle=style,
                marker=".",
                label=kind if rule == NOW else None,
            )
    axes.set_xlabel("planted effect, points of mIoU")
    axes.set_ylabel("called better, %")
    axes.set_title("How often a true effect is seen", fontsize=11)
    axes.set_ylim(0, 102)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _kind(cell: Measured) -> str:
    return cell.label.split(", effect")[0]


def _covered(axes: Any, cells: Sequence[Measured]) -> None:
    """Coverage of every promised cell, sorted."""
    for rule in (BEFORE, NOW):
        shares = sorted(100 * found.value for cell in cells if (found := cell.by(rule).coverage) is not None)
        axes.plot(range(len(shares)), shares, ".", color=COLOURS[rule], label=rule)
    axes.axhspan(100 * COVERED[0], 100 * COVERED[1], color="#009E73", alpha=0.15, label="promised")
    axes.set_xlabel("situations, sorted")
    axes.set_ylabel("interval holds the truth, %")
    axes.set_title("Coverage of the 95 % interval", fontsize=11)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
