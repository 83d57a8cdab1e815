# SPDX-License-Identifier: Apache-2.0
"""A grid so small that every cell takes a second: a tiny saved base, tiny labelled data, three steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.running import write_images
from tests.evaluation.toy import save_tiny, write_data

STEPS = 3
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 4,
    "accelerator": "cpu",
    "views": {"global_size_px": 32, "local_size_px": 16, "num_local": 2},
    "data": {"num_workers": 0},
    "engine": {"tensorboard": False, "micro_batch_size": 4, "log_steps": 1},
    "adapter": {"rank": 4, "scale": 4.0},
    "optim": {"lr_per_256": 5.0, "warmup_epochs": 0.0, "head_warmup": 0.0},
    "glare": {
        "num_prototypes": 32,
        "head_hidden": 32,
        "head_bottleneck": 16,
        "region_min_patches": 1,
        "region_max_patches": 3,
        "freeze_last_layer_epochs": 0,
    },
    "dino": {"num_prototypes": 32, "head_hidden": 32, "head_bottleneck": 16, "freeze_last_layer_epochs": 0},
}


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A grid of two methods; images, data and the base are made in `folder` where they are missing."""
    if not (folder / "base").exists():
        save_tiny(folder / "base")
        write_images(folder / "images", 8)
        write_data(folder / "data")
    return {
        "images": str(folder / "images"),
        "data": str(folder / "data"),
        "out": str(folder / "out"),
        "protocols": ["linear-seg", "dense-retrieval"],
        "linear_seg": {"size_px": 16, "steps": 5, "warmup_steps": 1},
        "dense_retrieval": {"size_px": 32, "memory_size": 30},
        "evaluation_seeds": 2,
        "resamples": 100,
        "starts": {"tiny": str(folder / "base")},
        "methods": {"glare": {}, "dino": {}},
        "common": COMMON,
    } | changes
