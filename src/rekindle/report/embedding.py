# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a page: as few bytes as the kind of picture allows."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from rekindle.drawing.pictures import Bytes

Kind = Literal["photo", "map"]
QUALITY = 86


def data_uri(pixels: ArrayLike, kind: Kind) -> str:
    """Return a picture [H, W, 3], bytes or shares of 1, as a data: address.

    Args:
        pixels: the picture.
        kind: a photo may lose what an eye hardly sees (WebP or JPEG of quality 86, whichever is smaller); a map keeps every
            colour exactly (PNG or lossless WebP).

    """
    picture = Image.fromarray(np.ascontiguousarray(encoded_picture(pixels)))
    if kind == "photo":
        formats = {"webp": {"quality": QUALITY, "method": 4}, "jpeg": {"quality": QUALITY, "optimize": True}}
    else:
        formats = {"png": {"optimize": True}, "webp": {"lossless": True, "method": 4}}
    found = []
    for name, settings in formats.items():
        stream = io.BytesIO()
        picture.save(stream, format=name, **settings)
        found.append((len(stream.getvalue()), name, stream.getvalue()))
    _, name, content = min(found)
    return f"data:image/{name};base64,{base64.b64encode(content).decode()}"


def encoded_picture(pixels: ArrayLike) -> Bytes:
    """Return shares of 1 as bytes; bytes stay."""
    values = np.asarray(pixels)
    return values if values.dtype == np.uint8 else (values.clip(0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def fitted(pixels: Bytes, most_px: int) -> Bytes:
    """Return a picture whose longer side has at most `most_px` pixels."""
    scale = most_px / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
