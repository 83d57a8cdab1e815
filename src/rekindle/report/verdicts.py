# SPDX-License-Identifier: Apache-2.0
"""Verdicts of comparisons in numbers that people read, and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rekindle.evaluation.scores.score import is_fraction

WORDS = ("better", "no difference", "worse", "different")
NAMED = 4  # measurements that the sentence names one by one


@dataclass(frozen=True)
class VerdictRow:
    """One model against its base under one protocol.

    Attributes:
        protocol: its name.
        metric: what the numbers are, for example mIoU.
        verdict: better, no difference, worse; different where neither direction is good.
        base, model: the two values, means over the seeds.
        base_std, model_std: their standard deviations over the seeds.
        difference, low, high: model minus base, with its interval.
        level: coverage of the interval.
        per_class: class -> difference.
        higher_is_better: whether a larger number is better.
        name: of the model.
        data: data and split that were measured.
        items: how many images or other items the interval is over.
        seeds: how many seeds.

    """

    protocol: str
    metric: str
    verdict: str
    base: float
    model: float
    base_std: float
    model_std: float
    difference: float
    low: float
    high: float
    level: float
    per_class: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True
    name: str = "adapted"
    data: str = ""
    items: int = 0
    seeds: int = 0

    @property
    def is_fraction(self) -> bool:
        """Whether the numbers are shown in percent and differences in points."""
        return is_fraction(self.metric)

    @property
    def shown_difference(self) -> str:
        """The difference with its unit."""
        return signed(self.metric, self.difference, unit=True)

    @property
    def shown_interval(self) -> str:
        """The interval with its unit."""
        return f"{signed(self.metric, self.low)} to {signed(self.metric, self.high, unit=True)}"


def points(value: float) -> str:
    """Return a difference in percentage points, with its sign; two digits where one would show none.

    Example:
        >>> points(0.0312), points(-0.0001), points(0.0)
        ('+3.1', '-0.01', '0.0')

    """
    digits = 1 if abs(value) >= 0.0005 else 2
    text = f"{100 * value:+.{digits}f}"
    return "0.0" if float(text) == 0 else text


def signed(metric: str, value: float, *, unit: bool = False) -> str:
    """Write a difference of a metric: points of a fraction, else the number.

    Example:
        >>> signed("mIoU", 0.0312, unit=True), signed("MSE (log²)", -0.00123)
        ('+3.1 points', '-0.00123')

    """
    if not is_fraction(metric):
        return f"{value:+.3g}"
    return points(value) + (" points" if unit else "")


def plain(metric: str, value: float) -> str:
    """Write a value of a metric, a fraction in percent without the sign.

    Example:
        >>> plain("mIoU", 0.1234), plain("MSE (log²)", 0.02512)
        ('12.3', '0.0251')

    """
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.3g}"


def overall_sentence(rows: Sequence[VerdictRow], subject: str = "The adapted model") -> str:
    """One sentence over all protocols; it says no more than they do. Of many it counts, and gives the interval of the first.

    Example:
        >>> overall_sentence([])
        'Nothing was compared.'

    """
    words = {row.verdict for row in rows}
    if not words:
        return "Nothing was compared."
    if len(rows) > NAMED:
        return _counted(rows, subject)
    if words == {"better"}:
        return f"{subject} is better than its base under {_under(rows)}."
    if words == {"worse"}:
        return f"{subject} is worse than its base under {_under(rows)}."
    if words == {"no difference"}:
        return (
            f"No difference between {subject[0].lower()}{subject[1:]} and its base could be shown under {_under(rows)}."
        )
    parts = [f"{word} under {_under([r for r in rows if r.verdict == word])}" for word in WORDS if word in words]
    return f"{subject} against its base: {'; '.join(parts)}."


def chance_note(rows: Sequence[VerdictRow]) -> str:
    """Say how many intervals were looked at, and how many would exclude zero by chance; nothing for a single one."""
    judged = [row for row in rows if row.verdict != "different"]
    if len(judged) < 2:
        return ""
    expected = sum(1 - row.level for row in judged)
    return (
        f"{len(judged)} intervals were looked at; {expected:.2g} of them would exclude zero by chance if nothing had changed. "
        "They are not widened for their number."
    )


def _under(rows: Sequence[VerdictRow]) -> str:
    """Protocols with their intervals, joined to a phrase."""
    datasets = {row.data for row in rows}
    parts = [
        row.protocol + (f" on {row.data}" if len(datasets) > 1 else "") + f" ({row.shown_interval})" for row in rows
    ]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(rows: Sequence[VerdictRow], subject: str) -> str:
    counts = {word: sum(row.verdict == word for row in rows) for word in WORDS}
    told = [f"{word} in {count}" for word, count in counts.items() if count]
    first = rows[0]
    return (
        f"{subject} against its base, of {len(rows)} measurements: {', '.join(told)}; the first of them, {first.protocol}: "
        f"{first.metric} {first.shown_difference} ({first.shown_interval})."
    )
