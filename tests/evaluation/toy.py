# SPDX-License-Identifier: Apache-2.0
"""Miniature labelled data, an extractor whose features are the classes, and a tiny saved model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rekindle.adapters.saved import Lineage, load_backbone, save_model
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.networks.backbone import Backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.tokens import Tokens

PATCH = 8
NAMES = ["red", "green", "blue"]
TINY = "vit:width=16,depth=2,heads=2,patch=8,img=32"


def stripes(width: int = 48, height: int = 16, shift: int = 0) -> np.ndarray:
    """Vertical stripes of the classes 0, 1, 2, one patch wide."""
    row = (np.arange(width) // PATCH + shift) % len(NAMES)
    return np.tile(row, (height, 1)).astype(np.uint8)


def write_item(root: Path, split: str, stem: str, mask: np.ndarray) -> None:
    """A mask, and an image whose colours are its classes (ignored pixels are black)."""
    colours = np.zeros((256, 3), np.uint8)
    colours[:3] = 255 * np.eye(3)
    for kind, picture in (("images", colours[mask]), ("masks", mask)):
        path = root / kind / split / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def write_data(root: Path, *, num_train: int = 3, num_test: int = 3, width: int = 48) -> Path:
    """Stripes in the splits train and val."""
    for split, count in (("train", num_train), ("val", num_test)):
        for i in range(count):
            write_item(root, split, f"{split}{i}", stripes(width, shift=i))
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "ignore_index": 255}))
    return root


def write_noise(root: Path, *, num_test: int = 3) -> Path:
    """The masks of `write_data` with images that do not show them."""
    source = np.random.default_rng(0)
    for path in sorted((write_data(root, num_test=num_test) / "images").rglob("*.png")):
        Image.fromarray(source.integers(0, 256, (16, 48, 3), dtype=np.uint8)).save(path)
    return root


class ColourExtractor(FeatureExtractor):
    """Features of a patch: its mean colour, in [0, 1]; on the stripes a one-hot of the class."""

    def __init__(self, depth: int = 12) -> None:
        self.device = torch.device("cpu")
        self.patch_size, self.width, self.depth = PATCH, 3, depth

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        pooled = torch.nn.functional.avg_pool2d(images.float() / 255.0, PATCH).permute(0, 2, 3, 1)
        return [Tokens(None, pooled.new_zeros(len(images), 0, 3), pooled) for _ in blocks]


def tiny_backbone(seed: int = 0) -> Backbone:
    return load_backbone(TINY, init="random", seed=seed)[0]


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """A finished run of a whole network."""
    folder.mkdir(parents=True)
    lineage = Lineage(
        base=TINY,
        base_hash="0" * 64,
        base_licence=None,
        train="all",
        adapter=None,
        network=NetworkOptions(),
        method="dino",
        steps=1,
    )
    save_model(folder, tiny_backbone(seed), (), lineage)
    return folder
