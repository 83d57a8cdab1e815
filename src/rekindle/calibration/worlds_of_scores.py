# SPDX-License-Identifier: Apache-2.0
"""A world for every kind of score that a protocol has, and the table of them. Torch-free."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from rekindle.calibration.worlds import Array, Items, World, logistic
from rekindle.evaluation.scores.kinds import DefinedMeans, MeanAveragePrecision, MeanIou, Means
from rekindle.evaluation.scores.threshold_scores import BestThreshold, FewShot, Overlap


class ClassMaps(World):
    """mIoU of eleven classes with the areas, presences and recalls of a street data set under a linear head (mIoU 0.48).

    Of an image, the areas of the classes are log-normal about their shares, then normalised to 50,000 pixels; a class is
    absent with a probability of its own. What is not found goes to the other classes by their areas. Pixels are rounded, not
    drawn: at these areas the noise of single pixels is far below that of images.
    """

    name = "mIoU"
    protocols = ("linear-seg", "dense-retrieval", "linear-decoder", "fpn", "upernet", "clustering")
    places = 11
    SHARES = np.array([0.16, 0.288, 0.014, 0.302, 0.112, 0.079, 0.0123, 0.0137, 0.0148, 0.0048, 0.0008])
    PRESENT = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.97, 0.96, 0.45, 0.94, 0.93, 0.29])
    VARIATION = np.array([0.38, 0.34, 0.57, 0.15, 0.27, 0.96, 0.97, 1.3, 1.3, 1.04, 1.5])
    RECALL = np.array([0.93, 0.92, 0.10, 0.96, 0.75, 0.66, 0.30, 0.30, 0.84, 0.32, 0.08])
    PIXELS = 50_000

    @property
    def score(self) -> MeanIou:
        """See `World.score`."""
        return MeanIou(class_names=[f"class {c}" for c in range(self.places)])

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        models, seeds, width = shifts.shape
        label = self._label_areas(source, items)
        logit = np.log(self.RECALL / (1 - self.RECALL))
        logit = logit + 0.35 * items.normals(source) + 0.65 * items.normals(source, width=width)
        own = 0.1 * items.apart(source, models) + 0.3 * items.apart(source, models, width)
        goes = np.exp(0.5 * items.apart(source, models, width)) * (label / self.PIXELS + 0.02 * self.SHARES)
        goes /= goes.sum(axis=-1, keepdims=True)
        latent = logit + own[:, None] + shifts[:, :, None, :]
        latent = latent + noise * source.standard_normal((models, seeds, items.count, width))
        inside = np.rint(label * logistic(latent))
        missed = (label - inside).sum(axis=-1, keepdims=True)
        predicted = inside + np.rint(missed * goes[:, None])
        return np.concatenate([inside, np.broadcast_to(label, inside.shape), predicted], axis=-1)

    def _label_areas(self, source: np.random.Generator, items: Items) -> Array:
        """Pixels [n, C] of each class."""
        deviation = np.sqrt(np.log1p(self.VARIATION**2))
        is_there = ndtr(items.normals(source, width=self.places)) < self.PRESENT
        drawn = np.exp(deviation * items.normals(source, width=self.places) - deviation**2 / 2)
        area = self.SHARES / self.PRESENT * drawn * is_there
        return np.asarray(np.rint(self.PIXELS * area / area.sum(axis=1, keepdims=True)))


class Hits(World):
    """Right or wrong, of each image: the sides differ on a fifth of the images."""

    name = "top-1"
    protocols = ("knn", "linear-probe", "finetune")

    @property
    def score(self) -> Means:
        """See `World.score`."""
        return Means(headline="top-1", names=["top-1"])

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        return _weighted((_latent(source, items, shifts, noise, start=0.4, shared=1.2, own=0.6) > 0).astype(np.float64))


class Errors(World):
    """A positive error with a long tail, such as the relative one of a depth; lower is better."""

    name = "error"
    protocols = ("depth", "variance")

    @property
    def score(self) -> Means:
        """See `World.score`."""
        return Means(headline="AbsRel", names=["AbsRel"], better="lower")

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        return _weighted(np.exp(_latent(source, items, shifts, noise, start=-1.0, shared=0.5, own=0.15)))


class Shares(World):
    """A share of each item, such as the J&F of an object in a video."""

    protocols = ("video",)

    def __init__(self, name: str = "J&F", better: Literal["higher", "neither"] = "higher") -> None:
        self.name, self.better = name, better
        self.protocols = ("video",) if better == "higher" else ("cka",)

    @property
    def score(self) -> Means:
        """See `World.score`."""
        return Means(headline=self.name, names=[self.name], better=self.better)

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        return _weighted(logistic(_latent(source, items, shifts, noise, start=0.6, shared=1.0, own=0.25)))


class Queries(World):
    """Average precision of each query, which a tenth of the queries do not define."""

    name = "mAP of queries"
    protocols = ("image-retrieval",)

    @property
    def score(self) -> DefinedMeans:
        """See `World.score`."""
        return DefinedMeans(headline="mAP medium", names=["mAP medium"])

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        found = logistic(_latent(source, items, shifts, noise, start=0.0, shared=1.5, own=0.4))
        is_defined = np.broadcast_to(ndtr(items.normals(source)[:, 0]) < 0.9, found.shape)
        return np.stack([found * is_defined, is_defined], axis=-1)


class Rankings(World):
    """Which of ten classes an image shows, ranked over the images; the rarest in a twentieth of them."""

    name = "mAP"
    protocols = ("multi-label",)
    places = 10
    RATES = np.array([0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.07, 0.05])

    @property
    def score(self) -> MeanAveragePrecision:
        """See `World.score`."""
        return MeanAveragePrecision(class_names=[f"class {c}" for c in range(self.places)])

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        models, seeds, width = shifts.shape
        is_there = items.normals(source, width=width) < ndtri(self.RATES)
        evidence = items.normals(source, width=width) + 0.5 * items.apart(source, models, width)
        shown = (2.0 + shifts)[:, :, None, :] * is_there + evidence[:, None]
        shown = shown + noise * source.standard_normal((models, seeds, items.count, width))
        return np.concatenate([shown, np.broadcast_to(is_there, shown.shape)], axis=-1)


class Prompts(World):
    """IoU of prompted targets at ten thresholds: a hump whose height and place differ; one threshold is chosen for all."""

    name = "mIoU at the best threshold"
    protocols = ("prompted-seg",)
    THRESHOLDS = np.linspace(0.0, 0.9, 10).round(1)

    @property
    def score(self) -> BestThreshold:
        """See `World.score`."""
        return BestThreshold(thresholds=self.THRESHOLDS.tolist(), groups=["all"])

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        height = logistic(_latent(source, items, shifts, noise, start=0.4, shared=0.9, own=0.25))
        place = 0.55 + 0.12 * items.normals(source)[:, 0] + 0.03 * items.apart(source, len(shifts))[..., 0]
        curve = height[..., None] * np.exp(-0.5 * ((self.THRESHOLDS - place[:, None, :, None]) / 0.2) ** 2)
        return np.concatenate([curve, np.ones((*height.shape, 1))], axis=-1)


class Cosines(World):
    """Cosines of patches within a class and across classes: two histograms of forty bins an image; less overlap is better."""

    name = "overlap"
    protocols = ("similarity",)
    BINS = 40

    @property
    def score(self) -> Overlap:
        """See `World.score`."""
        return Overlap(num_bins=self.BINS)

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`; a shift moves the cosines within a class, by a tenth of it."""
        moved = 0.1 * _latent(source, items, shifts, noise, start=0.0, shared=1.0, own=0.2)
        within, across = 0.45 - moved, np.broadcast_to(0.2 + 0.06 * items.normals(source)[:, 0], moved.shape)
        edges = np.linspace(-1.0, 1.0, self.BINS + 1)
        found = []
        for mean in (within, across):
            below = ndtr((edges - mean[..., None]) / 0.18)
            below[..., 0], below[..., -1] = 0.0, 1.0
            found.append(np.diff(below, axis=-1))
        return np.concatenate([*found, within[..., None], across[..., None], np.ones((*moved.shape, 1))], axis=-1)


class Episodes(World):
    """Episodes of one labelled image per class: fifteen queries, and decisions "same class" at nine thresholds."""

    protocols = ("one-shot",)
    QUERIES = 15
    THRESHOLDS = np.linspace(0.1, 0.9, 9).round(1)

    def __init__(self, headline: Literal["accuracy", "F1"] = "accuracy") -> None:
        self.headline = headline
        self.name = f"{headline} of episodes"

    @property
    def score(self) -> FewShot:
        """See `World.score`."""
        return FewShot(headline=self.headline, thresholds=self.THRESHOLDS.tolist())

    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """See `World.rows`."""
        ease = _latent(source, items, shifts, noise, start=0.3, shared=0.4, own=0.15)
        query = items.normals(source, width=self.QUERIES) + 0.5 * items.apart(source, len(shifts), self.QUERIES)
        hits = (ease[..., None] + query[:, None] > 0).sum(axis=-1)
        columns = [hits, np.full(ease.shape, self.QUERIES), np.full(ease.shape, self.QUERIES)]
        same = np.rint(self.QUERIES * ndtr((0.5 + 0.1 * ease[..., None] - self.THRESHOLDS) / 0.15))
        other = np.rint(4 * self.QUERIES * ndtr((0.3 - self.THRESHOLDS) / 0.15))
        return np.concatenate([np.stack(columns, axis=-1), same, same + other], axis=-1)


WORLDS: tuple[World, ...] = (
    ClassMaps(),
    Hits(),
    Errors(),
    Shares(),
    Shares("CKA", "neither"),
    Queries(),
    Rankings(),
    Prompts(),
    Cosines(),
    Episodes(),
    Episodes("F1"),
)
"""Between them every protocol is there."""


def _latent(
    source: np.random.Generator, items: Items, shifts: Array, noise: float, *, start: float, shared: float, own: float
) -> Array:
    """Latent quality [M, S, n] where there is one per item."""
    models, seeds, _ = shifts.shape
    alike = start + shared * items.normals(source)[:, 0]
    apart = own * items.apart(source, models)[..., 0]
    drawn = noise * source.standard_normal((models, seeds, items.count))
    return np.asarray((alike + apart)[:, None] + shifts + drawn)


def _weighted(values: Array) -> Array:
    """Rows of a mean: the value and a weight of 1."""
    return np.stack([values, np.ones_like(values)], axis=-1)
