# SPDX-License-Identifier: Apache-2.0
"""Frozen linear segmentation: BatchNorm and a linear map of each patch's features, nothing else is trained.

Features of four blocks (6, 8, 10, 12 of twelve, counted from 1) after the final norm are put side by side;
logits are upsampled bilinearly to the labels. Deviations: the features are computed once and kept as float16,
so there is no augmentation (`flip_augment` adds the mirrored images); the test image is taken whole instead
of in sliding windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.rng import seeded_default
from rekindle.data.decoding import image_size
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.dense_features import extract_each, fitted_size, resize_image, resize_labels
from rekindle.evaluation.protocol import Outcome, SegmentationProtocol
from rekindle.evaluation.segmentation.options import LinearSegOptions
from rekindle.evaluation.training.fitting import endless_order

WARMUP_RATIO = 1e-6
BYTES_PER_VALUE = 2  # float16


def linear_rate(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """Return peak * (1 - step / steps), in the warm-up times a factor that rises linearly from 1e-6 to 1."""
    rate = peak * (1.0 - step / steps)
    if step >= warmup_steps:
        return rate
    return rate * (1.0 - (1.0 - step / warmup_steps) * (1.0 - WARMUP_RATIO))


def four_blocks(depth: int) -> tuple[int, ...]:
    """Return the indices (from 0) of the blocks 6, 8, 10 and 12 of twelve, scaled to another depth."""
    return tuple(max(1, round(depth * block / 12)) - 1 for block in (6, 8, 10, 12))


class LinearHead(nn.Module):
    """BatchNorm, then a 1x1 convolution, written for patches in rows (of any images): [P, F] -> [P, C]."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features)
        self.classifier = nn.Linear(num_features, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits of each row."""
        logits: Tensor = self.classifier(self.norm(rows))
        return logits


@dataclass(frozen=True)
class CachedImage:
    """One image for the head: float16 rows [gh * gw, F], their grid, and the labels that the loss sees."""

    rows: Tensor
    grid: tuple[int, int]
    labels: Tensor


class LinearSeg(SegmentationProtocol[LinearSegOptions]):
    """The protocol; see the module."""

    Config = LinearSegOptions
    _train_cache: list[CachedImage]
    _test_cache: list[CachedImage]

    def check(self) -> None:
        """Refuse a warm-up longer than the training, and features that do not fit into the memory allowed."""
        if self.config.warmup_steps >= self.config.steps:
            raise RequestError(
                f"linear_seg.warmup_steps = {self.config.warmup_steps} must be less than "
                f"linear_seg.steps = {self.config.steps}; lower the former, or raise the latter"
            )
        copies = 2 if self.config.flip_augment else 1
        numbers = copies * self._cached_values(self.train) + self._cached_values(self.test)
        gib = numbers * BYTES_PER_VALUE / 2**30
        if gib > self.config.max_cache_gib:
            raise RequestError(
                f"the features of {len(self.train)} + {len(self.test)} images would take {gib:.1f} GiB, more "
                f"than linear_seg.max_cache_gib = {self.config.max_cache_gib:g}; lower linear_seg.size_px = "
                f"{self.config.size_px}, use dense-retrieval, or raise the limit if the memory is there"
            )

    def prepare(self) -> None:
        """Compute and keep the features of all images."""
        self._train_cache = list(self._cache(self.train, flipped=False, keep_labels=True))
        if self.config.flip_augment:
            self._train_cache += list(self._cache(self.train, flipped=True, keep_labels=True))
        self._test_cache = list(self._cache(self.test, flipped=False, keep_labels=False))

    def run(self, seed: int) -> Outcome:
        """Train a head and count its pixels on the test images."""
        head = self._trained_head(seed).eval()
        maps, statistics = self.maps(), []
        with torch.no_grad():
            for index, cached in enumerate(self._test_cache):
                labels = self.test.mask(index)
                logits = head(cached.rows.to(self.extractor.device).float())
                upsampled = _upsampled(logits[None], cached.grid, (labels.shape[0], labels.shape[1]))
                statistics.append(maps.count(index, upsampled.argmax(1)[0].cpu(), labels))
        moved = sum(p.numel() for p in head.parameters())
        return self.outcome(np.stack(statistics), seed, maps=maps, trained_parameters=moved)

    def _trained_head(self, seed: int) -> LinearHead:
        config, device = self.config, self.extractor.device
        with seeded_default(seed, "linear-seg-head"):
            head = LinearHead(4 * self.extractor.width, self.train.num_classes).to(device)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        own = self.training_indices(seed)
        mirrored = [len(self.train) + i for i in own] if config.flip_augment else []
        order = endless_order(own + mirrored, seed, "linear-seg-order")
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = linear_rate(step, peak=config.lr, steps=config.steps, warmup_steps=config.warmup_steps)
            batch = [self._train_cache[next(order)] for _ in range(config.batch_size)]
            loss = _loss(head, batch, self.train.ignore_index, device)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if not all(bool(p.isfinite().all()) for p in head.parameters()):
            raise RekindleError(
                f"linear-seg: the head's weights are no longer finite; lower linear_seg.lr = {config.lr}, "
                "or check that the model gives finite features"
            )
        return head

    def _cache(self, dataset: SegmentationFolder, *, flipped: bool, keep_labels: bool) -> Iterator[CachedImage]:
        labels: list[Tensor] = []

        def images() -> Iterator[Tensor]:
            for index in range(len(dataset)):
                image, mask = dataset.read(index)
                labels.append(self._loss_labels(mask, flipped) if keep_labels else mask[:0])
                size = fitted_size(image.shape[1], image.shape[2], self.config.size_px, self.extractor.patch_size)
                resized = resize_image(image, size)
                yield resized.flip(-1) if flipped else resized

        blocks = four_blocks(self.extractor.depth)
        for index, tokens in enumerate(extract_each(self.extractor, images(), blocks)):
            rows = torch.cat([t.patches[0].flatten(0, 1) for t in tokens], dim=1)
            yield CachedImage(rows.to("cpu", torch.float16), tokens[0].grid, labels[index])
            if (index + 1) % 100 == 0:
                self.message(f"features of {index + 1} of {len(dataset)} images ({dataset.split})")

    def _loss_labels(self, mask: Tensor, flipped: bool) -> Tensor:
        stride = self.config.loss_stride
        size = max(1, round(mask.shape[0] / stride)), max(1, round(mask.shape[1] / stride))
        reduced = resize_labels(mask, size) if stride > 1 else mask
        return (reduced.flip(-1) if flipped else reduced).to(torch.int32)

    def _cached_values(self, dataset: SegmentationFolder) -> int:
        patch, patches = self.extractor.patch_size, 0
        for index in range(len(dataset)):
            height, width = fitted_size(*image_size(str(dataset.image_path(index))), self.config.size_px, patch)
            patches += height // patch * (width // patch)
        return 4 * self.extractor.width * patches


def _loss(head: LinearHead, batch: list[CachedImage], ignore_index: int, device: torch.device) -> Tensor:
    """Return the mean cross-entropy of the batch's pixels that count; the images' sizes may differ."""
    logits = head(torch.cat([image.rows for image in batch]).to(device).float())
    per_image = torch.split(logits, [len(image.rows) for image in batch])
    same_size: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(batch):
        same_size[image.grid, image.labels.shape].append(i)
    total: Tensor = logits.sum() * 0.0
    count = 0
    for members in same_size.values():
        labels = torch.stack([batch[i].labels for i in members]).to(device).long()
        maps = _upsampled(
            torch.stack([per_image[i] for i in members]),
            batch[members[0]].grid,
            (labels.shape[1], labels.shape[2]),
        )
        total = total + nn.functional.cross_entropy(maps, labels, ignore_index=ignore_index, reduction="sum")
        count += int((labels != ignore_index).sum())
    return total / max(1, count)


def _upsampled(rows: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, gh * gw, C] -> [B, C, H, W]."""
    maps = rows.transpose(1, 2).reshape(len(rows), -1, *grid)
    upsampled: Tensor = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return upsampled
