# SPDX-License-Identifier: Apache-2.0
"""Overall verdict: one word over several verdicts, and what it rests on. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rekindle.core.options import Options
from rekindle.evaluation.scores.bootstrap import Words

RULE = (
    "Overall: better if at least one verdict is better and none is worse; worse if at least one is worse and none is better; "
    "mixed if there are both; no difference otherwise. Descriptions (different) do not count."
)


class Overall(Options):
    """One model against the base over all that it was measured with."""

    verdict: Literal["better", "worse", "mixed", "no difference"]
    """See `RULE`."""
    better: list[str]
    """What it is better in."""
    worse: list[str]
    """What it is worse in."""
    undecided: list[str]
    """Where the interval holds zero."""
    level: float
    """Coverage of each interval."""
    expected_by_chance: float
    """Intervals that would exclude zero by chance, on average, if the models did not differ at all: (1 - level) each."""

    @property
    def told(self) -> str:
        """One sentence: the word, what it rests on, and how many intervals were looked at."""
        parts = [f"better in {', '.join(self.better)}"] if self.better else []
        parts += [f"worse in {', '.join(self.worse)}"] if self.worse else []
        count = len(self.better) + len(self.worse) + len(self.undecided)
        intervals = f"{count} interval{'s' if count != 1 else ''} at {self.level:.0%}"
        chance = f", of which {self.expected_by_chance:.2g} would exclude zero by chance alone" if count > 1 else ""
        return "; ".join([self.verdict, *parts]) + f" ({intervals}{chance})"


def overall(verdicts: Mapping[str, Words], level: float) -> Overall:
    """Sum up verdicts by the names of what they are of; the intervals are not widened for their number.

    Example:
        >>> overall({"linear-seg": "better", "knn": "no difference"}, 0.95).verdict
        'better'
    """
    named: dict[Words, list[str]] = {"better": [], "worse": [], "no difference": [], "different": []}
    for name, found in verdicts.items():
        named[found].append(name)
    better, worse, undecided = named["better"], named["worse"], named["no difference"]
    word: Literal["better", "worse", "mixed", "no difference"] = "no difference"
    if better or worse:
        word = "mixed" if better and worse else "better" if better else "worse"
    judged = len(better) + len(worse) + len(undecided)
    return Overall(
        verdict=word,
        better=better,
        worse=worse,
        undecided=undecided,
        level=level,
        expected_by_chance=round((1 - level) * judged, 6),
    )
