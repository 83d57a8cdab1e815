# SPDX-License-Identifier: Apache-2.0
"""Verdicts of comparisons as a page shows them: a row each, one sentence over all, and what the sentence rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rekindle.evaluation.scores.score import is_fraction
from rekindle.evaluation.verdict.judging import Verdict, Words
from rekindle.evaluation.verdict.telling import (
    ORDER,
    counted_words,
    covers,
    interval,
    items_of,
    percent,
    remarks,
    signed,
    unjudged,
    unseen,
    word_of_all,
)

NAMED = 4  # measurements that the sentence names one by one


@dataclass(frozen=True)
class VerdictRow:
    """One model against its base under one protocol.

    Attributes:
        protocol: its name.
        metric: what the numbers are, for example mIoU.
        found: the verdict.
        higher_is_better: whether a larger number is better.
        name: of the model.
        data: data and split that were measured.
        comparison: where it stands; its rows were looked at together.
        notes: further sentences that belong to it.
        subject: what was measured: model, run or recipe.

    """

    protocol: str
    metric: str
    found: Verdict
    higher_is_better: bool = True
    name: str = "adapted"
    data: str = ""
    comparison: str = ""
    notes: Sequence[str] = ()
    subject: str = "run"

    @property
    def word(self) -> Words:
        """Its own word."""
        return self.found.verdict

    @property
    def word_of_all(self) -> Words:
        """Its word over all looks together."""
        return word_of_all(self.found)

    @property
    def look(self) -> str:
        """The word as a class of the page's style."""
        return self.word.replace(" ", "-")

    @property
    def is_fraction(self) -> bool:
        """Whether the numbers are shown in percent and differences in points."""
        return is_fraction(self.metric)

    @property
    def ends(self) -> list[float]:
        """All that must lie inside a picture of the interval."""
        found, joint = self.found, self.found.joint
        return [found.low, found.high, found.difference, *([joint.low, joint.high] if joint else [])]

    @property
    def shown_difference(self) -> str:
        """The difference with its unit."""
        return signed(self.metric, self.found.difference, unit=True)

    @property
    def shown_interval(self) -> str:
        """The interval with its level, and that lower is better."""
        lower = "" if self.higher_is_better else "; lower is better"
        return f"{percent(self.found.level)}: {interval(self.found, self.metric)}{lower}"

    @property
    def remarks(self) -> list[str]:
        """What the word leaves open, as sentences."""
        found = remarks(self.found, self.metric, items_of(self.protocol))
        return [f"{text[0].upper()}{text[1:]}." for text in found]

    @property
    def brief(self) -> str:
        """The first remarks, for a picture."""
        return " ".join(self.remarks[:3])

    @property
    def covers(self) -> str:
        """What the interval covers, and what not."""
        return covers(self.found, items_of(self.protocol), self.subject)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "protocol": self.protocol,
            "metric": self.metric,
            **self.found.model_dump(mode="json"),
            "higher_is_better": self.higher_is_better,
            "name": self.name,
            "data": self.data,
            "seeds": self.found.evaluation_seeds,
        }


def overall_sentence(rows: Sequence[VerdictRow], subject: str = "The adapted model") -> str:
    """One sentence over all protocols; it says no more than they do together. Of many it counts, and names the first.

    Its words and intervals are those over all looks together, where there are several.

    Example:
        >>> overall_sentence([])
        'Nothing was compared.'

    """
    words = {row.word_of_all for row in rows}
    if not words:
        return "Nothing was compared."
    if len(rows) > NAMED:
        return _counted(rows, subject)
    lower = f"{subject[0].lower()}{subject[1:]}"
    if words == {"better"}:
        return f"{subject} is better than its base under {_under(rows)}."
    if words == {"worse"}:
        return f"{subject} is worse than its base under {_under(rows)}."
    if words == {"equivalent"}:
        return f"{subject} and its base are equivalent within the margin under {_under(rows)}."
    if words == {"no difference"}:
        return f"No difference between {lower} and its base could be shown under {_under(rows)}."
    if words == {"cannot judge"}:
        return (
            f"Whether {lower} is better than its base cannot be judged under {_under(rows)}: too little was measured."
        )
    parts = [f"{word} under {_under([r for r in rows if r.word_of_all == word])}" for word in ORDER if word in words]
    return f"{subject} against its base: {'; '.join(parts)}."


def need_note(rows: Sequence[VerdictRow]) -> str:
    """What could not have been seen where no difference could be shown, and what is missing where nothing can be judged."""
    told = []
    for row in rows[:NAMED]:
        items = items_of(row.protocol)
        found = {"no difference": unseen(row.found, row.metric, items), "cannot judge": [unjudged(row.found, items)]}
        if text := "; ".join(found.get(row.word_of_all, [])):
            told.append(f"{row.protocol}: {text}." if len(rows) > 1 else f"{text[0].upper()}{text[1:]}.")
    return " ".join(told)


def chance_note(rows: Sequence[VerdictRow]) -> str:
    """Say how many intervals were looked at, and what that does to the words; nothing of a single one."""
    judged = [row for row in rows if row.word not in ("different", "cannot judge")]
    if len(judged) < 2:
        return ""
    older = [row for row in judged if row.found.rule == "percentile"]
    if older:
        expected = sum(1 - row.found.level for row in older)
        return (
            f"{len(older)} intervals by the older rule were looked at; {expected:.2g} of them would exclude zero by chance if "
            "nothing had changed. They are not widened for their number."
        )
    chances = {row.comparison: 1 - row.found.level for row in judged}
    looks = dict.fromkeys(chances, 1)
    for row in judged:
        looks[row.comparison] = max(looks[row.comparison], row.found.joint.looks if row.found.joint else 1)
    chance = percent(max(chances.values()))
    told = (
        f"{sum(looks.values())} differences were looked at together. The words above rest on intervals that are widened for "
        f"that number: the chance of any false word is about {chance} if nothing had changed. Below stands each interval by "
        "itself, and as a thin line the widened one."
    )
    if len(looks) == 1:
        return told
    return (
        f"{len(looks)} comparisons stand here. Inside each, words rest on intervals that are widened for its number of looks: "
        f"its chance of any false word is about {chance} if nothing had changed. Of all together, about "
        f"{sum(chances.values()):.2g} would have one."
    )


def covered(rows: Sequence[VerdictRow]) -> list[str]:
    """What the intervals cover: a sentence for all, or where they differ one each, with the protocols that it is of."""
    places: dict[str, list[str]] = {}
    for row in rows:
        places.setdefault(row.covers, []).append(row.protocol)
    if len(places) < 2:
        return [*places]
    return [f"{', '.join(dict.fromkeys(own))}: {sentence}" for sentence, own in places.items()]


def _under(rows: Sequence[VerdictRow]) -> str:
    """Protocols with difference and interval (that of all looks together), joined to a phrase."""
    datasets = {row.data for row in rows}
    parts = [row.protocol + (f" on {row.data}" if len(datasets) > 1 else "") + f" ({_size(row)})" for row in rows]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _size(row: VerdictRow) -> str:
    """The difference with the interval that the sentence's word rests on."""
    found = row.found
    ends = found.joint or found
    size = f"{row.shown_difference} of {row.metric}" if row.is_fraction else f"{row.metric} {row.shown_difference}"
    return f"{size}; {percent(found.level)}: {signed(row.metric, ends.low)} to {signed(row.metric, ends.high)}"


def _counted(rows: Sequence[VerdictRow], subject: str) -> str:
    first = rows[0]
    return (
        f"{subject} against its base, of {len(rows)} measurements: {counted_words([row.word_of_all for row in rows])}; the first "
        f"of them, {first.protocol}: {_size(first)}."
    )
