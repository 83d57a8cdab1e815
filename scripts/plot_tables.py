# SPDX-License-Identifier: Apache-2.0
"""Draw a matrix of runs: every row's difference to its start with its interval, one panel per measure, one mark per data set.

python scripts/plot_tables.py --out docs/images/tables-small.png \
    CamVid=results/methods-and-frameworks/tables-camvid.json Dubai=results/methods-and-frameworks/tables-dubai.json

A data set named twice has the rows of both files. Rows of one framework stand together, in the order in which they first occur.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "better": "#1a7f4b",
    "worse": "#c0392b",
    "equivalent": "#2471a3",
    "no difference": "#7f8c8d",
    "cannot judge": "#bfc5c9",
}
MARKS = ("o", "s", "^", "D")
LESS_IS_BETTER = ("similarity",)


def main() -> None:
    """Read the tables, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="NAME=table.json of `rekindle compare --grid`")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, path in (entry.split("=", 1) for entry in options.tables):
        tables.setdefault(name, []).extend(json.loads(Path(path).read_text())["rows"])
    draw(tables).savefig(options.out, dpi=110)


def draw(tables: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the figure of the rows of each data set."""
    found = {name: {_label(row): row["pooled"] for row in rows} for name, rows in tables.items()}
    named = {_label(row): row["framework"] for rows in tables.values() for row in rows}
    frameworks = list(dict.fromkeys(named.values()))
    labels = sorted(named, key=lambda label: frameworks.index(named[label]))
    borders = [place for place in range(1, len(labels)) if named[labels[place - 1]] != named[labels[place]]]
    measures = list(dict.fromkeys(m for rows in found.values() for pooled in rows.values() for m in pooled))
    figure, panels = plt.subplots(
        1, len(measures), figsize=(2 + 2.7 * len(measures), 1.5 + 0.3 * len(labels)), sharey=True, squeeze=False
    )
    for panel, measure in zip(panels[0], measures, strict=True):
        panel.axvline(0, color="#444", linewidth=0.8)
        for place in borders:
            panel.axhline(place - 0.5, color="#bbb", linewidth=0.8)
        for number, rows in enumerate(found.values()):
            shift = 0.16 * (2 * number - len(found) + 1)
            for place, label in enumerate(labels):
                value = rows.get(label, {}).get(measure)
                if value is not None:
                    _mark(panel, value, place + shift, MARKS[number % len(MARKS)])
        aim = "less is better" if measure in LESS_IS_BETTER else "more is better"
        panel.set_title(f"{measure}\n({aim})", fontsize=9)
        panel.set_xlabel("points against the base", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="#ddd", linewidth=0.5)
        panel.set_axisbelow(True)
        for edge in ("top", "right", "left"):
            panel.spines[edge].set_visible(False)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    marks = [
        plt.Line2D([], [], marker=MARKS[n % len(MARKS)], color="#444", linestyle="", label=name)
        for n, name in enumerate(found)
    ]
    words = {value["verdict"] for rows in found.values() for own in rows.values() for value in own.values()}
    marks += [
        plt.Line2D([], [], color=colour, linewidth=3, linestyle=_style(word), label=word)
        for word, colour in COLOURS.items()
        if word in words
    ]
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    return figure


def _label(row: dict[str, Any]) -> str:
    return f"{row['framework']}: {row['method']}"


def _mark(panel: Any, value: dict[str, Any], place: float, mark: str) -> None:
    colour = COLOURS.get(value["verdict"], COLOURS["no difference"])
    ends, style = [100 * value["low"], 100 * value["high"]], _style(value["verdict"])
    panel.plot(ends, [place, place], color=colour, linewidth=1.6, linestyle=style)
    panel.plot([100 * value["difference"]], [place], marker=mark, color=colour, markersize=4.5)


def _style(word: str) -> str:
    return ":" if word == "cannot judge" else "-"


if __name__ == "__main__":
    main()
