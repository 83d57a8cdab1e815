# SPDX-License-Identifier: Apache-2.0
"""Scores over thresholds and histograms: the best threshold is found anew for every draw of items. Torch-free."""

from __future__ import annotations

from typing import Literal

import numpy as np

from rekindle.evaluation.scores.score import Rows, SummedScore, Values, defined_mean


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
        at_best = means[:, int(defined_mean(means.T).argmax())]
        return {n: float(v) for n, v in zip(self.groups, at_best, strict=True) if not np.isnan(v)}

    def _means(self, totals: Values) -> Values:
        """Mean IoU [..., G, T] of each group; NaN for one without targets."""
        table = totals.reshape(*totals.shape[:-1], len(self.groups), len(self.thresholds) + 1)
        count = table[..., -1:]
        return np.where(count > 0, table[..., :-1] / np.where(count > 0, count, 1.0), np.nan)

    def _curve(self, totals: Values) -> Values:
        return defined_mean(np.moveaxis(self._means(totals), -2, -1))


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
