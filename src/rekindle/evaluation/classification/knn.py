# SPDX-License-Identifier: Apache-2.0
"""Classification by the nearest neighbours of whole images (E4; DINO, and MMC tables 4, 6, 11). Nothing is trained."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder, check_same_classes
from rekindle.evaluation.classification.options import Descriptor, KnnOptions
from rekindle.evaluation.features.descriptors import Descriptors, check_descriptor, check_image_side, image_descriptors
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.scores.score import Rows

SIMILARITIES = 1 << 26  # numbers in one block of the similarity matrix: 256 MiB
TOP = 5
SMALLEST_DEVIATION = 1e-6


def nearest_images(
    queries: Float[Tensor, "Q D"], memory: Float[Tensor, "M D"], count: int
) -> tuple[Float[Tensor, "Q K"], Int64[Tensor, "Q K"]]:
    """Return the `count` greatest cosines of each query with the memory, falling, and their positions; all of unit length."""
    parts = torch.split(queries, max(1, SIMILARITIES // len(memory)))
    found = [(part @ memory.T).topk(count, dim=1) for part in parts]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def votes(
    cosines: Float[Tensor, "Q K"], labels: Int64[Tensor, "Q K"], num_classes: int, temperature: float
) -> Float[Tensor, "Q C"]:
    """Sum exp(cosine / temperature) of each class over a query's neighbours, divided by the nearest one's, in float64.

    Returns: -inf for classes that no neighbour has.
    """
    weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
    empty = torch.zeros(len(cosines), num_classes, dtype=torch.float64, device=cosines.device)
    is_there = torch.zeros_like(empty).scatter_(1, labels, 1.0) > 0
    return empty.scatter_add_(1, labels, weights).where(is_there, -torch.inf)


def hits(scores: Float[Tensor, "Q C"], labels: Int64[Tensor, " Q"], top: int) -> Tensor:
    """Return whether the class of each query is among its `top` best, as 0.0 or 1.0; a score of -inf never is."""
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    return ((best.indices == labels[:, None]) & best.values.isfinite()).any(dim=1).double()


def standardised_columns(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of `train` [n, D] from both and divide by its deviation, channel by channel."""
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0).clamp(min=SMALLEST_DEVIATION)
    return (train - mean) / deviation, (test - mean) / deviation


class Knn(Protocol[KnnOptions, ClassFolder]):
    """The protocol; see the module. A seed changes only which training images are used, where that is a part of them."""

    Config = KnnOptions
    DATA = "classification"

    _train_descriptors: Descriptors
    _test_descriptors: Descriptors

    def check(self) -> None:
        """Refuse splits of different classes, more neighbours than images, and a descriptor that the model has not."""
        check_same_classes(self.train, self.test)
        check_image_side("knn.size_px", self.config.size_px, self.extractor)
        check_descriptor("knn.descriptor", self.config.descriptor, self.extractor)
        count = len(self.training_indices(0))
        if self.config.k > count:
            raise RequestError(
                f"knn.k = {self.config.k} asks for more neighbours than there are training images ({count}); lower it"
            )

    def prepare(self) -> None:
        """Compute the descriptors of all images."""
        size = self.config.size_px
        self._train_descriptors = image_descriptors(self.features, self.train, size, self.message)
        self._test_descriptors = image_descriptors(self.features, self.test, size, self.message)

    def run(self, seed: int) -> Outcome:
        """Classify every test image with every descriptor and number of neighbours."""
        config, own = self.config, self.training_indices(seed)
        chosen = self._test_descriptors.names if config.every_descriptor else [config.descriptor]
        numbers = sorted({config.k, *(k for k in config.other_k if k <= len(own))})
        columns: dict[str, Rows] = {}
        for name in chosen:
            cosines, labels = self._neighbours(name, own, max(numbers))
            for k in numbers:
                scores = votes(cosines[:, :k], labels[:, :k], self.test.num_classes, config.temperature)
                truth = self.test.labels.to(scores.device)
                is_headline = (name, k) == (config.descriptor, config.k)
                for top in (1, TOP):
                    label = f"top-{top}" + ("" if is_headline else f"/{name} k={k}")
                    columns[label] = hits(scores, truth, top).cpu().numpy()
        rows = np.stack([*columns.values(), np.ones(len(self.test))], axis=1)
        counts = {"images": len(self.test), "train_images": len(own), "classes": self.test.num_classes}
        return Outcome(self.test.items, rows, Means(headline="top-1", names=list(columns)), counts)

    def _neighbours(self, name: Descriptor, own: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Cosines and labels [Q, K] of the neighbours among the training images `own`."""
        train, test = self._train_descriptors.plain(name)[own], self._test_descriptors.plain(name)
        if self.config.standardise:
            train, test = standardised_columns(train, test)
        device = self.extractor.device
        memory, queries = (functional.normalize(x, dim=1).to(device) for x in (train, test))
        cosines, index = nearest_images(queries, memory, count)
        return cosines, self.train.labels[own].to(device)[index]
