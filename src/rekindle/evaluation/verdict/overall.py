# SPDX-License-Identifier: Apache-2.0
"""Overall verdict: one word over several verdicts, and what it rests on. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from rekindle.core.options import Options
from rekindle.evaluation.verdict.judging import Joint, Words
from rekindle.evaluation.verdict.telling import percent

RULE = (
    "Overall: better if at least one verdict is better and none is worse; worse if at least one is worse and none is better; "
    "mixed if there are both; equivalent if all are; no difference otherwise. It rests on intervals that are widened for their "
    "number (max-t), so its chance of a false word is that of a single interval. Descriptions (different) and what cannot be "
    "judged do not count."
)
OverallWord = Literal["better", "worse", "mixed", "equivalent", "no difference", "cannot judge"]


class Overall(Options):
    """One model against the base over all that it was measured with."""

    verdict: OverallWord
    """See `RULE`."""
    better: list[str]
    """What it is better in."""
    worse: list[str]
    """What it is worse in."""
    undecided: list[str]
    """Where the interval holds zero."""
    equivalent: list[str] = Field(default_factory=list)
    """Where the interval lies within the margin."""
    unjudged: list[str] = Field(default_factory=list)
    """Where there are too few items or groups for a word."""
    level: float
    """Coverage of all intervals together; in files of before, of each."""
    looks: int = 1
    """How many intervals were looked at together: of all models that were compared with the base."""
    is_joint: bool = False
    """The intervals are widened for their number; false in files of before."""
    expected_by_chance: float = 0.0
    """In files of before: intervals that would exclude zero by chance."""

    @property
    def told(self) -> str:
        """One sentence: the word, what it rests on, and how many intervals were looked at."""
        words = {
            "better": self.better,
            "worse": self.worse,
            "equivalent": self.equivalent,
            "no difference": self.undecided,
            "cannot judge": self.unjudged,
        }
        parts = [f"{word} in {', '.join(names)}" for word, names in words.items() if names]
        told = f"{self.verdict}: {'; '.join(parts)}" if parts else self.verdict
        level = percent(self.level)
        if not self.is_joint:
            expected = f", of which {self.expected_by_chance:.2g} would exclude zero by chance"
            return f"{told} (older rule: intervals at {level} each{expected if self.expected_by_chance else ''})"
        if self.looks > 1:
            return f"{told} ({self.looks} looks, {level} together)"
        return f"{told} ({level})" if self.looks else told


def word_over(words: Sequence[Words]) -> OverallWord:
    """One word over several; see `RULE`.

    Example:
        >>> word_over(["better", "no difference"]), word_over(["equivalent", "equivalent"]), word_over(["cannot judge"])
        ('better', 'equivalent', 'cannot judge')
    """
    found = {*words} - {"different"}
    if found & {"better", "worse"}:
        return "mixed" if found >= {"better", "worse"} else "better" if "better" in found else "worse"
    if found == {"equivalent"}:
        return "equivalent"
    return "cannot judge" if found == {"cannot judge"} else "no difference"


def overall(verdicts: Mapping[str, Words], joint: Mapping[str, Joint], level: float) -> Overall:
    """Sum up the verdicts on one model.

    Args:
        verdicts: the word of each, by the name of what it is of.
        joint: the same where several were looked at together (`joint_verdicts`); its words win.
        level: coverage that was asked for.

    Example:
        >>> overall({"linear-seg": "better"}, {}, 0.95).verdict
        'better'
    """
    words = {name: joint[name].verdict if name in joint else word for name, word in verdicts.items()}

    def named(word: Words) -> list[str]:
        return [name for name, found in words.items() if found == word]

    better, worse, same = named("better"), named("worse"), named("equivalent")
    undecided, unjudged = named("no difference"), named("cannot judge")
    judged = len(better) + len(worse) + len(same) + len(undecided)
    return Overall(
        verdict=word_over([*words.values()]),
        better=better,
        worse=worse,
        undecided=undecided,
        equivalent=same,
        unjudged=unjudged,
        level=level,
        looks=max([judged, *(found.looks for found in joint.values())]),
        is_joint=True,
    )
