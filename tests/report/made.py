# SPDX-License-Identifier: Apache-2.0
"""A real run from a real base, compared on miniature data: what reports are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rekindle
from tests.engine.running import run, write_images
from tests.evaluation.toy import write_data

LINEAR = {"size_px": 16, "steps": 20, "warmup_steps": 2}


@dataclass(frozen=True)
class Made:
    """Folders of images, base, run, data and comparison."""

    images: Path
    base: Path
    run: Path
    data: Path
    comparison: Path


def make(root: Path) -> Made:
    images, data = write_images(root / "images"), write_data(root / "data", num_test=6)
    (images / "broken.png").write_bytes(b"no picture")
    run(images, root / "base", steps=1, data__max_unreadable_fraction=0.5)
    changes: dict[str, Any] = {
        "backbone": str(root / "base"),
        "init": "pretrained",
        "train": "adapters",
        "adapter__rank": 8,
    }
    run(
        images,
        root / "run",
        steps=6,
        probe=["health"],
        probe_images=4,
        every=2,
        data__max_unreadable_fraction=0.5,
        **changes,
    )
    settings: dict[str, Any] = {"protocol": ["linear-seg", "dense-retrieval"], "seeds": 2, "linear_seg": LINEAR}
    rekindle.compare(
        root / "base",
        [root / "run"],
        data,
        out=str(root / "comparison"),
        dense_retrieval={"size_px": 32},
        **settings,
    )
    return Made(images, root / "base", root / "run", data, root / "comparison")
