# SPDX-License-Identifier: Apache-2.0
"""Scores of class maps, of means and of rankings, and the union of all kinds that a result file may name. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator

from rekindle.evaluation.scores.score import Rows, Score, SummedScore, Values, defined_mean
from rekindle.evaluation.scores.segmentation_metrics import accuracy_metrics, class_iou
from rekindle.evaluation.scores.threshold_scores import BestThreshold, FewShot, Overlap


class MeanIou(SummedScore):
    """Mean IoU from pixel counts of each class: intersection, label area, predicted area."""

    kind: Literal["mean-iou"] = "mean-iou"
    """What kind of score this is."""
    class_names: list[str]
    """One per class."""
    headline: str = "mIoU"
    """What the mean is called; another name where the maps were changed before they were counted."""
    absent: Literal["unlabelled", "skip", "zero"] = "unlabelled"
    """What is left out of the mean: unlabelled, a class that no label holds, so that both sides of a comparison average over the
    same classes; skip, only one that no prediction holds either, and a stray pixel of it counts as an IoU of 0 (files of before);
    zero leaves out none, and either counts as 0."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return self.headline

    @property
    def columns(self) -> list[str]:
        """The counts, one kind after the other."""
        return [f"{kind}_{c}" for kind in ("intersection", "label", "predicted") for c in range(len(self.class_names))]

    def of(self, totals: Values) -> Values:
        """Mean over the classes that `absent` does not leave out."""
        found = self._iou(totals)
        return defined_mean(np.nan_to_num(found) if self.absent == "zero" else found)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return mIoU, mAcc, aAcc, and IoU/<class> where defined."""
        accuracies = accuracy_metrics(self._by_class(rows))
        return super().metrics(rows) | accuracies | {f"IoU/{name}": value for name, value in self.parts(rows).items()}

    def parts(self, rows: Rows) -> dict[str, float]:
        """IoU of each class that is defined."""
        found = self._iou(rows.sum(axis=0))
        return {n: float(v) for n, v in zip(self.class_names, found, strict=True) if not np.isnan(v)}

    def _iou(self, totals: Rows) -> Values:
        """IoU [..., C] of each class; NaN for one that nothing holds, and for one that `absent` leaves out."""
        by_class = self._by_class(totals)
        found = class_iou(by_class)
        return np.where(by_class[..., 1, :] > 0, found, np.nan) if self.absent == "unlabelled" else found

    def _by_class(self, counts: Rows) -> Rows:
        return counts.reshape(*counts.shape[:-1], 3, len(self.class_names))


class Means(SummedScore):
    """Weighted means over the items: each is the sum of its column over the sum of the weights."""

    kind: Literal["means"] = "means"
    """What kind of score this is."""
    headline: str
    """The name that is compared; one of `names`."""
    names: list[str]
    """What is averaged; an item's column holds its sum, not its mean."""
    better: Literal["higher", "lower", "neither"] = "higher"
    """Which direction of the headline is good; neither where it describes and does not judge."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return self.headline

    @property
    def columns(self) -> list[str]:
        """The sums, then their common weight."""
        return [*self.names, "weight"]

    @property
    def higher_is_better(self) -> bool:
        """See `Score.higher_is_better`."""
        return self.better != "lower"

    @property
    def is_judged(self) -> bool:
        """See `Score.is_judged`."""
        return self.better != "neither"

    def of(self, totals: Values) -> Values:
        """Mean of the headline."""
        return self._mean(totals, self.names.index(self.headline))

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Every mean, the headline first."""
        totals = rows.sum(axis=0).astype(np.float64)
        order = sorted(range(len(self.names)), key=lambda i: self.names[i] != self.headline)
        found = {self.names[i]: float(self._mean(totals, i)) for i in order}
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def _mean(self, totals: Values, column: int) -> Values:
        weight = totals[..., -1]
        return np.where(weight > 0, totals[..., column] / np.where(weight > 0, weight, 1.0), np.nan)


class DefinedMeans(SummedScore):
    """Means over the items of values that not every item has: each column of values has one that says where it counts."""

    kind: Literal["defined-means"] = "defined-means"
    """What kind of score this is."""
    headline: str
    """The name that is compared; one of `names`."""
    names: list[str]
    """What is averaged; an item without the value holds 0 and counts 0."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return self.headline

    @property
    def columns(self) -> list[str]:
        """The values, then their weights."""
        return [*self.names, *(f"has {name}" for name in self.names)]

    def of(self, totals: Values) -> Values:
        """Mean of the headline."""
        return self._means(totals)[..., self.names.index(self.headline)]

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Every mean, the headline first."""
        means = dict(zip(self.names, self._means(rows.sum(axis=0).astype(np.float64)).tolist(), strict=True))
        ordered = {self.headline: means[self.headline]} | means
        return {name: value for name, value in ordered.items() if not np.isnan(value)}

    def _means(self, totals: Values) -> Values:
        values, weights = np.split(totals, 2, axis=-1)
        return np.where(weights > 0, values / np.where(weights > 0, weights, 1.0), np.nan)


class MeanAveragePrecision(Score):
    """Mean over the classes of average precision: of the positives, the mean of the precision at their rank.

    Ties are ranked in the order of the items, copies of one after the other. A class without a positive does not count.
    """

    kind: Literal["mean-average-precision"] = "mean-average-precision"
    """What kind of score this is."""
    class_names: list[str]
    """One per class."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return "mAP"

    @property
    def columns(self) -> list[str]:
        """Scores of the classes, then whether they are there (0 or 1)."""
        return [f"{kind}_{c}" for kind in ("score", "present") for c in range(len(self.class_names))]

    def over(self, rows: Rows, counts: NDArray[Any]) -> Values:
        """Score resamples; see `Score.over`."""
        return np.stack([defined_mean(self._by_class(side, counts)) for side in rows], axis=1)

    def parts(self, rows: Rows) -> dict[str, float]:
        """Average precision of each class with a positive."""
        found = self._by_class(rows, np.ones((1, len(rows)), np.int64))[0]
        return {n: float(v) for n, v in zip(self.class_names, found, strict=True) if not np.isnan(v)}

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return mAP, and AP/<class> of each class with a positive."""
        return super().metrics(rows) | {f"AP/{name}": value for name, value in self.parts(rows).items()}

    def _by_class(self, rows: Rows, counts: NDArray[Any]) -> Values:
        """Average precision [R, C] of resamples.

        Of c copies of a positive behind P positives among N items, the precisions (P + j) / (N + j), j = 1 to c, add up to
        c - (N - P) (H(N + c) - H(N)) with the harmonic numbers H.
        """
        num_classes = len(self.class_names)
        found = np.full((len(counts), num_classes), np.nan)
        whole = counts.astype(np.int64)
        most = int(whole.sum(axis=1).max(initial=0))
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, most + 1))])
        for c in range(num_classes):
            order = np.argsort(-rows[:, c], kind="stable")
            copies, at = whole[:, order], np.flatnonzero(rows[order, num_classes + c] > 0)
            after, drawn = copies.cumsum(axis=1)[:, at], copies[:, at]
            hits = drawn.cumsum(axis=1)
            others = after - hits  # N - P
            total = (drawn - others * (harmonic[after] - harmonic[after - drawn])).sum(axis=1)
            positives = drawn.sum(axis=1)
            found[:, c] = np.where(positives > 0, total / np.maximum(positives, 1), np.nan)
        return found


def of_today(score: Score) -> Score:
    """A stored score by today's rule: mIoU over the classes that labels hold, where it was over those that anything holds."""
    return (
        score.model_copy(update={"absent": "unlabelled"})
        if isinstance(score, MeanIou) and score.absent == "skip"
        else score
    )


AnyScore = Annotated[
    MeanIou | Means | MeanAveragePrecision | BestThreshold | Overlap | DefinedMeans | FewShot, Discriminator("kind")
]
