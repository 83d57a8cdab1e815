# SPDX-License-Identifier: Apache-2.0
"""Pictures of the class token's attention to the patches, head by head (DINO, arXiv:2104.14294, figures 1 and 3).

Maps are [heads, gh, gw], the class token's row of the softmax without its prefix columns: a head sums to less than 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from rekindle.core.files import write_atomically
from rekindle.drawing.pictures import (
    PALETTE,
    Array,
    Bytes,
    enlarged,
    heat_colours,
    overlay,
    write_arrays,
    write_picture,
)


def top_mass(attention: ArrayLike, mass: float = 0.6) -> NDArray[np.bool_]:
    """Return which cells [..., gh, gw] hold the top share `mass` of each map's attention.

    Cells in ascending order are dropped while their sum does not exceed 1 - mass of the whole; of equal ones those further down.

    Example:
        >>> top_mass([[0.5, 0.3], [0.15, 0.05]]).tolist()
        [[True, True], [False, False]]
    """
    maps = np.asarray(attention, dtype=np.float64)
    flat = maps.reshape(*maps.shape[:-2], -1)
    order = np.argsort(flat[..., ::-1], axis=-1, kind="stable")
    order = flat.shape[-1] - 1 - order
    ascending = np.take_along_axis(flat, order, axis=-1)
    total = ascending.sum(axis=-1, keepdims=True)
    is_kept = ascending.cumsum(axis=-1) > (1.0 - mass) * total * (1.0 + 1e-9)  # sums that are equal but for rounding
    kept = np.zeros(flat.shape, dtype=np.bool_)
    np.put_along_axis(kept, order, is_kept, axis=-1)
    return kept.reshape(maps.shape)


def head_composite(attention: ArrayLike, *, floor: float = 0.1) -> Array:
    """Return colours [gh, gw, 3] of the strongest head at each cell, as bright as its attention.

    Args:
        attention: [heads, gh, gw]; each head is scaled to its own maximum.
        floor: share of that maximum below which a cell is black.

    """
    maps = np.asarray(attention, dtype=np.float64)
    peaks = maps.max(axis=(1, 2), keepdims=True)
    scaled = np.where(peaks > 0, maps / np.where(peaks > 0, peaks, 1.0), 0.0)
    strongest, brightness = scaled.argmax(axis=0), scaled.max(axis=0)
    wheel = np.array([to_rgb(colour) for colour in PALETTE[:-1]])  # the last is black
    colours = wheel[strongest % len(wheel)] * brightness[..., None]
    return np.where(brightness[..., None] >= floor, colours, 0.0)


def write_attention(
    folder: Path, image: Bytes, attention: ArrayLike, *, mass: float = 0.6, alpha: float = 0.5, floor: float = 0.1
) -> None:
    """Write the attention of one image as PNGs of its size.

    `mean.png` and `head-<i>.png` are heat maps (each from 0 to its maximum), `mass-<i>.png` the image with the top `mass` of a
    head's attention tinted, `composite.png` the strongest heads, and `attention.npz` the numbers.

    Args:
        folder: of the files.
        image: bytes [H, W, 3].
        attention: [heads, gh, gw].
        mass: see `top_mass`.
        alpha: weight of the tint.
        floor: see `head_composite`.

    """
    maps = np.asarray(attention, dtype=np.float64)
    size = image.shape[:2]
    write_picture(folder / "mean.png", mean_overlay(image, maps, alpha=alpha))
    for head, (weights, mask) in enumerate(zip(maps, top_mass(maps, mass), strict=True)):
        heat = heat_colours(weights[None], low=0.0, high=float(weights.max()))
        write_picture(folder / f"head-{head}.png", enlarged(heat, size)[0])
        cover = alpha * enlarged(mask[None, ..., None], size)[0]
        tint = np.array(to_rgb(PALETTE[head % (len(PALETTE) - 1)]))
        write_picture(folder / f"mass-{head}.png", (1.0 - cover) * image / 255.0 + cover * tint)
    write_picture(folder / "composite.png", enlarged(head_composite(maps, floor=floor)[None], size)[0])
    write_arrays(folder / "attention.npz", attention=maps)


def mean_overlay(image: Bytes, attention: ArrayLike, *, high: float | None = None, alpha: float = 0.5) -> Bytes:
    """Return the heat map of the heads' mean over the grey image [H, W, 3].

    Args:
        image: bytes.
        attention: [heads, gh, gw].
        high: what is shown brightest; None for the map's own maximum. Frames of a film need one for all.
        alpha: weight of the heat map.

    """
    mean = np.asarray(attention, dtype=np.float64).mean(axis=0)
    top = float(mean.max()) if high is None else high
    return np.asarray(overlay(image[None], mean[None], low=0.0, high=top, alpha=alpha)[0])


def write_film(path: Path, frames: Sequence[Bytes], attention: Sequence[ArrayLike], *, fps: float = 10.0) -> None:
    """Write the mean attention over frames of one size as an animated GIF, all on one scale.

    Args:
        path: of the file.
        frames: bytes [H, W, 3] each.
        attention: [heads, gh, gw] of each.
        fps: frames per second.

    """
    high = max(float(np.asarray(maps, dtype=np.float64).mean(axis=0).max()) for maps in attention)
    pictures = [
        Image.fromarray(mean_overlay(frame, maps, high=high)) for frame, maps in zip(frames, attention, strict=True)
    ]
    write_atomically(
        path,
        lambda stream: pictures[0].save(
            stream, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
        ),
    )
