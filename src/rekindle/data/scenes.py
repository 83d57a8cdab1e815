# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes with exact masks, in two visual domains: something to adapt to, with nothing to download.

A scene is one or two textured grounds with textured objects on them that hide each other. A class is a shape
with a texture. The colours of its surfaces are drawn around the tint of the scene: they say nothing about the
class. The domains have the same classes: `studio` is seen from above, in strong colours; `field` at an angle,
smaller, finer in texture, greenish, hazy and noisy.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rekindle.core.errors import RequestError, unknown_name

Field = NDArray[np.floating[Any]]
Colour = NDArray[np.floating[Any]]
Window = tuple[slice, slice]

GROUNDS = ("grass", "brick", "waves")
OBJECTS = ("disc", "square", "triangle", "ring", "cross")
CLASSES = GROUNDS + OBJECTS
# Okabe and Ito's palette: told apart by colour-blind readers too
COLORS = (
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
    (230, 159, 0),
    (70, 70, 70),
)
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Domain:
    """What scenes of one kind look like. Ranges are (smallest, largest), lengths are shares of the side.

    Attributes:
        hue: tint of a scene, as a share of a turn; it wraps around.
        hue_spread: how far a surface's hue may be from the tint.
        saturation, value: of the palette's colours.
        contrast: least and largest difference in value between the two colours of a surface.
        radius: of an object.
        period: of a texture.
        wobble: how far a texture is bent, in periods.
        tilt: how much nearer the lower edge is than the upper one; 0 is seen from above.
        shear: largest shear of the view.
        haze: largest share of haze, at the upper edge.
        vignette: largest darkening of the corners.
        noise: standard deviation of the camera's noise, in [0, 1] values.

    """

    hue: tuple[float, float]
    hue_spread: float
    saturation: tuple[float, float]
    value: tuple[float, float]
    contrast: tuple[float, float]
    radius: tuple[float, float]
    period: tuple[float, float]
    wobble: float
    tilt: tuple[float, float]
    shear: float
    haze: float
    vignette: float
    noise: float


DOMAINS: dict[str, Domain] = {
    "studio": Domain(
        hue=(0.0, 1.0),
        hue_spread=0.06,
        saturation=(0.25, 0.7),
        value=(0.2, 0.95),
        contrast=(0.4, 0.65),
        radius=(0.15, 0.27),
        period=(0.085, 0.13),
        wobble=0.03,
        tilt=(0.0, 0.05),
        shear=0.05,
        haze=0.0,
        vignette=0.1,
        noise=0.01,
    ),
    "field": Domain(
        hue=(0.04, 0.42),
        hue_spread=0.06,
        saturation=(0.15, 0.5),
        value=(0.3, 0.8),
        contrast=(0.18, 0.4),
        radius=(0.12, 0.22),
        period=(0.055, 0.085),
        wobble=0.15,
        tilt=(0.25, 0.5),
        shear=0.3,
        haze=0.45,
        vignette=0.5,
        noise=0.04,
    ),
}


def write_scenes(
    root: str | Path,
    domain: str,
    splits: Mapping[str, int],
    *,
    size_px: int = 96,
    seed: int = 0,
    with_masks: bool = True,
) -> None:
    """Write scenes as a segmentation folder: images/<split>/*.jpg, masks/<split>/*.png, classes.json.

    Args:
        root: folder, made if it is not there.
        domain: a name in `DOMAINS`.
        splits: name of a split -> number of scenes; a scene depends on (seed, domain, split, number).
        size_px: side of the square images.
        seed: any whole number from 0.
        with_masks: False writes the images alone.

    Raises: RequestError for an unknown domain or a count or size that is not positive.

    """
    if domain not in DOMAINS:
        raise unknown_name("domain", domain, DOMAINS)
    if size_px < 16 or any(count < 1 for count in splits.values()):
        raise RequestError(f"scenes need at least 16 px and one image a split; got {size_px} px, {dict(splits)}")
    root = Path(root)
    for split, count in splits.items():
        images, masks = root / "images" / split, root / "masks" / split
        images.mkdir(parents=True, exist_ok=True)
        if with_masks:
            masks.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = draw_scene(domain, split=split, index=index, size_px=size_px, seed=seed)
            Image.fromarray(image).save(images / f"{domain}-{index:05}.jpg", quality=92)
            if with_masks:
                Image.fromarray(mask).save(masks / f"{domain}-{index:05}.png")
    if not with_masks:
        return
    description = {"names": list(CLASSES), "colors": [list(c) for c in COLORS], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def draw_scene(
    domain: str, *, split: str = "train", index: int = 0, size_px: int = 96, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image [size, size, 3] and its class ids [size, size], positions in `CLASSES`."""
    look = DOMAINS[domain]
    rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{split}".encode()), index])
    tint = rng.uniform(*look.hue)
    look = replace(look, hue=(tint - look.hue_spread, tint + look.hue_spread))
    side = size_px * _OVERSAMPLING
    x, y = _world(look, side, rng)
    image, mask = _draw_grounds(look, x, y, rng)
    for _ in range(int(rng.integers(3, 7))):
        _draw_object(look, image, mask, x, y, rng)
    image = image.reshape(size_px, _OVERSAMPLING, size_px, _OVERSAMPLING, 3).mean(axis=(1, 3))
    image = _photograph(look, image, rng)
    return (image * 255 + 0.5).astype(np.uint8), mask[::_OVERSAMPLING, ::_OVERSAMPLING].copy()


def _world(look: Domain, side: int, rng: np.random.Generator) -> tuple[Field, Field]:
    """Coordinates of every pixel on the ground plane; the image spans about [0, 1] both ways."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    column, row = np.meshgrid(line, line)
    tilt, shear = rng.uniform(*look.tilt), rng.uniform(-look.shear, look.shear)
    turn = rng.uniform(-0.1, 0.1) * math.pi
    depth = 1.0 + tilt * (1.0 - 2.0 * row)  # above 1 is farther away
    x, y = (column - 0.5) * depth + shear * (row - 0.5), (row - 0.5) * (depth + tilt)
    return (
        (math.cos(turn) * x - math.sin(turn) * y + 0.5).astype(np.float32),
        (math.sin(turn) * x + math.cos(turn) * y + 0.5).astype(np.float32),
    )


def _draw_grounds(look: Domain, x: Field, y: Field, rng: np.random.Generator) -> tuple[Field, NDArray[np.uint8]]:
    first, second = rng.permutation(len(GROUNDS))[:2]
    image, mask = _surface(look, GROUNDS[first], x, y, rng), np.full(x.shape, first, np.uint8)
    if rng.random() < 0.75:
        angle, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.2, 0.2)
        edge = math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5) - shift
        beyond = edge + 0.1 * (_noise(rng, x.shape, 4, 4) - 0.5) > 0
        image[beyond] = _surface(look, GROUNDS[second], x, y, rng)[beyond]
        mask[beyond] = second
    return image, mask


def _draw_object(
    look: Domain, image: Field, mask: NDArray[np.uint8], x: Field, y: Field, rng: np.random.Generator
) -> None:
    kind = int(rng.integers(len(OBJECTS)))
    row, column = rng.integers(mask.shape[0]), rng.integers(mask.shape[1])
    radius, turn = rng.uniform(*look.radius), rng.uniform(0, 2 * math.pi)
    stretch = rng.uniform(0.85, 1.2)
    u, v = x - x[row, column], y - y[row, column]
    window = _window(u * u + v * v < (1.6 * radius) ** 2)
    u, v = u[window], v[window]
    u, v = (
        (math.cos(turn) * u - math.sin(turn) * v) / stretch,
        (math.sin(turn) * u + math.cos(turn) * v) * stretch,
    )
    shape = _SHAPES[OBJECTS[kind]]
    image[window][shape(u - 0.15 * radius, v - 0.15 * radius, radius)] *= 0.7  # its shadow
    inside = shape(u, v, radius)
    light = 1.0 + 0.25 * (u + v) / radius * rng.choice([-1, 1])
    surface = _surface(look, OBJECTS[kind], u, v, rng, whole=mask.shape, window=window)
    image[window][inside] = (surface * np.clip(light, 0.6, 1.3)[..., None])[inside]
    mask[window][inside] = len(GROUNDS) + kind


def _window(near: NDArray[np.bool_]) -> Window:
    """Return the smallest rectangle around what is true; what is near an object's centre is never empty."""
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _photograph(look: Domain, image: Field, rng: np.random.Generator) -> Field:
    side = image.shape[0]
    line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    corner = (line[:, None] ** 2 + line[None, :] ** 2) / 0.5
    image = image * (1.0 - rng.uniform(0, look.vignette) * corner)[..., None]
    haze = rng.uniform(0, look.haze) * (0.5 - line)[:, None, None]
    image = image * (1.0 - haze) + haze * rng.uniform(0.7, 0.9)
    image = image + look.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return _unit(image).astype(np.float32)


def _surface(
    look: Domain,
    name: str,
    x: Field,
    y: Field,
    rng: np.random.Generator,
    *,
    whole: tuple[int, ...] | None = None,
    window: Window | None = None,
) -> Field:
    """Two colours of the palette, mixed by the class's texture and varied a little from place to place."""
    size = x.shape if whole is None else whole
    period = rng.uniform(*look.period)
    bend = look.wobble * period
    u = x + bend * (_noise(rng, size, 8, 8, window) - 0.5) * 2
    v = y + bend * (_noise(rng, size, 8, 8, window) - 0.5) * 2
    share = _TEXTURES[name](u / period, v / period, rng)[..., None]
    dark, bright = _colours(look, rng)
    uneven = 0.9 + 0.2 * _noise(rng, size, 5, 5, window)[..., None]
    return (dark * (1.0 - share) + bright * share) * uneven


def _colours(look: Domain, rng: np.random.Generator) -> tuple[Colour, Colour]:
    difference = rng.uniform(*look.contrast)
    low = rng.uniform(look.value[0], look.value[1] - difference)
    pair = [_rgb(rng.uniform(*look.hue), rng.uniform(*look.saturation), v) for v in (low, low + difference)]
    return (pair[0], pair[1]) if rng.random() < 0.5 else (pair[1], pair[0])


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return (value * (1.0 - saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))).astype(np.float32)


def _noise(
    rng: np.random.Generator, size: tuple[int, ...], rows: int, columns: int, window: Window | None = None
) -> Field:
    """Smooth noise in [0, 1] with about this many bumps down and across; of the whole or a window."""
    coarse = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    down, across = (slice(0, size[0]), slice(0, size[1])) if window is None else window
    box = (
        across.start * columns / size[1],
        down.start * rows / size[0],
        across.stop * columns / size[1],
        down.stop * rows / size[0],
    )
    fine = (across.stop - across.start, down.stop - down.start)
    return _unit(np.asarray(coarse.resize(fine, Image.Resampling.BICUBIC, box=box)))


def _unit(values: Field) -> Field:
    clipped: Field = np.clip(values, 0.0, 1.0)
    return clipped


def _wave(x: Field) -> Field:
    """Return a soft square wave in [0, 1] of period 1."""
    return _unit(0.5 + 1.5 * np.sin(2 * math.pi * x))


def _grass(x: Field, y: Field, rng: np.random.Generator) -> Field:
    blades = _hash_noise(x * 2.2 + 0.4 * np.sin(y), y * 0.45, rng)
    return _unit(0.5 + 1.8 * (blades - 0.5))


def _brick(x: Field, y: Field, rng: np.random.Generator) -> Field:
    row = np.floor(y / 0.8)
    across, down = np.mod(x / 1.6 + 0.5 * np.mod(row, 2), 1.0), np.mod(y / 0.8, 1.0)
    is_brick: Field = ((across > 0.12) & (down > 0.22)).astype(np.float32)
    return is_brick


def _waves(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return _wave(y + 0.45 * np.sin(2 * math.pi * x / 2.2 + rng.uniform(0, 6)))


def _stripes(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return _wave(x)


def _checker(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return _unit(0.5 + 4.0 * np.sin(math.pi * x) * np.sin(math.pi * y))


def _dots(x: Field, y: Field, rng: np.random.Generator) -> Field:
    distance = np.hypot(np.mod(x, 1.0) - 0.5, np.mod(y, 1.0) - 0.5)
    return _unit(0.5 + 8.0 * (0.3 - distance))


def _spokes(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return _unit(0.5 + 1.5 * np.sin(10.0 * np.arctan2(y, x)))


def _speckle(x: Field, y: Field, rng: np.random.Generator) -> Field:
    return (_hash_noise(x * 2.0, y * 2.0, rng) > 0.5).astype(np.float32)


def _hash_noise(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Smooth noise over the plane with about one bump per unit: a random table, read periodically."""
    table = rng.random((32, 32), dtype=np.float32)
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    s, t = x - column, y - row
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    column, row = column & 31, row & 31
    right, below = (column + 1) & 31, (row + 1) & 31
    upper = table[row, column] * (1 - s) + table[row, right] * s
    lower = table[below, column] * (1 - s) + table[below, right] * s
    between: Field = upper * (1 - t) + lower * t
    return between


def _disc(u: Field, v: Field, radius: float) -> NDArray[np.bool_]:
    return u * u + v * v < radius * radius


def _square(u: Field, v: Field, radius: float) -> NDArray[np.bool_]:
    return np.maximum(np.abs(u), np.abs(v)) < 0.86 * radius


def _triangle(u: Field, v: Field, radius: float) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.maximum(0.866 * np.abs(u) - 0.5 * v, v) < 0.62 * radius
    return inside


def _ring(u: Field, v: Field, radius: float) -> NDArray[np.bool_]:
    square = (u * u + v * v) / (radius * radius)
    return (square < 1.21) & (square > 0.2)


def _cross(u: Field, v: Field, radius: float) -> NDArray[np.bool_]:
    near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (near < 0.42 * radius) & (far < 1.1 * radius)


_SHAPES: dict[str, Callable[[Field, Field, float], NDArray[np.bool_]]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
}
_TEXTURES: dict[str, Callable[[Field, Field, np.random.Generator], Field]] = {
    "grass": _grass,
    "brick": _brick,
    "waves": _waves,
    "disc": _stripes,
    "square": _checker,
    "triangle": _dots,
    "ring": _spokes,
    "cross": _speckle,
}
