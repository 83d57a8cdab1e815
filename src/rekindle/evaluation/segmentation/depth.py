# SPDX-License-Identifier: Apache-2.0
"""Depth from a frozen backbone with a DPT decoder (LOCA, section 4; specification 15.4).

The features of four blocks (after the final norm) are computed once for each training image and its mirror image and kept
as float16; the decoder learns log(1 + depth) on the pixels whose depth is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.core.rng import seeded_default
from rekindle.data.labelled.depth import DepthMaps
from rekindle.evaluation.features.dense_features import extract_each, fitted_size, resize_image
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.segmentation.options import DepthOptions
from rekindle.evaluation.training.fitting import endless_order, fit, training_groups
from rekindle.networks.parts.dpt import DptDecoder, quarters

THRESHOLDS = (1.1, 1.25, 1.25**2)
METRICS = ["MSE (log²)", "AbsRel", *(f"d<{t:g}" for t in THRESHOLDS)]
NEAREST_M = 1e-3  # predictions are at least this far, so that ratios exist


@dataclass(frozen=True)
class DepthSample:
    """Maps of the four blocks, float16 [D, gh, gw] each, and the depth that the loss sees."""

    maps: list[Tensor]
    depth: Tensor


def depth_sums(predicted: Tensor, depth: Tensor) -> list[float]:
    """Return the sums over the known pixels of squared log error, relative error and the hits, and their number.

    Args:
        predicted: metres [H, W], above 0.
        depth: metres; 0 where unknown.

    """
    known = depth > 0
    found, truth = predicted[known].double(), depth[known].double()
    log_error = (torch.log1p(found) - torch.log1p(truth)).square().sum()
    relative = ((found - truth).abs() / truth).sum()
    ratio = torch.maximum(found / truth, truth / found)
    hits = [(ratio < t).sum() for t in THRESHOLDS]
    return [float(v) for v in (log_error, relative, *hits, known.sum())]


class Depth(Protocol[DepthOptions, DepthMaps]):
    """The protocol; see the module."""

    Config = DepthOptions
    DATA = "depth"

    _samples: list[DepthSample]
    _tests: list[list[Tensor]]

    def check(self) -> None:
        """Refuse a warm-up longer than the training, and features that do not fit into the memory allowed."""
        config = self.config
        if config.warmup_steps >= config.steps:
            raise RequestError(
                f"depth.warmup_steps = {config.warmup_steps} must be less than depth.steps = {config.steps}; lower the "
                "former, or raise the latter"
            )
        per_image = 4 * self.extractor.width * (config.size_px / self.extractor.patch_size) ** 2 * 2
        gib = per_image * (2 * len(self.train) + len(self.test)) / 2**30
        if gib > config.max_cache_gib:
            raise RequestError(
                f"the features of {len(self.train)} + {len(self.test)} images would take at least {gib:.1f} GiB, more than "
                f"depth.max_cache_gib = {config.max_cache_gib:g}; lower depth.size_px = {config.size_px}, or raise the limit"
            )

    def prepare(self) -> None:
        """Compute the features of all images and of the mirrored training images."""
        self._samples = [*self._extracted(self.train, flipped=False), *self._extracted(self.train, flipped=True)]
        self._tests = [sample.maps for sample in self._extracted(self.test, flipped=False)]

    def run(self, seed: int) -> Outcome:
        """Train a decoder and compare its depths with the truth at the images' own size."""
        decoder, rows = self._trained(seed).eval(), []
        with torch.no_grad():
            for index, maps in enumerate(self._tests):
                truth = self.test.read(index)[1]
                predicted = _upsampled(decoder, [maps], self.extractor.device, tuple(truth.shape))
                rows.append(depth_sums(predicted[0].cpu().expm1().clamp(min=NEAREST_M), truth))
        own = self.training_indices(seed)
        counts = {"images": len(self.test), "train_images": len(own), "pixels": int(sum(row[-1] for row in rows))}
        table: Rows = np.array(rows)
        return Outcome(self.test.items, table, Means(headline="AbsRel", names=METRICS, better="lower"), counts)

    def _trained(self, seed: int) -> DptDecoder:
        config, device = self.config, self.extractor.device
        with seeded_default(seed, "dpt"):
            decoder = DptDecoder(self.extractor.width, projections=config.projections, channels=config.channels).to(
                device
            )
        own = self.training_indices(seed)
        order = endless_order(own + [len(self.train) + i for i in own], seed, "depth-order")
        groups = training_groups(None, decoder, config)

        def batches() -> Iterator[list[DepthSample]]:
            for _ in range(config.steps):
                yield [self._samples[next(order)] for _ in range(config.batch_size)]

        fit(groups, lambda batch: _loss(decoder, batch, device), batches(), config, seed=seed, message=self.message)
        return decoder

    def _extracted(self, data: DepthMaps, *, flipped: bool) -> Iterator[DepthSample]:
        depths: list[Tensor] = []

        def images() -> Iterator[Tensor]:
            for index in range(len(data)):
                image, depth = data.read(index)
                size = fitted_size(image.shape[1], image.shape[2], self.config.size_px, self.extractor.patch_size)
                reduced = functional.interpolate(depth[None, None], size=size, mode="nearest-exact")[0, 0]
                depths.append(reduced.flip(-1) if flipped else reduced)
                resized = resize_image(image, size)
                yield resized.flip(-1) if flipped else resized

        for index, tokens in enumerate(extract_each(self.extractor, images(), quarters(self.extractor.depth))):
            maps = [t.patches[0].permute(2, 0, 1).to("cpu", torch.float16) for t in tokens]
            yield DepthSample(maps, depths[index])


def _loss(decoder: DptDecoder, batch: list[DepthSample], device: torch.device) -> Tensor:
    """Mean squared error of log(1 + depth) over the known pixels of the batch; images may differ in size."""
    same_size: dict[tuple[int, ...], list[DepthSample]] = defaultdict(list)
    for sample in batch:
        same_size[tuple(sample.depth.shape)].append(sample)
    total, count = torch.zeros((), device=device), 0
    for size, samples in same_size.items():
        depth = torch.stack([s.depth for s in samples]).to(device)
        predicted = _upsampled(decoder, [s.maps for s in samples], device, size)
        known = depth > 0
        error = torch.where(known, predicted - torch.log1p(depth), 0.0)
        total, count = total + error.square().sum(), count + int(known.sum())
    return total / max(1, count)


def _upsampled(
    decoder: DptDecoder, batch: Sequence[list[Tensor]], device: torch.device, size: tuple[int, ...]
) -> Tensor:
    """Return log(1 + depth) [B, H, W] of a batch of maps."""
    levels = [torch.stack(level).to(device).float() for level in zip(*batch, strict=True)]
    logs = functional.interpolate(decoder(levels), size=size, mode="bilinear", align_corners=False)
    return logs[:, 0]
