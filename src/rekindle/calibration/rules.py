# SPDX-License-Identifier: Apache-2.0
"""Rules that turn rows into a word: the product's, and that of before. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rekindle.calibration.before import interval_before, overall_before, word_before
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import word_of
from rekindle.evaluation.verdict.overall import overall

LEVEL = 0.95
Groups = NDArray[np.int64] | None


@dataclass(frozen=True)
class Pair:
    """Rows of two sides under one protocol: the trainings of each, [S, n, F], and the group of each item.

    Where they are paired, each training has one evaluation seed, its own: one base [T, n, F], and T of [1, n, F].
    """

    base: Sequence[Rows]
    model: Sequence[Rows]
    score: Score
    groups: Groups = None
    is_paired: bool = False


@dataclass(frozen=True)
class Found:
    """What a rule says of a pair: the word, and the interval of the difference."""

    word: str
    low: float
    high: float


class Rule(ABC):
    """A way to judge.

    Args:
        resamples: draws of the bootstrap.

    """

    name: str

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples

    @abstractmethod
    def judge(self, pair: Pair) -> Found:
        """Judge one pair."""

    @abstractmethod
    def overall(self, pairs: Mapping[str, Pair]) -> str:
        """Say one word over several protocols, which were measured on the same items."""


class Before(Rule):
    """The rule of bc97a06; it knows no groups."""

    name = "as before"

    def judge(self, pair: Pair) -> Found:
        """See `Rule.judge`."""
        model = [np.concatenate(pair.model)] if pair.is_paired else pair.model
        low, high = interval_before(pair.base, model, pair.score, resamples=self.resamples, level=LEVEL)
        return Found(word_before(low, high, pair.score), low, high)

    def overall(self, pairs: Mapping[str, Pair]) -> str:
        """See `Rule.overall`."""
        return overall_before({name: self.judge(pair).word for name, pair in pairs.items()})


class Now(Rule):
    """The product's verdict."""

    name = "now"

    def judge(self, pair: Pair) -> Found:
        """See `Rule.judge`."""
        difference = self._difference(pair)
        low, high = difference.interval(LEVEL)
        return Found(word_of(difference, low, high), low, high)

    def overall(self, pairs: Mapping[str, Pair]) -> str:
        """See `Rule.overall`."""
        differences = {name: self._difference(pair) for name, pair in pairs.items()}
        words = {name: word_of(found, *found.interval(LEVEL)) for name, found in differences.items()}
        return overall(words, joint_verdicts(differences, LEVEL), LEVEL).verdict

    def _difference(self, pair: Pair) -> Difference:
        return difference_of(
            pair.base,
            pair.model,
            pair.score,
            groups=pair.groups,
            is_paired=pair.is_paired,
            resamples=self.resamples,
        )
