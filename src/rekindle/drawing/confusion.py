# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices as tables and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rekindle.drawing.pictures import save_figure
from rekindle.evaluation.scores.result import write_csv

MOST_NUMBERS = 24
"""Up to so many classes, each cell holds its number."""
MOST_LETTERS = 24
"""Longer names are cut."""
DPI = 100


def write_confusion_table(path: Path, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write a CSV: a line per true class, a column per predicted class, in pixels.

    Args:
        path: of the file.
        matrix: [C, C], true classes in rows.
        names: C class names.

    """
    lines = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
    write_csv(path, ["true class / predicted class", *names], lines)


def write_confusion_picture(path: Path, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """Draw where the pixels of each true class go: every row sums to 100 %, on one scale that also reads in grey.

    Colours follow the square root of the share, so that a confusion of a few percent is seen among 150 classes.

    Classes that neither labels nor predictions hold are left out; a row without a labelled pixel stays empty.

    Args: as `write_confusion_table`.
    """
    used = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    shares, titles = row_shares(matrix[used][:, used]), [_cut(n) for n, u in zip(names, used, strict=True) if u]
    count = len(titles)
    cell = 0.42 if count <= MOST_NUMBERS else 0.15
    letters = max([5, *map(len, titles)])
    size = 8 if count <= MOST_NUMBERS else 7
    left, above, side = 0.6 + letters * size * 0.0085, 0.9 + letters * size * 0.0085, max(2.2, cell * count)
    width, height = left + side + 0.9, above + side + 0.15
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((left / width, 0.15 / height, side / width, side / height))
    axes.set_facecolor("#d9d9d9")
    shown = axes.imshow(
        100 * shares, cmap="cividis", norm=PowerNorm(0.5, 0, 100), interpolation="nearest", aspect="auto"
    )
    axes.set_xticks(range(count), titles, rotation=90, fontsize=size)
    axes.set_yticks(range(count), titles, fontsize=size)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    if count > MOST_NUMBERS:  # so that a name finds its line
        axes.set_xticks(np.arange(-0.5, count, 10), minor=True)
        axes.set_yticks(np.arange(-0.5, count, 10), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.4, alpha=0.6)
        axes.tick_params(which="minor", length=0)
    else:
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                ink = "black" if share > 0.3 else "white"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    absent = len(names) - count
    told = f"; {absent} of {len(names)} classes are in neither and left out" if absent else ""
    figure.text(0.1 / width, 1 - 0.22 / height, f"rows: true class, columns: predicted class{told}", fontsize=9)
    bar = figure.add_axes(((left + side + 0.15) / width, 0.15 / height, 0.16 / width, side / height))
    colours = figure.colorbar(shown, cax=bar, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    colours.set_label("% of the pixels of the true class", fontsize=8)
    colours.ax.tick_params(labelsize=7)
    save_figure(figure, path)


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row over its sum; NaN in a row without any.

    Example:
        >>> row_shares(np.array([[3, 1], [0, 2]])).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    sums = matrix.sum(axis=1, keepdims=True).astype(np.float64)
    return np.where(sums > 0, matrix / np.where(sums > 0, sums, 1.0), np.nan)


def _cut(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
