# SPDX-License-Identifier: Apache-2.0
"""Pictures from arrays: colours of patch tokens, attention of the class token, curves of a run.

The same arrays give the same file. A constant image or constant tokens give a flat colour, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from rekindle.core.files import write_atomically
from rekindle.drawing.principal import principal_colours

Array = NDArray[np.float64]
Bytes = NDArray[np.uint8]

# Okabe and Ito's palette with a style of line each, for colour-blind readers and for grey prints
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
GAP = 4


def joint_colours(tokens: Sequence[ArrayLike]) -> list[Array]:
    """Return colours in [0, 1] of patch tokens: the principal components of all groups.

    Equal tokens get equal colours in every group. Each component runs from its 1st to its 99th percentile,
    with the sign that makes its largest loading positive.

    Args:
        tokens: groups [..., D] of one feature space, for example [images, gh, gw, D] of two models.

    Returns:
        One array [..., 3] per group; 0.5 where a component does not vary.

    """
    return principal_colours(tokens).colours


def heat_colours(maps: ArrayLike, *, low: float, high: float) -> Array:
    """Return colours [..., 3] of values [...] on a fixed scale: dark violet is `low`, pale yellow `high`."""
    values = np.asarray(maps, dtype=np.float64)
    share = ((values - low) / (high - low)).clip(0.0, 1.0) if high > low else np.zeros_like(values)
    stops = np.array(_INFERNO) / 255.0
    position = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(share, position, stops[:, c]) for c in range(3)], axis=-1)


_INFERNO = (  # the colour map of this name, at eight places
    (0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99),
    (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164),
)  # fmt: skip


def overlay(images: Bytes, maps: ArrayLike, *, low: float, high: float, alpha: float = 0.6) -> Bytes:
    """Heat maps [n, gh, gw] over grey images [n, H, W, 3], on one fixed scale."""
    grey = images.astype(np.float64).mean(axis=-1, keepdims=True) / 255.0
    heat = enlarged(heat_colours(maps, low=low, high=high), images.shape[1:3])
    return _bytes((1.0 - alpha) * grey + alpha * heat)


def enlarged(grids: ArrayLike, size: tuple[int, ...]) -> Array:
    """[n, gh, gw, C] to [n, H, W, C], each value repeated (nearest)."""
    values = np.asarray(grids, dtype=np.float64)
    rows = np.arange(size[0]) * values.shape[1] // size[0]
    columns = np.arange(size[1]) * values.shape[2] // size[1]
    return values[:, rows[:, None], columns[None, :]]


def write_grid(path: Path, rows: Mapping[str, ArrayLike], *, zoom: int = 1) -> None:
    """Write labelled rows of pictures as a PNG; see `drawn_grid`."""
    write_picture(path, drawn_grid(rows, zoom=zoom))


def drawn_grid(rows: Mapping[str, ArrayLike], *, zoom: int = 1) -> Bytes:
    """Return labelled rows of pictures of one size as one picture [H, W, 3].

    Args:
        rows: label -> pictures [n, H, W, 3], bytes or shares of 1.
        zoom: every pixel becomes this many, squared.

    """
    strips = [_strip(_bytes(pictures), zoom) for pictures in rows.values()]
    height, width = strips[0].shape[:2]
    longest = max(len(line) for label in rows for line in label.splitlines() or [""])
    dpi, left, top, between = 100, 24 + 9 * longest, 6, 10
    total = top + len(strips) * (height + between)
    figure = _figure((left + width + 8) / dpi, total / dpi, dpi)
    for index, (label, strip) in enumerate(zip(rows, strips, strict=True)):
        bottom = total - top - (index + 1) * height - index * between
        y = (bottom + height / 2) / total
        size = left + width + 8
        figure.text((left - 10) / size, y, label, ha="right", va="center", fontsize=11)
        axes = figure.add_axes((left / size, bottom / total, width / size, height / total))
        axes.imshow(strip, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    return _drawn(figure)


def write_picture(path: Path, pixels: ArrayLike) -> None:
    """Write one picture [H, W, 3], bytes or shares of 1, as a PNG of that size."""
    picture = Image.fromarray(np.ascontiguousarray(_bytes(pixels)))
    write_atomically(path, lambda stream: picture.save(stream, format="PNG", optimize=True))


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as an NPZ."""
    write_atomically(path, lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]


def write_curves(path: Path, steps: Sequence[int], terms: Mapping[str, Sequence[float]], *, smooth: int = 1) -> None:
    """Write one panel per term of the loss, each with its own scale.

    Args:
        path: of the PNG.
        steps: optimizer steps done.
        terms: name -> one value per step.
        smooth: also draw the running mean over this many steps.

    """
    columns = min(len(terms), 3)
    lines = -(-len(terms) // columns)
    figure = _figure(3.1 * columns, 2.3 * lines, 110)
    looks = cycle(zip(PALETTE, cycle(STYLES), strict=False))
    for index, ((name, values), (colour, style)) in enumerate(zip(terms.items(), looks, strict=False)):
        axes = figure.add_subplot(lines, columns, index + 1)
        axes.plot(steps, values, color=colour, alpha=0.35 if smooth > 1 else 1.0, linewidth=1)
        if smooth > 1:
            axes.plot(steps, running_mean(values, smooth), color=colour, linestyle=style, linewidth=1.8)
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if index // columns == lines - 1:
            axes.set_xlabel("step", fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def running_mean(values: Sequence[float], window: int) -> Array:
    """Mean over up to `window` values that end at each place, as many as there are at the start."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    end = np.arange(1, len(sums))
    start = np.maximum(0, end - window)
    return np.asarray((sums[end] - sums[start]) / (end - start))


def _strip(pictures: Bytes, zoom: int) -> Bytes:
    big = pictures.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap = np.full((big.shape[1], GAP, 3), 255, np.uint8)
    parts = [part for picture in big for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=1)


def _bytes(pictures: ArrayLike) -> Bytes:
    values = np.asarray(pictures)
    return values if values.dtype == np.uint8 else (values.clip(0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def _figure(width: float, height: float, dpi: int) -> Figure:
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which has its canvas, as a PNG without a date in it."""
    write_picture(path, _drawn(figure))


def _drawn(figure: Figure) -> Bytes:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
