# SPDX-License-Identifier: Apache-2.0
"""Miniature images with classes: each class has its colour, and an extractor whose descriptors are those colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rekindle.networks.tokens import Tokens
from tests.evaluation.toy import ColourExtractor

COLOURS = {
    "amber": (200, 120, 20),
    "blue": (20, 30, 220),
    "cyan": (20, 200, 200),
    "dark": (40, 20, 60),
    "ecru": (220, 200, 160),
}


def write_classes(
    root: Path, *, num_train: int = 4, num_test: int = 3, classes: Sequence[str] = tuple(COLOURS), size: int = 16
) -> Path:
    """Noisy images of one colour per class, in the splits train and val."""
    source = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_test)):
        for name in classes:
            for i in range(count):
                noisy = np.array(COLOURS[name]) + source.integers(-12, 13, (size, size, 3))
                save(root / split / name / f"{name}{i}.png", noisy.clip(0, 255).astype(np.uint8))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class ClassTokenExtractor(ColourExtractor):
    """Patches are mean colours (see `ColourExtractor`); the class token is the mean colour minus grey, so it has a sign."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__(depth)
        self.has_cls, self.calls = True, 0

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        self.calls += 1
        found = super().extract(images, blocks)
        return [Tokens(t.patches.mean(dim=(1, 2)) - 0.5, t.registers, t.patches) for t in found]


class ConstantExtractor(ClassTokenExtractor):
    """Every token of every image is the same."""

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        found = super().extract(images, blocks)
        return [Tokens(torch.ones_like(t.class_token), t.registers, torch.ones_like(t.patches)) for t in found]


class PatchOnlyExtractor(ColourExtractor):
    """A network without a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.has_cls = False
