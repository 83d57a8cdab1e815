# SPDX-License-Identifier: Apache-2.0
"""Are neighbouring items alike? From what each adds to a difference, in the order of the names. Torch-free.

The influence of an item on a difference D of two models is (n - 1)(mean of D without one item - D without this one), the
jackknife's. Of independent items neighbours are no more alike than others; of frames of a film, tiles of a scene and slices of
a patient they are, and then the interval of single items is too narrow.

What is looked at is the correlation r_1 with the next item, or (r_1 + r_2 + r_3 + r_4) / 2 where that is greater, for weak
correlations that reach far. It is held against the same influences in 1,000 random orders, so that it is right for any
distribution: independent items exceed the bound in one case of 200 (`LEVEL`; in simulations of 10 to 300 items, normal,
t with 3 degrees of freedom and log-normal: 0.4 to 0.8 %). Where items have a class that orders them (a folder a class),
influences are taken about the mean of their class and shuffled inside it, for classes differ without one image depending on
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rekindle.evaluation.scores.score import Rows, Score, Values
from rekindle.evaluation.verdict.groups import group_indices, natural_order
from rekindle.evaluation.verdict.proposals import piece_length

FEWEST = 10
"""Items below which nothing can be said of neighbours."""
LEVEL = 0.005
"""Share of independent series that exceed the bound."""
SPAN = 4
"""Items after each that are looked at."""
FARTHEST = 200
"""Items up to which a correlation is followed."""
ORDERS = 1000
MOST_SHUFFLED = 2000
"""Items up to which orders are drawn; beyond, the bound is the normal distribution's for two looks, 2.81 / sqrt(n)."""
_NORMAL = 2.807


@dataclass(frozen=True)
class Neighbours:
    """How alike neighbouring items are.

    Attributes:
        correlation: of the influences of an item and the next one.
        next_four: the same, mean over the next four.
        are_alike: more than independent items would be in all but one of 200 cases.
        reach: items up to which influences correlate.
        widening: how many times as wide the interval would about be: sqrt(1 + 2 sum of the correlations up to the reach).
        num_items: of the series.

    """

    correlation: float
    next_four: float
    are_alike: bool
    reach: int
    widening: float
    num_items: int

    @property
    def piece(self) -> int:
        """Items of a piece (`every:N`) that reaches over what correlates and leaves enough pieces; 0 where none can."""
        return piece_length(self.num_items, 2 * self.reach)

    @property
    def told(self) -> str:
        """One sentence."""
        mend = f"for example --group-by every:{self.piece}" if self.piece else "and measure more of them"
        return (
            "neighbouring items are alike (their influences on the difference correlate by "
            f"{self.correlation:.2f} with the next item's, by {self.next_four:.2f} on average over the next four; chance gives "
            "as much in less than 1 of 200 cases), so an interval of single items is too narrow, by a factor of about "
            f"{self.widening:.1f}: say what belongs together, {mend}"
        )


def neighbours(
    base: Sequence[Rows], model: Sequence[Rows], score: Score, items: Sequence[str], classes: Sequence[str] = ()
) -> Neighbours | None:
    """Say how alike neighbours are in what they add to the difference of two models.

    Args:
        base: one [S, n, F] per training.
        model: the same of the other side.
        score: what rows come to.
        items: names; neighbours follow each other in their natural order.
        classes: of the items, where they have one.

    Returns: None where it cannot be said: few items, a score that has no value without some item or is long to compute, or
        influences that are all the same.
    """
    if len(items) < FEWEST:
        return None
    sides = [[score.without_each(rows) for training in side for rows in training] for side in (base, model)]
    known = [[values for values in side if values is not None] for side in sides]
    if [len(side) for side in known] != [len(side) for side in sides]:
        return None
    left_out = np.mean(known[1], axis=0) - np.mean(known[0], axis=0)
    influences = (len(items) - 1) * (left_out.mean() - left_out)
    order = sorted(range(len(items)), key=lambda i: natural_order(items[i]))
    strata = group_indices(classes)[order] if classes else np.zeros(len(items), dtype=np.int64)
    return of_series(influences[order], strata)


def of_series(values: Values, strata: NDArray[np.int64]) -> Neighbours | None:
    """Say how alike the neighbours of a series are, inside strata.

    Args: values [n], in their order; strata [n], numbered; items of one stratum need not stand together.
    Returns: None for values that are not finite, or do not differ.
    """
    count = len(values)
    means = np.bincount(strata, values) / np.maximum(np.bincount(strata), 1)
    centred = values - means[strata]
    spread = float(np.square(centred).mean())
    if not np.isfinite(spread) or spread <= 1e-24 * float(np.square(values).mean()) or spread == 0.0:
        return None
    found = _correlations(centred[None], strata, max(SPAN, min(FARTHEST, count // 4)))
    own = [float(values[0]) for values in found]
    if not own:
        return None
    if count > MOST_SHUFFLED:
        bound = _NORMAL / float(np.sqrt(count))
    else:
        shuffled = _strength(_correlations(centred[_orders(strata)], strata, SPAN))
        bound = float(np.quantile(shuffled, 1 - LEVEL, method="higher"))
    reach = next(
        (lag for lag, value in enumerate(own) if value < 1 / np.sqrt(count)), len(own)
    )  # then it is lost in chance
    total = sum((1 - lag / count) * value for lag, value in enumerate(own[:reach], start=1))
    are_alike = float(_strength(found[:SPAN])[0]) > bound
    return Neighbours(
        min(own[0], 1.0), min(float(np.mean(own[:SPAN])), 1.0), are_alike, reach, float(np.sqrt(1 + 2 * total)), count
    )


def _correlations(centred: Values, strata: NDArray[np.int64], most: int) -> list[Values]:
    """Return the correlations [R] of series [R, n] with themselves 1, 2, ... places on, over pairs of one stratum."""
    squares, found = np.square(centred).mean(axis=1), []
    for lag in range(1, min(most, centred.shape[1] - 1) + 1):
        pairs = strata[lag:] == strata[:-lag]
        if not pairs.any():
            break
        found.append((centred[:, lag:] * centred[:, :-lag])[:, pairs].mean(axis=1) / squares)
    return found


def _strength(correlations: list[Values]) -> Values:
    """The first correlation, or the sum of all over the root of their number where that is greater; of equal spread by chance."""
    return np.asarray(np.maximum(correlations[0], sum(correlations) / np.sqrt(len(correlations))))


def _orders(strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw orders [R, n] of the items, each stratum shuffled in its own places."""
    keys = strata + np.random.default_rng(0).random((ORDERS, len(strata)))
    found = np.empty(keys.shape, dtype=np.int64)
    found[:, np.argsort(strata, kind="stable")] = np.argsort(keys, axis=1)
    return found
