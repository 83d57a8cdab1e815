# SPDX-License-Identifier: Apache-2.0
"""Dense nearest-neighbour retrieval (Balazevic et al., "Towards in-context scene understanding").

Patches of labelled images go into a memory, each with its feature and the class frequencies of its pixels. A
patch of a test image takes the weighted labels of its nearest neighbours. Nothing is trained. Classes keep
their names, unless `compat` asks for the matching of predicted to true classes that the public tool does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as image_ops

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.dense_features import extract_each, resize_image, resize_labels
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, SegmentationProtocol
from rekindle.evaluation.scores.cluster_matching import named_statistics, one_to_one
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.segmentation.options import DenseRetrievalOptions

CROP_AREA = (0.5, 2.0)  # of the image; what is larger is clipped
CROP_RATIO = (3 / 4, 4 / 3)
JITTER, JITTER_PROBABILITY = 0.1, 0.5
SIMILARITIES = 1 << 26  # numbers in one block of the similarity matrix: 256 MiB


def soft_labels(mask: Tensor, patch: int, num_classes: int) -> Tensor:
    """Return the class frequencies of the pixels of each patch: [gh * gw, C], rows sum to 1.

    Args:
        mask: ids [H, W] with sides that the patch divides; pixels outside [0, C) count for no class.
        patch: side of a patch (px).
        num_classes: C.

    Returns:
        Zeros for a patch without any pixel that counts.

    """
    height, width = mask.shape
    grid = (height // patch, width // patch)
    ids = mask.reshape(grid[0], patch, grid[1], patch).transpose(1, 2).reshape(grid[0] * grid[1], -1)
    ids = torch.where((ids >= 0) & (ids < num_classes), ids, num_classes)
    counts = torch.zeros(len(ids), num_classes + 1).scatter_add_(1, ids, torch.ones(ids.shape))
    counts = counts[:, :num_classes]
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)


def sample_patches(labels: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Choose `count` distinct patches of one image, rare classes first, and return their indices.

    A patch's score is the sum over its classes of the number of patches with that class, times U(0, 1); the
    smallest win.

    Args:
        labels: soft labels [P, C].
        count: how many; all P if that is fewer.
        source: of the uniform numbers.

    """
    is_present = (labels > 0).float()
    score = (is_present @ is_present.sum(dim=0)) * torch.rand(len(labels), generator=source)
    return score.topk(min(count, len(labels)), largest=False).indices.sort().values


def retrieve(
    queries: Tensor, memory: Tensor, memory_labels: Tensor, *, num_neighbours: int, temperature: float
) -> Tensor:
    """Label queries [Q, D] with their neighbours' labels, weighted by softmax(cosine / temperature): [Q, C].

    Args:
        queries: of unit length.
        memory: [M, D] of unit length.
        memory_labels: [M, C].
        num_neighbours: at most M count.
        temperature: of the softmax.

    """
    neighbours = min(num_neighbours, len(memory))
    found = []
    for part in torch.split(queries, max(1, SIMILARITIES // len(memory))):
        cosine, index = (part @ memory.T).topk(neighbours, dim=1)
        weights = (cosine / temperature).softmax(dim=1)
        found.append(torch.einsum("qk,qkc->qc", weights, memory_labels[index]))
    return torch.cat(found)


def memory_crop(image: Tensor, mask: Tensor, size_px: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop image and mask at the same random place, resize both to a square, jitter the image's colours."""
    height, width = mask.shape
    area_scale, log_ratio, y, x, *colours = torch.rand(12, generator=source).tolist()
    area = (CROP_AREA[0] + area_scale * (CROP_AREA[1] - CROP_AREA[0])) * height * width
    low, high = map(math.log, CROP_RATIO)
    ratio = math.exp(low + log_ratio * (high - low))
    crop_h = min(height, max(1, round(math.sqrt(area / ratio))))
    crop_w = min(width, max(1, round(math.sqrt(area * ratio))))
    top, left = int(y * (height - crop_h + 1)), int(x * (width - crop_w + 1))
    image = image[:, top : top + crop_h, left : left + crop_w]
    mask = mask[top : top + crop_h, left : left + crop_w]
    image, mask = resize_image(image, (size_px, size_px)), resize_labels(mask, (size_px, size_px))
    return _jittered(image, colours), mask


def _jittered(image: Tensor, uniform: list[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue, each by up to 0.1 with probability 0.5."""
    for adjust, chance, amount in zip(
        (image_ops.adjust_brightness, image_ops.adjust_contrast, image_ops.adjust_saturation),
        uniform[:3],
        uniform[3:6],
        strict=True,
    ):
        if chance < JITTER_PROBABILITY:
            image = adjust(image, 1.0 + JITTER * (2.0 * amount - 1.0))
    if uniform[6] < JITTER_PROBABILITY:
        image = image_ops.adjust_hue(image, JITTER * (2.0 * uniform[7] - 1.0))
    return image


def image_confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> NDArray[np.int64]:
    """Count the pixels of each predicted class (rows) and true class: [C, C], without `ignore_index`."""
    counted = label != ignore_index
    pairs = prediction[counted] * num_classes + label[counted]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).numpy()


class DenseRetrieval(SegmentationProtocol[DenseRetrievalOptions]):
    """The protocol; see the module. A seed draws the augmentation and the patches of the memory."""

    Config = DenseRetrievalOptions

    _queries: list[Tensor]

    def check(self) -> None:
        """Refuse a size that the patch does not divide, and a memory too small for one patch per image."""
        size, patch = self.config.size_px, self.extractor.patch_size
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            raise RequestError(
                f"dense_retrieval.size_px = {size} is not a multiple of the model's patch size {patch}; use "
                + (f"{below} or {above}" if below else str(above))
            )
        if self._patches_per_image(seed=0) == 0:
            raise RequestError(
                f"dense_retrieval.memory_size = {self.config.memory_size} leaves less than one patch for "
                f"each of {len(self.train)} training images in {self._passes()} passes; use at least "
                f"{len(self.train) * self._passes()}"
            )

    def prepare(self) -> None:
        """Extract the features of the test images."""
        found = self.features.of(self.test, Sizing("square", self.config.size_px), message=self.message)
        self._queries = [_unit_rows(t[0].patches[0].float()).half() for t in found]

    def run(self, seed: int) -> Outcome:
        """Fill the memory, label the patches of every test image, count pixels."""
        memory, labels = self._memory(seed)
        size, num_classes = self.config.size_px, self.test.num_classes
        side = size // self.extractor.patch_size
        counted, kept = [], self.maps()
        for index, query in enumerate(self._queries):
            found = retrieve(
                query.to(memory),
                memory,
                labels,
                num_neighbours=self.config.num_neighbours,
                temperature=self.config.temperature,
            )
            maps = found.T.reshape(1, num_classes, side, side)
            maps = functional.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
            mask = resize_labels(self.test.mask(index), (size, size))
            prediction = maps.argmax(dim=1)[0].cpu()
            if self.config.compat == "none":
                counted.append(kept.count(index, prediction, mask))
            else:
                counted.append(image_confusion(prediction, mask, num_classes, self.test.ignore_index))
        if self.config.compat == "none":
            return self.outcome(np.stack(counted), seed, maps=kept, memory_patches=len(memory))
        return self._matched(np.stack(counted), seed, memory_patches=len(memory))

    def _matched(self, confusions: NDArray[np.int64], seed: int, *, memory_patches: int) -> Outcome:
        """Score pixels [n, C, C] of each predicted class and true class (last) after matching; names are fixed over resamples."""
        statistics = named_statistics(confusions, one_to_one(confusions.sum(axis=0)))
        score = MeanIou(class_names=self.test.names, headline="matched mIoU", absent="zero")
        return replace(
            self.outcome(statistics, seed, headline=score.headline, memory_patches=memory_patches), score=score
        )

    def _memory(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return features [M, D] of unit length and soft labels [M, C]."""
        soft: list[Tensor] = []
        features, labels = [], []
        own = self.training_indices(seed)
        images = self._memory_images(seed, own, soft)
        for number, tokens in enumerate(extract_each(self.extractor, images)):
            rows = _unit_rows(tokens[0].patches[0])
            candidates = soft[number].sum(dim=1).nonzero()[:, 0]
            source = generator(seed, "dense-retrieval-memory", number)
            chosen = candidates[sample_patches(soft[number][candidates], self._patches_per_image(seed), source)]
            features.append(rows[chosen.to(rows.device)])
            labels.append(soft[number][chosen])
            if (number + 1) % 100 == 0:
                self.message(f"memory from {number + 1} of {len(own) * self._passes()} images")
        memory = torch.cat(features)
        if not len(memory):
            raise RequestError(
                f"{self.train.root}, split '{self.train.split}': every pixel is ignored, so nothing can be "
                "remembered; label the images, or choose another --train-split"
            )
        return memory, torch.cat(labels).to(memory.device)

    def _memory_images(self, seed: int, own: list[int], soft: list[Tensor]) -> Iterator[Tensor]:
        """Yield the images for the memory, in order, and append the soft labels of each to `soft`."""
        size, dataset = self.config.size_px, self.train
        for epoch in range(self._passes()):
            for index in own:
                image, mask = dataset.read(index)
                if self.config.augmentation_epochs:
                    source = generator(seed, "dense-retrieval-crop", epoch, index)
                    image, mask = memory_crop(image, mask, size, source)
                else:
                    image, mask = resize_image(image, (size, size)), resize_labels(mask, (size, size))
                if not self.config.drop_ignored:
                    mask = _ignored_as_zero(mask, dataset)
                soft.append(soft_labels(mask, self.extractor.patch_size, dataset.num_classes))
                yield image

    def _passes(self) -> int:
        return max(1, self.config.augmentation_epochs)

    def _patches_per_image(self, seed: int) -> int:
        return self.config.memory_size // (len(self.training_indices(seed)) * self._passes())


def _unit_rows(patches: Tensor) -> Tensor:
    """[gh, gw, D] -> [gh * gw, D] of unit length."""
    return functional.normalize(patches.flatten(0, 1), dim=1)


def _ignored_as_zero(mask: Tensor, dataset: SegmentationFolder) -> Tensor:
    return torch.where(mask == dataset.ignore_index, 0, mask)
