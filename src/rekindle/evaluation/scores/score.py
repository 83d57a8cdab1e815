# SPDX-License-Identifier: Apache-2.0
"""Scores: how the values of single items become one number, so that any draw of items can be scored anew. Torch-free.

An item is what a resample draws: an image, a query, an episode. A protocol gives each item a row of F values; its score says what
the columns are and what they come to together. The score stands in the result file, so the file can be compared without the
protocol that wrote it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.core.options import Options

Rows = NDArray[Any]
"""Values of items [..., n, F], whole or real numbers."""
Values = NDArray[np.float64]
MOST_LEFT_OUT = 1000
"""Items up to which a score that is no function of sums is computed anew without each of them."""


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
    def is_judged(self) -> bool:
        """Whether there is a good direction at all; a description of features has none."""
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

    def without_each(self, rows: Rows) -> Values | None:
        """Score the items [n, F] without each of them in turn: [n]; None where they are so many that it would take long."""
        count = len(rows)
        if count > MOST_LEFT_OUT:
            return None
        return self.over(rows[None], 1 - np.eye(count, dtype=np.int64))[:, 0]

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

    def without_each(self, rows: Rows) -> Values:
        """See `Score.without_each`; from the sums of all, for any number of items."""
        table = rows.astype(np.float64)
        return self.of(table.sum(axis=0) - table)


def defined_mean(values: Values) -> Values:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    is_defined = ~np.isnan(values)
    count = is_defined.sum(axis=-1)
    total = np.where(is_defined, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
