# SPDX-License-Identifier: Apache-2.0
"""How the values of single items become one number, so that any draw of items can be scored anew. Torch-free.

An item is what a resample draws: an image, a query, an episode. A protocol gives each item a row of F values; its score says what
the columns are and what they come to together. The score stands in the result file, so the file can be compared without the
protocol that wrote it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator

from rekindle.core.options import Options
from rekindle.evaluation.segmentation_metrics import class_iou, mean_iou, segmentation_metrics

Rows = NDArray[Any]
"""Values of items [..., n, F], whole or real numbers."""
Values = NDArray[np.float64]


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction in [0, 1]: the name of any other ends in its unit, in brackets.

    Example:
        >>> is_fraction("mIoU"), is_fraction("MSE (log²)")
        (True, False)
    """
    return not metric.endswith(")")


def shown(metric: str, value: float) -> str:
    """Write a value of a metric as people read it, a fraction in percent.

    Example:
        >>> shown("mIoU", 0.1234), shown("MSE (log²)", 0.025)
        ('12.34 %', '0.025')
    """
    return f"{100 * value:.2f} %" if is_fraction(metric) else f"{value:.4g}"


class Score(Options, ABC):
    """The headline number of a protocol, and how it follows from the items' rows."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the number is called: mIoU, accuracy, ..."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the F values of an item."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number is a better model."""
        return True

    @property
    def is_fraction(self) -> bool:
        """Whether the number lies in [0, 1] and is shown in percent."""
        return is_fraction(self.name)

    @abstractmethod
    def over(self, rows: Rows, counts: NDArray[Any]) -> Values:
        """Score resamples.

        Args:
            rows: [S, n, F], S measurements of n items.
            counts: [R, n], how often each item is drawn.

        Returns: [R, S]; NaN where the draw defines no value.
        """

    def value(self, rows: Rows) -> float:
        """Score the items [n, F], each once."""
        return float(self.over(rows[None], np.ones((1, rows.shape[0])))[0, 0])

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Everything that the rows [n, F] say, the headline first; what they do not define is left out."""
        value = self.value(rows)
        return {} if np.isnan(value) else {self.name: value}

    def parts(self, rows: Rows) -> dict[str, float]:
        """Return the values that the headline is a mean of, by name (the classes); nothing where there are none."""
        return {}

    @property
    def shown_name(self) -> str:
        """The name with its unit: percent for a fraction."""
        return f"{self.name} in %" if self.is_fraction else self.name


class SummedScore(Score):
    """A score of sums over the items."""

    @abstractmethod
    def of(self, totals: Values) -> Values:
        """Return the number [...] of sums [..., F]; NaN where they define none."""

    def over(self, rows: Rows, counts: NDArray[Any]) -> Values:
        """Score resamples; see `Score.over`."""
        num_seeds, num_items, width = rows.shape
        table = rows.transpose(1, 0, 2).reshape(num_items, -1).astype(np.float64)
        totals = (counts.astype(np.float64) @ table).reshape(len(counts), num_seeds, width)
        return self.of(totals)


class MeanIou(SummedScore):
    """Mean IoU from pixel counts of each class: intersection, label area, predicted area."""

    kind: Literal["mean-iou"] = "mean-iou"
    """What kind of score this is."""
    class_names: list[str]
    """One per class."""
    headline: str = "mIoU"
    """What the mean is called; another name where the maps were changed before they were counted."""
    absent: Literal["skip", "zero"] = "skip"
    """A class that neither labels nor predictions hold is left out, or counts as an IoU of 0."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return self.headline

    @property
    def columns(self) -> list[str]:
        """The counts, one kind after the other."""
        return [f"{kind}_{c}" for kind in ("intersection", "label", "predicted") for c in range(len(self.class_names))]

    def of(self, totals: Values) -> Values:
        """Mean over the classes that labels or predictions hold, or over all."""
        if self.absent == "zero":
            return np.asarray(np.nan_to_num(class_iou(self._by_class(totals))).mean(axis=-1))
        return mean_iou(self._by_class(totals))

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return mIoU, mAcc, aAcc, and IoU/<class> where defined."""
        found = segmentation_metrics(self._by_class(rows), self.class_names)
        return {self.headline: self.value(rows)} | {name: value for name, value in found.items() if name != "mIoU"}

    def parts(self, rows: Rows) -> dict[str, float]:
        """IoU of each class that is defined."""
        found = class_iou(self._by_class(rows.sum(axis=0)))
        return {n: float(v) for n, v in zip(self.class_names, found, strict=True) if not np.isnan(v)}

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
    better: Literal["higher", "lower"] = "higher"
    """Which direction of the headline is good."""

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
        return self.better == "higher"

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


class FewShot(SummedScore):
    """Accuracy of episodes, and F1 of their decisions "same class" at the best of some thresholds.

    The decisions of all episodes are counted together; the threshold is chosen on the items that are scored.
    """

    kind: Literal["few-shot"] = "few-shot"
    """What kind of score this is."""
    headline: Literal["accuracy", "F1"] = "accuracy"
    """Which of the two is compared."""
    thresholds: list[float]
    """Of the cosine similarity; a pair above it is decided "same"."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return self.headline

    @property
    def columns(self) -> list[str]:
        """Hits, queries, pairs of one class; then of each threshold the true "same", then all "same"."""
        kinds = [f"{kind}_{t:g}" for kind in ("true_same", "same") for t in self.thresholds]
        return ["hits", "queries", "positives", *kinds]

    def of(self, totals: Values) -> Values:
        """Return the headline."""
        return totals[..., 0] / totals[..., 1] if self.headline == "accuracy" else self._f1(totals).max(axis=-1)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Accuracy with the half-width of its 95 % interval (1.96 standard errors over the episodes), F1 and its threshold."""
        totals = rows.sum(axis=0).astype(np.float64)
        by_episode = rows[:, 0] / rows[:, 1]
        f1 = self._f1(totals)
        found = {
            "accuracy": float(totals[0] / totals[1]),
            "accuracy-half-width": float(1.96 * by_episode.std() / np.sqrt(len(rows))),
            "F1": float(f1.max()),
            "threshold (cosine)": self.thresholds[int(f1.argmax())],
        }
        return {self.headline: found[self.headline]} | found

    def _f1(self, totals: Values) -> Values:
        """F1 = 2 TP / (positives + predicted positives), [..., thresholds]."""
        true_same, same = np.split(totals[..., 3:], 2, axis=-1)
        return 2 * true_same / np.maximum(totals[..., 2:3] + same, 1.0)


class MeanAveragePrecision(Score):
    """Mean over the classes of average precision: of the positives, the mean of the precision at their rank.

    Ties are ranked in the order of the items. A class without a positive does not count.
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
        return np.stack([_defined_mean(self._by_class(side, counts)) for side in rows], axis=1)

    def parts(self, rows: Rows) -> dict[str, float]:
        """Average precision of each class with a positive."""
        found = self._by_class(rows, np.ones((1, len(rows)), np.int64))[0]
        return {n: float(v) for n, v in zip(self.class_names, found, strict=True) if not np.isnan(v)}

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return mAP, and AP/<class> of each class with a positive."""
        return super().metrics(rows) | {f"AP/{name}": value for name, value in self.parts(rows).items()}

    def _by_class(self, rows: Rows, counts: NDArray[Any]) -> Values:
        """Average precision [R, C] of resamples; each row of `counts` has the same sum."""
        num_classes = len(self.class_names)
        found = np.full((len(counts), num_classes), np.nan)
        whole = counts.astype(np.int64)
        for c in range(num_classes):
            order = np.argsort(-rows[:, c], kind="stable")
            present = rows[order, num_classes + c] > 0
            drawn = np.repeat(np.tile(present, len(whole)), whole[:, order].ravel()).reshape(len(whole), -1)
            precision = drawn.cumsum(axis=1) / np.arange(1, drawn.shape[1] + 1)
            positives = drawn.sum(axis=1)
            total = (precision * drawn).sum(axis=1)
            found[:, c] = np.where(positives > 0, total / np.maximum(positives, 1), np.nan)
        return found


class BestThreshold(SummedScore):
    """Mean IoU at the best single threshold of a set: each resample chooses its own.

    The means are over targets; with several groups (the categories), over the groups that have a target.
    """

    kind: Literal["best-threshold"] = "best-threshold"
    """What kind of score this is."""
    thresholds: list[float]
    """What is chosen from."""
    groups: list[str]
    """What counts equally; an item's columns hold, group after group, the sum of IoUs at each threshold and their number."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return "mIoU@opt"

    @property
    def columns(self) -> list[str]:
        """Sums of IoUs and numbers of targets."""
        kinds = [*(f"iou@{t:g}" for t in self.thresholds), "targets"]
        return [f"{kind}_{g}" for g in range(len(self.groups)) for kind in kinds]

    def of(self, totals: Values) -> Values:
        """Mean IoU at the threshold where it is greatest."""
        return np.asarray(self._curve(totals).max(axis=-1))

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return the mean at the best threshold, that threshold, and the mean at each."""
        curve = self._curve(rows.sum(axis=0).astype(np.float64))
        if np.isnan(curve).any():
            return {}
        best = int(curve.argmax())
        return {
            self.name: float(curve[best]),
            "threshold (cosine)": self.thresholds[best],
            **{f"mIoU@{t:g}": float(v) for t, v in zip(self.thresholds, curve, strict=True)},
        }

    def parts(self, rows: Rows) -> dict[str, float]:
        """Mean IoU of each group at the best threshold of all."""
        if len(self.groups) == 1:
            return {}
        means = self._means(rows.sum(axis=0).astype(np.float64))
        at_best = means[:, int(_defined_mean(means.T).argmax())]
        return {n: float(v) for n, v in zip(self.groups, at_best, strict=True) if not np.isnan(v)}

    def _means(self, totals: Values) -> Values:
        """Mean IoU [..., G, T] of each group; NaN for one without targets."""
        table = totals.reshape(*totals.shape[:-1], len(self.groups), len(self.thresholds) + 1)
        count = table[..., -1:]
        return np.where(count > 0, table[..., :-1] / np.where(count > 0, count, 1.0), np.nan)

    def _curve(self, totals: Values) -> Values:
        return _defined_mean(np.moveaxis(self._means(totals), -2, -1))


class Overlap(SummedScore):
    """What two distributions over [-1, 1] have in common: the sum of the smaller share of each bin. Lower is better."""

    kind: Literal["overlap"] = "overlap"
    """What kind of score this is."""
    num_bins: int
    """Of each histogram; an item has its shares of both, both means and its weight."""
    bandwidth: float | None = None
    """Standard deviation of Gaussian kernels on the bins' centres, on 400 points; None for the histograms themselves."""

    @property
    def name(self) -> str:
        """See `Score.name`."""
        return "overlap"

    @property
    def higher_is_better(self) -> bool:
        """See `Score.higher_is_better`."""
        return False

    @property
    def columns(self) -> list[str]:
        """Shares of the bins, means, weight."""
        bins = [f"{kind}_{b}" for kind in ("intra", "inter") for b in range(self.num_bins)]
        return [*bins, "intra_mean", "inter_mean", "weight"]

    def of(self, totals: Values) -> Values:
        """Overlap of the pooled distributions."""
        intra, inter, weight = totals[..., : self.num_bins], totals[..., self.num_bins : -3], totals[..., -1]
        if self.bandwidth is not None:
            kernels = self._kernels(self.bandwidth)
            intra, inter = intra @ kernels, inter @ kernels
        shared = np.minimum(intra, inter).sum(axis=-1)
        return np.where(weight > 0, shared / np.where(weight > 0, weight, 1.0), np.nan)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return the overlap, and the mean cosine of either kind of pairs."""
        totals = rows.sum(axis=0).astype(np.float64)
        if totals[-1] == 0:
            return {}
        means = {"intra (cosine)": totals[-3] / totals[-1], "inter (cosine)": totals[-2] / totals[-1]}
        return {self.name: self.value(rows)} | {name: float(value) for name, value in means.items()}

    def _kernels(self, bandwidth: float) -> Values:
        """Share [bins, 400] of each bin that every point of the grid gets; rows sum to 1, so nothing is lost at the ends."""
        centres = (np.arange(self.num_bins) + 0.5) * 2 / self.num_bins - 1
        grid = np.linspace(-1.0, 1.0, 400)
        distance = (centres[:, None] - grid) / bandwidth
        nearest = np.square(distance).min(axis=1, keepdims=True)
        weights = np.exp(-0.5 * (np.square(distance) - nearest))  # of a narrow kernel at least the nearest point
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _defined_mean(values: Values) -> Values:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    is_defined = ~np.isnan(values)
    count = is_defined.sum(axis=-1)
    total = np.where(is_defined, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


AnyScore = Annotated[
    MeanIou | Means | MeanAveragePrecision | BestThreshold | Overlap | DefinedMeans | FewShot, Discriminator("kind")
]
