# SPDX-License-Identifier: Apache-2.0
"""A run with its base, and a picture with something in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.engine.running import run, write_images

SIZE = (96, 128)


def write_run(root: Path) -> Path:
    """A base, and a run that adapted it; the folder of the run."""
    images = write_images(root / "images")
    run(images, root / "base", steps=1)
    changes: dict[str, Any] = {
        "backbone": str(root / "base"),
        "init": "pretrained",
        "train": "adapters",
        "adapter__rank": 8,
    }
    run(images, root / "run", steps=2, **changes)
    return root / "run"


def read_picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def write_picture(path: Path) -> Path:
    """Noise with a bright square in it, 96 x 128 px."""
    pixels = np.random.default_rng(0).integers(0, 120, (*SIZE, 3), dtype=np.uint8)
    pixels[10:50, 10:60] += 100
    Image.fromarray(pixels).save(path)
    return path
