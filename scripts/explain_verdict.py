# SPDX-License-Identifier: Apache-2.0
"""Draw the picture of docs/verdict.md, and simulate which effects can be seen with how many images.

python scripts/explain_verdict.py --picture docs/images/verdict.png --table results/verdict/smallest-effect.json

Everything is made from seeds: rows of the worlds of `rekindle study calibration` (docs/results), judged by the product's own
functions. Of the effects the table holds the median of `smallest_effect` over the trials, in points.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rekindle.calibration.trials import QUIET, Condition, draw
from rekindle.calibration.worlds import World
from rekindle.calibration.worlds_of_scores import WORLDS
from rekindle.drawing.pictures import PALETTE, save_figure
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import FEWEST, Judged, judged_fields
from rekindle.evaluation.verdict.telling import measured, remarks

IMAGES = (30, 50, 100, 200, 400, 1000)
LEVEL, MARGIN, RESAMPLES, TRIALS, SHARE = 0.95, 0.005, 500, 100, 0.65
BY_NAME = {world.name: world for world in WORLDS}
STREETS, ONE_CLASS = BY_NAME["mIoU"], BY_NAME["top-1"]
KINDS: dict[str, tuple[World, dict[str, Any]]] = {
    "mIoU": (STREETS, {"seeds": 3, "seed_points": QUIET}),
    "mIoU, groups of 5": (STREETS, {"seeds": 3, "seed_points": QUIET, "group_size": 5, "share": SHARE}),
    "top-1": (ONE_CLASS, {}),
}
EXAMPLES: dict[str, tuple[Condition, int, float | None]] = {
    "better": (Condition(124, points=1.5), 1, None),
    "better by itself": (Condition(124, points=0.9), 5, None),
    "worse": (Condition(124, points=-1.5), 3, None),
    "no difference": (Condition(52, points=0.3), 4, None),
    "equivalent": (Condition(1000), 9, MARGIN),
    "cannot judge": (Condition(12, points=0.5), 6, None),
}
COLOURS = {"better": PALETTE[0], "worse": PALETTE[1], "equivalent": PALETTE[2]}


def main() -> None:
    """Simulate, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args()
    found = smallest_effects(options.trials)
    options.table.write_text(json.dumps(found, indent=1) + "\n")
    draw_picture(options.picture, examples(), found)


def smallest_effects(trials: int) -> dict[str, dict[str, float]]:
    """By images and kind: the median of the smallest effect that can be told, in points; nothing where none can be judged."""
    found: dict[str, dict[str, float]] = {}
    for images in IMAGES:
        row = found.setdefault(str(images), {})
        for name, (world, more) in KINDS.items():
            condition = Condition(images, **more)
            if condition.units < FEWEST["groups" if condition.group_size > 1 else "items"]:
                continue
            source = np.random.default_rng([images, *name.encode()])
            values = [difference(world, condition, source).smallest_effect(LEVEL) for _ in range(trials)]
            row[name] = round(100 * median(values), 2)
    return found


def difference(world: World, condition: Condition, source: np.random.Generator) -> Difference:
    """One trial of a condition; a negative effect is a positive one with the sides exchanged."""
    is_loss = condition.points < 0
    asked = replace(condition, points=abs(condition.points))
    sides = draw(world, asked, source)
    base, model = (sides.model, sides.base) if is_loss else (sides.base, sides.model)
    return difference_of(base, model, world.score, groups=condition.groups, resamples=RESAMPLES)


def examples() -> dict[str, Judged]:
    """A difference for every word, each from its own seed; the second one among eight that were looked at."""
    found = {}
    for name, (condition, seed, margin) in EXAMPLES.items():
        source = np.random.default_rng(seed)
        one = difference(STREETS, condition, source)
        joint = None
        if name == "better by itself":
            looks = {"this": one} | {f"{n}": difference(STREETS, Condition(124), source) for n in range(7)}
            joint = joint_verdicts(looks, LEVEL)["this"]
        found[name] = Judged(**judged_fields(one, LEVEL, margin, joint))
    return found


def draw_picture(path: Path, judged: dict[str, Judged], effects: dict[str, dict[str, float]]) -> None:
    """Left a difference for every word, right which effects can be seen with how many images."""
    figure = Figure(figsize=(12.5, 5.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.75, 1.0))
    _draw_words(left, judged)
    _draw_effects(right, effects)
    save_figure(figure, path)


def _draw_words(axes: Any, judged: dict[str, Judged]) -> None:
    for place, (name, found) in enumerate(judged.items()):
        colour, is_open = COLOURS.get(found.verdict, "#555555"), found.verdict == "cannot judge"
        if found.margin is not None:
            band = 100 * found.margin
            axes.fill_betweenx([place - 0.32, place + 0.32], -band, band, color="#d9dee4", linewidth=0)
        if found.joint is not None:
            axes.plot([100 * found.joint.low, 100 * found.joint.high], [place, place], color=colour, linewidth=1.2)
        ends = [100 * found.low, 100 * found.high]
        axes.plot(ends, [place, place], color=colour, linewidth=4, linestyle=(0, (1.2, 0.8)) if is_open else "-")
        face = "white" if is_open else colour
        axes.plot([100 * found.difference], [place], marker="o", color=colour, markersize=8, markerfacecolor=face)
        axes.text(-11.6, place - 0.12, name, fontsize=10.5, color=colour, weight="bold", va="bottom")
        told = "; ".join([measured(found, "mIoU"), *remarks(found, "mIoU")])
        axes.text(-11.6, place - 0.08, fill(told, 72), fontsize=8, color="#444444", va="top")
    axes.axvline(0.0, color="#777777", linestyle="--", linewidth=1)
    axes.set_ylim(len(judged) - 0.45, -0.6)
    axes.set_xlim(-11.7, 4.2)
    axes.set_xticks(range(-4, 5, 2))
    axes.set_yticks([])
    axes.set_xlabel("adapted minus base, points of mIoU", fontsize=9, loc="right")
    axes.set_title("The words", fontsize=11, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_bounds(-4.2, 4.2)


def _draw_effects(axes: Any, effects: dict[str, dict[str, float]]) -> None:
    for (name, _), colour, mark, style in zip(KINDS.items(), PALETTE, "osD", ("-", "--", "-."), strict=False):
        images = [int(count) for count, row in effects.items() if name in row]
        values = [row[name] for row in effects.values() if name in row]
        axes.plot(images, values, color=colour, marker=mark, linestyle=style, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(IMAGES, [str(count) for count in IMAGES])
    axes.set_xticks([], minor=True)
    ticks = (0.2, 0.5, 1, 2, 5, 10)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("labelled images", fontsize=9)
    axes.set_ylabel("points", fontsize=9)
    axes.set_title("The smallest effect that can be told", fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8.5, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
