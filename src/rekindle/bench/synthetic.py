# SPDX-License-Identifier: Apache-2.0
"""Image files made from a seed, about as hard to decode as photographs. Torch-free."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 64
"""Different pictures at most; further files repeat them, which no reader of files can tell."""


def write_images(folder: Path, count: int, *, height: int, width: int, seed: int) -> Path:
    """Write `count` JPEG files into `folder`, a thousand to a subfolder, as 000/000000.jpg, ..."""
    contents = [jpeg(height, width, seed, number) for number in range(min(count, DISTINCT))]
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])
    return folder


def jpeg(height: int, width: int, seed: int, number: int) -> bytes:
    """A picture of soft blobs of colour at three scales, with a little grain."""
    draw = np.random.default_rng((seed, number))
    levels = draw.normal(0.0, 4.0, (height, width, 3)) + 128.0
    for cells, strength in ((4, 45.0), (12, 25.0), (48, 12.0)):
        coarse = draw.normal(0.0, strength, (cells, cells, 3))
        planes = [
            Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        levels += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=90)
    return stream.getvalue()
