# SPDX-License-Identifier: Apache-2.0
"""Decoding an image of any kind to red, green and blue bytes; `RULES` says how, and stands in the record of every run."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rekindle.core.errors import RekindleError
from rekindle.core.files import printable
from rekindle.data.options import PILLOW_MAX_PIXELS

RULES = {
    "16-bit grey": "level / 257",
    "32-bit integers and floats": "stretched from the least to the greatest finite value of the image to 0..255",
    "alpha": "composited on black, the usual no-data value",
    "CMYK, palette, grey, 1 bit": "converted to red, green, blue",
    "EXIF orientation": "applied",
    "several frames or pages": "the first",
}
"""What becomes of what is not 8-bit colour; nothing is clipped."""

# What decoders raise on broken input, as found by feeding them truncated and mutated files.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImage(RekindleError):
    """An image that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: cannot be read as an image: {printable(reason)}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.name, self.reason)  # an error in a worker travels pickled


def read_image(
    source: str | bytes,
    *,
    name: str | None = None,
    draft_px: int | None = None,
    max_pixels: int = PILLOW_MAX_PIXELS,
) -> Tensor:
    """Decode a file, or bytes, to uint8 [3, H, W], upright.

    The tensor's memory is ordered [H, W, 3], as decoders write it and as the resize of bytes wants it.

    Args: draft_px, decode a JPEG at a reduced scale while both sides keep this many pixels; max_pixels,
    refuse larger images before decoding; name, for messages. Raises: UnreadableImage.
    """
    label = name if name is not None else (source if isinstance(source, str) else "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what makes an image unreadable raises
            with Image.open(_opened(source)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UnreadableImage(label, f"{width} x {height} px exceed data.max_pixels = {max_pixels}")
                if draft_px is not None and image.format == "JPEG":
                    image.draft(None, (draft_px, draft_px))
                levels = _levels(_upright(image))
    except _BROKEN as error:
        raise UnreadableImage(label, _reason(source, error)) from error
    return torch.from_numpy(levels).permute(2, 0, 1)


def image_size(path: str) -> tuple[int, int]:
    """Return (height, width) of the upright image, from the file's header alone. Raises: UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_opened(path)) as image:
                width, height = image.size
                is_turned = _orientation(image) >= 5
    except _BROKEN as error:
        raise UnreadableImage(path, _reason(path, error)) from error
    return (width, height) if is_turned else (height, width)


def taken_at(source: str | bytes) -> float | None:
    """Return when an image was taken (EXIF, DateTimeOriginal) in seconds, its clock taken as it stands; None where unknown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_opened(source)) as image:
                told = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        return datetime.strptime(str(told).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except _BROKEN:
        return None  # also where the text is no date: ValueError


def _opened(source: str | bytes) -> str | io.BytesIO:
    """What Pillow is to open. Raises: OSError for a pipe or device, which might never give a byte, or never end."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("a pipe, socket, folder or device, not a file")
    return source


def _reason(source: str | bytes, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        return "no known image format (empty, damaged, or not an image)"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels, possibly a decompression bomb (limit {PILLOW_MAX_PIXELS})"
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except _BROKEN:
        return 1  # damaged metadata does not make the picture unreadable
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _levels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W, 3] bytes of an image in any mode."""
    if image.mode == "RGB":
        return np.array(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.float64) / 257.0
    elif image.mode in ("I", "F"):
        grey = _stretched(np.asarray(image).astype(np.float64))
    else:
        if image.has_transparency_data:
            colours = image.convert("RGBA")
            image = Image.new("RGBA", colours.size, (0, 0, 0, 255))
            image.alpha_composite(colours)
        return np.array(image.convert("RGB"))
    levels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)


def _stretched(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = float(values[finite].min()), float(values[finite].max())
    clean = np.where(np.isnan(values), low, np.clip(values, low, high))
    return np.multiply(clean - low, 255.0 / max(high - low, 1e-300), dtype=np.float64)
