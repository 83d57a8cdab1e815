# SPDX-License-Identifier: Apache-2.0
"""Rows of every protocol on the small data: one table per model and evaluation seed, from which trials take items and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.core.tables import import_named
from rekindle.data.published.named import open_data
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.scores.score import Rows, Score

SMALL_TRAINING = {"steps": 15, "batch_size": 8, "warmup_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear-seg": {"size_px": 48, "steps": 40, "batch_size": 16, "warmup_steps": 2},
    "dense-retrieval": {"size_px": 48, "memory_size": 1000},
    "linear-decoder": SMALL_TRAINING | {"size_px": 48, "crop_px": 48, "window_px": 48, "stride_px": 48},
    "fpn": SMALL_TRAINING
    | {"size_px": 48, "crop_px": 48, "window_px": 48, "stride_px": 48, "channels": 16, "head_channels": 16},
    "upernet": SMALL_TRAINING
    | {"size_px": 48, "crop_px": 48, "window_px": 48, "stride_px": 48, "channels": 16, "auxiliary_channels": 16},
    "multi-label": {"size_px": 48, "epochs": 15, "batch_size": 16},
    "depth": SMALL_TRAINING | {"size_px": 48, "steps": 30, "lr": 1e-3, "channels": 16, "projections": (8, 8, 16, 16)},
    "video": {"size_px": 48, "num_context": 3, "radius": 3},
    "prompted-seg": {"size_px": 48, "prompt": "random", "num_random": 1},
    "similarity": {"size_px": 48, "num_bins": 40},
    "variance": {
        "size_px": 48,
        "num_images": 100_000,
        "num_views": 2,
        "batch_size": 2,
        "align_px": 8,
        "max_block": 0.5,
    },
    "clustering": {"size_px": 48, "restarts": 1, "max_tokens": 3000},
    "knn": {"size_px": 48, "k": 5, "other_k": (), "every_descriptor": False},
    "one-shot": {"size_px": 48, "episodes": 200, "ways": 3, "queries": 5},
    "image-retrieval": {"size_px": 48},
    "linear-probe": {"size_px": 48, "epochs": 10, "batch_size": 32, "warmup_epochs": 1.0},
    "finetune": SMALL_TRAINING | {"size_px": 48},
    "cka": {"size_px": 48},
}
"""Options of each protocol that make it quick; the others are its defaults."""
ROOTS = {"classification": "classes", "retrieval": "retrieval", "video": "video"}
FREE_OF_CHANCE = ("dense-retrieval", "video", "similarity", "knn", "image-retrieval", "cka")
"""Protocols whose evaluation seeds all give the same with these options."""
QUICK = ("linear-seg", "dense-retrieval", "multi-label", "knn", "image-retrieval", "linear-probe")
"""Those of the short form."""


@dataclass(frozen=True)
class Table:
    """Rows of one model under one protocol.

    Attributes:
        score: what they come to.
        items: names.
        rows: [S, n, F], an evaluation seed each.

    """

    score: Score
    items: list[str]
    rows: Rows

    @property
    def scenes(self) -> NDArray[np.int64]:
        """The scene of each item, numbered from 0; an episode is its own."""
        names = [Path(item).name.split("-")[0] for item in self.items]
        known = {name: place for place, name in enumerate(dict.fromkeys(names))}
        return np.array([known[name] for name in names])

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """Whether an item is the first of its scene: those stand alone."""
        return np.diff(self.scenes, prepend=-1) > 0


def measured(
    protocol: str, extractor: FeatureExtractor, features: SharedFeatures, data: Path, seeds: Sequence[int]
) -> Table:
    """Measure a model with some evaluation seeds; with one, where they all give the same."""
    kind = import_named(PROTOCOLS, "protocol", protocol)
    config = kind.Config(**SETTINGS[protocol])
    root = data / ROOTS.get(kind.DATA, "scenes")
    test = open_data(kind.DATA, root, "pool" if kind.DATA == "retrieval" else "val")
    train = open_data(kind.DATA, root, "train") if kind.USES_TRAIN else None
    made = kind(config, extractor, train, test, features=features)
    made.check()
    made.prepare()
    found = [made.run(seed) for seed in (seeds[:1] if protocol in FREE_OF_CHANCE else seeds)]
    return Table(found[0].score, found[0].items, np.stack([outcome.rows for outcome in found]))
