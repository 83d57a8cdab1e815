# SPDX-License-Identifier: Apache-2.0
"""Features of one batch of images that are in memory: bytes in, tokens of the last block out."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rekindle.adapters.saved import load_backbone
from rekindle.bench.stage import case_device, count_flops, device_facts, settle, taken
from rekindle.core.rng import generator
from rekindle.evaluation.features.extractors import FeatureExtractor


class Ours:
    """`FeatureExtractor` as the protocols use it. Sides are cut to multiples of the patch."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._device, seed = case_device(case), taken(case, "seed", int)
        backbone, _ = load_backbone(taken(case, "backbone", str), init="random", seed=seed)
        self._extractor = FeatureExtractor(backbone, device=self._device, bf16=taken(case, "precision", str) == "bf16")
        patch = self._extractor.patch_size
        size = [max(1, taken(case, side, int) // patch) * patch for side in ("height", "width")]
        shape = (taken(case, "batch_size", int), 3, *size)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "bench images"))

    def run(self) -> int:
        """Extract the batch once."""
        self._extractor.extract(self._images)
        settle(self._device)
        return len(self._images)

    def facts(self) -> dict[str, object]:
        """Size of the images, FLOPs of a batch, versions."""
        memory = device_facts(self._device)
        size = list(self._images.shape[-2:])
        return memory | {"size_px": size, "flops": count_flops(self.run), "torch": torch.__version__}
