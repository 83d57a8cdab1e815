# SPDX-License-Identifier: Apache-2.0
"""Worlds: made-up rows of one kind of score, as the protocols write them, in which the true difference is known. Torch-free.

A world has a latent quality (logits of recall, distances to a threshold, ...). What an item is adds to it for all models
alike, what a model makes of an item for that model alone, and a shift [M, S, K] says how good each of M models is under each
of S evaluation seeds, in K places (the classes, or one). So equal shifts are an A/A pair, and every spread is a spread of
shifts.

Sizes of shifts are given in points, hundredths of the score: `World.unit` is the standard deviation of independent shifts of
the K places that moves the score by one point, `World.shift_of` the common shift that moves it by so many points, both
measured on a large draw of the world itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from rekindle.evaluation.scores.score import Score

Array = NDArray[np.float64]
POPULATION = 4000
"""Items on which a world's slopes are measured."""


@dataclass(frozen=True)
class Items:
    """What a resample draws, and how much of what they are a group has in common.

    Attributes:
        groups: [n], the group of each item, counted from 0.
        share: of the variance of every effect of an item, what its group has in common; 0 for independent items.
        likeness: correlation of what a model makes of an item with what the model before it does, from the third model on
            (the steps of one run); 0 for models that have nothing in common but the items.

    """

    groups: NDArray[np.int64]
    share: float = 0.0
    likeness: float = 0.0

    @classmethod
    def of_size(cls, count: int, size: int = 1, share: float = 0.0, likeness: float = 0.0) -> Items:
        """Return `count` items in groups of `size`."""
        return cls(np.arange(count) // size, share, likeness)

    @property
    def count(self) -> int:
        """Number of items."""
        return len(self.groups)

    def normals(self, source: np.random.Generator, *lead: int, width: int = 1) -> Array:
        """Draw standard normals [*lead, n, width], correlated by `share` within a group."""
        own = source.standard_normal((*lead, self.count, width))
        if self.share == 0:
            return own
        common = source.standard_normal((*lead, int(self.groups.max()) + 1, width))
        return math.sqrt(1 - self.share) * own + math.sqrt(self.share) * common[..., self.groups, :]

    def apart(self, source: np.random.Generator, models: int, width: int = 1) -> Array:
        """Draw what each model makes of an item for itself [M, n, width]: standard normals, a chain from the second model on."""
        drawn = self.normals(source, models, width=width)
        for model in range(2, models):
            drawn[model] = self.likeness * drawn[model - 1] + math.sqrt(1 - self.likeness**2) * drawn[model]
        return drawn


class World(ABC):
    """Rows of one kind of score."""

    name: str
    """What tables call it."""
    protocols: tuple[str, ...]
    """Protocols whose rows are of this kind."""
    places: int = 1
    """K, how many shifts a model has."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """What the rows come to."""

    @abstractmethod
    def rows(self, source: np.random.Generator, items: Items, shifts: Array, *, noise: float) -> Array:
        """Draw rows.

        Args:
            source: of all that is drawn.
            items: n of them.
            shifts: [M, S, K], what each model has under each evaluation seed.
            noise: standard deviation of what an evaluation seed does to an item of its own, in the latent quality.

        Returns: [M, S, n, F].
        """

    @cached_property
    def unit(self) -> float:
        """Standard deviation of independent shifts of the places that moves the score by one point (standard deviation)."""
        slopes = [self._slope(place) for place in range(self.places)]
        return 0.01 / math.sqrt(sum(slope**2 for slope in slopes))

    def shift_of(self, points: float) -> float:
        """Return the shift, the same in all places, that raises the score by `points` hundredths."""
        if points not in self._shifts:
            start = self._valued(0.0)
            guess = points / 100 * 0.2 / (self._valued(0.2) - start)
            self._shifts[points] = brentq(
                lambda shift: self._valued(shift) - start - points / 100, 0.0, 4 * guess, xtol=1e-4
            )
        return self._shifts[points]

    @cached_property
    def _shifts(self) -> dict[float, float]:
        return {}

    def _slope(self, place: int) -> float:
        ends = []
        for sign in (1.0, -1.0):
            shifts = np.zeros(self.places)
            shifts[place] = 0.2 * sign
            ends.append(self._valued(shifts))
        return (ends[0] - ends[1]) / 0.4

    def _valued(self, shift: float | Array) -> float:
        """Score of a large draw, always the same one, of a model with a shift."""
        shifts = np.zeros((1, 1, self.places)) + shift
        rows = self.rows(np.random.default_rng(5), Items.of_size(POPULATION), shifts, noise=0.0)
        return self.score.value(rows[0, 0])


def logistic(latent: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-latent))
