# SPDX-License-Identifier: Apache-2.0
"""Small models to measure: the built-in base, short trainings of it with other seeds, and its features mixed with noise."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rekindle.adapters.saved import load_backbone
from rekindle.engine.watcher import LoggingWatcher
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import pretrain

BASE = Path(__file__).parents[1] / "demo" / "base.safetensors"
STEPS = 12


class NoisyExtractor(FeatureExtractor):
    """An extractor whose tokens are mixed with noise, the same for the same image.

    Args:
        backbone: the network.
        share: of the variance of every token that is noise.

    """

    def __init__(self, backbone: Backbone, share: float) -> None:
        super().__init__(backbone)
        self.share = share

    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        """See `FeatureExtractor.extract`."""
        found = super().extract(images, blocks)
        return [self._mixed(tokens, images) for tokens in found]

    def _mixed(self, tokens: Tokens, images: Tensor) -> Tokens:
        sources = [torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes())) for image in images.cpu()]
        cls = None if tokens.cls is None else self._noised(tokens.cls[:, None], sources)[:, 0]
        patches = self._noised(tokens.patches.flatten(1, 2), sources).reshape(tokens.patches.shape)
        return Tokens(cls, tokens.registers, patches)

    def _noised(self, values: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """Values [B, T, D], of each token `share` of the variance replaced."""
        drawn = torch.stack([torch.randn(values.shape[1:], generator=source) for source in sources])
        mean, std = values.mean(dim=-1, keepdim=True), values.std(dim=-1, keepdim=True)
        mixed: Tensor = mean + math.sqrt(1 - self.share) * (values - mean) + math.sqrt(self.share) * std * drawn
        return mixed


def base() -> Backbone:
    """Return the built-in base."""
    return load_backbone(str(BASE))[0]


def trained(images: Path, out: Path, seed: int) -> Backbone:
    """Train the base for a few steps on images without labels: one recipe, a run per seed."""
    pretrain(resolve({}, _request(images, out, seed)), watcher=LoggingWatcher())
    return load_backbone(str(out))[0]


def _request(images: Path, out: Path, seed: int) -> dict[str, Any]:
    return {
        "images": str(images),
        "backbone": str(BASE),
        "method": "glare",
        "recipe": "full",
        "out": str(out),
        "steps": STEPS,
        "batch_size": 16,
        "seed": seed,
        "precision": "fp32",
        "views": {"global_size_px": 48, "local_size_px": 24, "num_local": 0},
        "network": {"drop_path": 0.0},
        "adapter": {"rank": 64, "scale": 1.0},
        "optim": {"lr_per_256": 2e-2, "lr_is_peak": True, "warmup_epochs": 0.1},
        "engine": {"tensorboard": False},
        "glare": {
            "balance": "sinkhorn",
            "num_prototypes": 128,
            "head_hidden": 256,
            "head_bottleneck": 64,
            "teacher_temperature": [0.04, 0.04],
            "momentum": [0.98, 1.0],
        },
    }
