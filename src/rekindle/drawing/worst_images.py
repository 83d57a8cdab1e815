# SPDX-License-Identifier: Apache-2.0
"""Images with their labels, predictions and errors side by side, a row an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rekindle.drawing.pictures import write_picture

Bytes = NDArray[np.uint8]
Ids = NDArray[np.int64]

PANELS = ("image", "label", "prediction", "errors")
WRONG = (213, 94, 0)  # vermilion of Okabe and Ito
UNLABELLED = (120, 120, 120)
STRENGTH = 0.65  # of a class's colour over the image
GAP, TEXT_PX, LINE_PX = 6, 13, 18
SMALLEST_PX = 160  # short images are enlarged to this long side


@dataclass(frozen=True)
class LabelledPicture:
    """One image with what it shows and what was predicted, all of one size.

    Attributes:
        title: printed above it.
        image: [h, w, 3].
        label: ids [h, w].
        prediction: ids [h, w].

    """

    title: str
    image: Bytes
    label: Ids
    prediction: Ids


def write_labelled_pictures(
    path: Path,
    pictures: Sequence[LabelledPicture],
    names: Sequence[str],
    *,
    ignore_index: int,
    colors: Sequence[Sequence[int]] | None = None,
) -> None:
    """Draw image, label, prediction and errors of each picture, and the classes of its label and prediction below it.

    Errors are vermilion over the grey image; pixels without a label are grey in all panels but the first.

    Args:
        path: of the PNG.
        pictures: at least one.
        names: class names; the position is the id.
        ignore_index: id of pixels without a label.
        colors: one [r, g, b] per class; without it they are made.

    """
    palette = np.array(colors if colors is not None else class_colours(len(names)), np.uint8)
    font = ImageFont.load_default(TEXT_PX)
    rows = [_row(picture, names, palette, ignore_index, font) for picture in pictures]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 2 * GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    write_picture(path, np.pad(np.concatenate(padded), ((GAP, 0), (GAP, GAP), (0, 0)), constant_values=255))


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return as many colours that differ: hues by the golden angle, in three lightnesses."""
    found = []
    for index in range(count):
        lightness, saturation = ((0.45, 0.9), (0.7, 0.75), (0.28, 0.8))[index % 3]
        red, green, blue = colorsys.hls_to_rgb(index * 0.381966 % 1.0, lightness, saturation)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def wrong_pixels(label: Ids, prediction: Ids, ignore_index: int) -> NDArray[np.bool_]:
    """Return where a labelled pixel got another class."""
    return np.asarray((label != prediction) & (label != ignore_index))


def _row(
    picture: LabelledPicture,
    names: Sequence[str],
    palette: Bytes,
    ignore_index: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> Bytes:
    scale = max(1, -(-SMALLEST_PX // max(picture.image.shape[:2])))
    image: Bytes = picture.image.repeat(scale, axis=0).repeat(scale, axis=1)
    label: Ids = picture.label.repeat(scale, axis=0).repeat(scale, axis=1)
    prediction: Ids = picture.prediction.repeat(scale, axis=0).repeat(scale, axis=1)
    ignored = label == ignore_index
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    is_wrong = wrong_pixels(label, prediction, ignore_index)[..., None]
    errors = _blend(grey, np.array(WRONG), np.where(is_wrong, STRENGTH, 0.0))
    painted = [image, *(_blend(image, palette[ids.clip(0, len(names) - 1)], STRENGTH) for ids in (label, prediction))]
    panels = [*painted, errors]
    for panel in panels[1:]:
        panel[ignored] = UNLABELLED
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    strip = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    held = [i for i in np.union1d(label[~ignored], prediction[~ignored]).tolist() if 0 <= i < len(names)]
    return np.concatenate(
        [
            _heading(picture.title, strip.shape[1], image.shape[1], font),
            strip,
            _legend(held, names, palette, strip.shape[1], font),
        ]
    )


def _blend(image: NDArray[np.generic], colour: NDArray[np.generic], strength: float | NDArray[np.float64]) -> Bytes:
    mixed = (1.0 - strength) * image.astype(np.float64) + strength * colour.astype(np.float64)
    return mixed.round().astype(np.uint8)


def _heading(title: str, width: int, panel: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Bytes:
    canvas = Image.new("RGB", (width, 2 * LINE_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((0, 1), title, fill="black", font=font)
    for place, name in enumerate(PANELS):
        draw.text((place * (panel + GAP), LINE_PX), name, fill="#555555", font=font)
    return np.asarray(canvas)


def _legend(
    held: Sequence[int],
    names: Sequence[str],
    palette: Bytes,
    width: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> Bytes:
    """Squares of the classes' colours with their names, wrapped to the width."""
    places: list[tuple[int, int, int]] = []
    x, y = 0, 4
    for index in held:
        need = LINE_PX + round(font.getlength(names[index])) + 2 * GAP
        if x and x + need > width:
            x, y = 0, y + LINE_PX
        places.append((index, x, y))
        x += need
    canvas = Image.new("RGB", (width, y + LINE_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for index, left, top in places:
        red, green, blue = map(int, palette[index])
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=(red, green, blue), outline="black")
        draw.text((left + LINE_PX - 2, top), names[index], fill="black", font=font)
    return np.asarray(canvas)
