# SPDX-License-Identifier: Apache-2.0
"""Counts of verdicts: how often each word fell, and how often the interval held the true difference. Torch-free."""

from __future__ import annotations

import math
from collections import Counter

from rekindle.core.options import Options

Z = 1.959963984540054


def wilson(count: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927).

    Example:
        >>> [round(end, 4) for end in wilson(60, 1000)]
        [0.0469, 0.0765]
    """
    share, extra = count / trials, Z**2 / trials
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


class Rate(Options):
    """A share of trials."""

    value: float
    """Count over trials."""
    least: float
    """Lower end of its 95 % interval."""
    most: float
    """Upper end."""

    @classmethod
    def of(cls, count: int, trials: int) -> Rate:
        """Count over trials, with Wilson's interval."""
        least, most = wilson(count, trials)
        return cls(value=count / trials, least=least, most=most)


class Judgement(Options):
    """How a rule judged the trials of a cell."""

    rule: str
    """`as before` (bc97a06), or `now`."""
    trials: int
    """How many there were."""
    words: dict[str, int]
    """How often each word fell."""
    better: Rate
    """The model is called better, or the interval lies on the good side where nothing is judged."""
    worse: Rate
    """It is called worse, or the interval lies on the other side."""
    wrong: Rate
    """Any word that says that there is a difference, where there is none; where there is one, that of the wrong side."""
    cannot_judge: Rate
    """No word at all, for too few items or groups."""
    coverage: Rate | None = None
    """The interval holds the true difference; None where there is none to hold."""
    half_width: float | None = None
    """Mean of half the interval's width, in points."""


class Tally:
    """Counts the verdicts of one rule on the trials of a cell."""

    def __init__(self, rule: str, truth: float | None = 0.0) -> None:
        self.rule, self.truth = rule, truth
        self.words: Counter[str] = Counter()
        self.sides: Counter[int] = Counter()
        self.covered, self.width, self.bounded = 0, 0.0, 0

    def add(self, word: str, low: float = math.nan, high: float = math.nan, *, rises: bool = True) -> None:
        """Count a verdict.

        Args:
            word: what was said.
            low: lower end of the interval; NaN where there is none.
            high: upper end.
            rises: whether a larger score is better.

        """
        self.words[word] += 1
        side = {"better": 1, "worse": -1, "different": 1 if (low > 0) == rises else -1}.get(word, 0)
        self.sides[side] += 1
        if not math.isnan(low):
            self.bounded += 1
            self.width += high - low
            self.covered += self.truth is not None and low <= self.truth <= high

    def judgement(self, *, effect: int = 0) -> Judgement:
        """Sum up; `effect` is the side of the true difference: 1 better, -1 worse, 0 none."""
        trials = self.words.total()
        up, down = self.sides[1], self.sides[-1]
        wrong = {0: trials - self.words["no difference"] - self.words["cannot judge"], 1: down, -1: up}[effect]
        has_interval = self.bounded > 0
        return Judgement(
            rule=self.rule,
            trials=trials,
            words=dict(sorted(self.words.items())),
            better=Rate.of(up, trials),
            worse=Rate.of(down, trials),
            wrong=Rate.of(wrong, trials),
            cannot_judge=Rate.of(self.words["cannot judge"], trials),
            coverage=Rate.of(self.covered, self.bounded) if has_interval and self.truth is not None else None,
            half_width=50 * self.width / self.bounded if has_interval else None,
        )
