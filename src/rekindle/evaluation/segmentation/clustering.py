# SPDX-License-Identifier: Apache-2.0
"""Unsupervised segmentation: k-means over the patch tokens of all test images, clusters then named after classes.

Tokens are scaled to unit length and every patch takes the nearest centre; the map of a patch is constant. Names are given once
per model and seed, on all images together: a resample of images keeps them, which is what makes comparing cheap, and leaves out
of the interval what a change of names would add. Labels serve for names and metrics alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed, generator
from rekindle.data.labelled.objects import ObjectSplit
from rekindle.evaluation.features.object_tokens import check_side, class_pixels, nearest, unit_tokens
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.cluster_matching import majority, named_statistics, one_to_one
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.segmentation.options import ClusteringOptions
from rekindle.networks.tokens import Tokens

BATCH = 4096  # tokens in a step of k-means


def fitted_centres(tokens: Tensor, num_clusters: int, *, restarts: int, seed: int) -> Tensor:
    """Return the centres [K, D] of mini-batch k-means (k-means++ start) on tokens [M, D]."""
    fit = MiniBatchKMeans(
        num_clusters,
        batch_size=BATCH,
        n_init=restarts,
        max_iter=100,
        random_state=derived_seed(seed, "clustering") % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different tokens than clusters: some stay empty
        fit.fit(tokens.numpy())
    return torch.from_numpy(np.asarray(fit.cluster_centers_, np.float32))


def nearest_centre(tokens: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest centre [K, D] of each token [P, D]."""
    return (tokens @ centres.T - centres.square().sum(dim=1) / 2).argmax(dim=1)


@dataclass(frozen=True)
class ShownClasses:
    """The classes that one image shows: few of many, so that the counts of a whole data set fit into memory.

    Attributes:
        ids: [c], ascending.
        pixels: int32 [P, c], of each of them in each patch.
        num_classes: C, of the data set.

    """

    ids: Tensor
    pixels: Tensor
    num_classes: int

    def in_clusters(self, clusters: Tensor, num_clusters: int) -> NDArray[np.int64]:
        """Count the pixels of each class in each cluster [K, c], given the cluster of each patch [P]."""
        found = torch.zeros(num_clusters, len(self.ids), dtype=torch.int64)
        return found.index_add_(0, clusters, self.pixels.long()).numpy()

    def named(self, confusion: NDArray[np.int64], named: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pixel counts [3, C] when clusters have the names [K]; see `named_statistics`."""
        whole = np.zeros((len(confusion), self.num_classes), np.int64)
        whole[:, self.ids.numpy()] = confusion
        return np.asarray(named_statistics(whole[None], named)[0])


class Clustering(Protocol[ClusteringOptions, ObjectSplit]):
    """The protocol; see the module. A seed draws the tokens that are fitted, and the starts."""

    Config = ClusteringOptions
    DATA = "objects"
    USES_TRAIN = False

    _shown: list[ShownClasses]

    def check(self) -> None:
        """Refuse a size that the patch does not divide, fewer tokens than clusters, and one-to-one names for too few."""
        config, classes = self.config, len(self.test.names)
        check_side(config.size_px, self.extractor.patch_size, "clustering.size_px")
        if config.naming == "hungarian" and self._num_clusters() < classes:
            raise RequestError(
                f"clustering.num_clusters = {config.num_clusters} is less than the {classes} classes, some of which would get "
                f"no cluster; use at least {classes}, or 0 for as many"
            )
        tokens = min(config.max_tokens, len(self.test.items) * (config.size_px // self.extractor.patch_size) ** 2)
        if tokens < self._num_clusters():
            raise RequestError(
                f"{tokens} tokens cannot make {self._num_clusters()} clusters; lower clustering.num_clusters, or raise "
                "clustering.max_tokens or clustering.size_px"
            )

    def prepare(self) -> None:
        """Count the pixels of each class in each patch; the features are shared with other protocols."""
        side, patch = self.config.size_px, self.extractor.patch_size
        self._shown = []
        for index in range(len(self.test.items)):
            pixels = class_pixels(nearest(self.test.class_map(index), side), len(self.test.names), patch)
            ids = pixels.sum(dim=0).nonzero()[:, 0]
            self._shown.append(ShownClasses(ids, pixels[:, ids].to(torch.int32), len(self.test.names)))

    def run(self, seed: int) -> Outcome:
        """Cluster, name, count."""
        config, num_clusters = self.config, self._num_clusters()
        centres = fitted_centres(self._sample(seed), num_clusters, restarts=config.restarts, seed=seed)
        found, total = [], np.zeros((num_clusters, len(self.test.names)), np.int64)
        for tokens, shown in zip(self._features(), self._shown, strict=True):
            found.append(shown.in_clusters(nearest_centre(unit_tokens(tokens[0].patches[0]), centres), num_clusters))
            total[:, shown.ids.numpy()] += found[-1]
        named = one_to_one(total) if config.naming == "hungarian" else majority(total)
        statistics = np.stack([shown.named(own, named) for shown, own in zip(self._shown, found, strict=True)])
        score = MeanIou(class_names=self.test.names, headline="clustering mIoU")
        purity = float(total.max(axis=1).sum() / max(1, total.sum()))
        counts = {"images": len(self.test.items), "clusters": num_clusters, "pixels": int(total.sum())}
        return Outcome(self.test.items, statistics.reshape(len(statistics), -1), score, counts, {"purity": purity})

    def _num_clusters(self) -> int:
        return self.config.num_clusters or len(self.test.names)

    def _features(self) -> Iterator[list[Tokens]]:
        return self.features.of(self.test, Sizing("square", self.config.size_px), message=self.message)

    def _sample(self, seed: int) -> Tensor:
        """Tokens that the clusters are fitted to: as many of each image."""
        each = -(-self.config.max_tokens // len(self.test.items))
        chosen = []
        for index, tokens in enumerate(self._features()):
            patches = tokens[0].patches[0].flatten(0, 1)
            source = generator(seed, "clustering-tokens", index)
            own = torch.randperm(len(patches), generator=source)[:each]
            chosen.append(unit_tokens(patches[own][None]))
        return torch.cat(chosen)[: self.config.max_tokens]
