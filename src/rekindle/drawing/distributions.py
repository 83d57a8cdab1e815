# SPDX-License-Identifier: Apache-2.0
"""Cosines within a class against those across classes, as a picture and a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rekindle.core.files import write_atomically
from rekindle.drawing.pictures import PALETTE, save_figure


def write_overlap(path: Path, intra: ArrayLike, inter: ArrayLike) -> None:
    """Write two histograms over [-1, 1] as a PNG, and as a CSV of the same stem (low, high, intra, inter).

    Args:
        path: of the picture.
        intra: pairs of one class in each bin, of any scale; shares are shown.
        inter: pairs of different classes.

    """
    shares = [np.asarray(counts, dtype=np.float64) / np.sum(counts) for counts in (intra, inter)]
    edges = np.linspace(-1.0, 1.0, len(shares[0]) + 1)
    shared = float(np.minimum(*shares).sum())
    figure = Figure(figsize=(4.2, 2.8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for values, name, colour in zip(shares, ("within a class", "across classes"), PALETTE, strict=False):
        axes.stairs(values, edges, label=name, color=colour, fill=True, alpha=0.45)
    axes.set_xlabel("cosine of two patches", fontsize=9)
    axes.set_ylabel("share of the pairs", fontsize=9)
    axes.set_title(f"overlap {shared:.3f}", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["low", "high", "intra", "inter"])
    writer.writerows(zip(edges[:-1].tolist(), edges[1:].tolist(), *(s.tolist() for s in shares), strict=True))
    write_atomically(path.with_suffix(".csv"), lambda stream: stream.write(text.getvalue().encode()))
