# SPDX-License-Identifier: Apache-2.0
"""Verdicts in words, the same in the terminal, the report, tables, the model card and Python. Torch-free.

Every sentence says the word with the size of the difference and its interval, and, where the word leaves something open, why:
what could not have been seen, how many images would decide, or what is missing for a verdict. docs/verdict.md explains them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.evaluation.scores.score import is_fraction
from rekindle.evaluation.verdict.judging import FEWEST, MOST_UNDEFINED, Judged, Words

ORDER: tuple[Words, ...] = ("better", "worse", "equivalent", "no difference", "different", "cannot judge")
"""Words in the order in which they are told."""
ITEMS = {"one-shot": "episodes", "image-retrieval": "queries", "video": "videos"}
"""What the items of a protocol are; images where it is not named."""
ABOUT = {"run": "this run", "model": "this model as it is", "recipe": "one training of this recipe"}
"""What a word on a single training is about."""
OLDER = "older rule"
"""Said of intervals in files of before (`Judged.rule`: percentile)."""


def points(value: float) -> str:
    """Write a difference in percentage points, with its sign; two digits where one would show none.

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


def size(metric: str, value: float, *, unit: bool = True) -> str:
    """Write how large a difference is, without a sign.

    Example:
        >>> size("mIoU", 0.0123), size("MSE (log²)", 0.0025)
        ('1.2 points', '0.0025')

    """
    return signed(metric, abs(value), unit=unit).lstrip("+")


def plain(metric: str, value: float) -> str:
    """Write a value of a metric, a fraction in percent without the sign.

    Example:
        >>> plain("mIoU", 0.1234), plain("MSE (log²)", 0.02512)
        ('12.3', '0.0251')

    """
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a level or a share.

    Example:
        >>> percent(0.95), percent(0.9958)
        ('95 %', '99.6 %')

    """
    return f"{100 * share:.3g} %"


def items_of(protocol: str) -> str:
    """What the items are that a verdict is over; `protocol` is its name, or that of a column of a matrix.

    Example:
        >>> items_of("linear-seg"), items_of("one-shot, 50 % of the labels")
        ('images', 'episodes')

    """
    return ITEMS.get(protocol.split(" ")[0].rstrip(","), "images")


def interval(found: Judged, metric: str) -> str:
    """The interval, without a unit.

    Example:
        >>> interval(Judged(verdict="better", difference=0.02, low=0.008, high=0.034, level=0.95), "mIoU")
        '+0.8 to +3.4'

    """
    return f"{signed(metric, found.low)} to {signed(metric, found.high)}"


def headline(found: Judged, metric: str) -> str:
    """The word, the difference and its interval.

    Example:
        >>> headline(Judged(verdict="better", difference=0.02, low=0.008, high=0.034, level=0.95, rule="student"), "mIoU")
        'better: +2.0 points (95 %: +0.8 to +3.4)'

    """
    word = "no difference could be shown" if found.verdict == "no difference" else found.verdict
    return f"{word}: {measured(found, metric)}"


def measured(found: Judged, metric: str) -> str:
    """The difference and its interval, with what is to be known when reading them."""
    known = [f"{percent(found.level)}: {interval(found, metric)}"]
    if (found.verdict, found.difference > 0) in (("better", False), ("worse", True)):
        known.append("lower is better")
    if found.rule == "percentile":
        known.append(OLDER)
    return f"{signed(metric, found.difference, unit=True)} ({'; '.join(known)})"


def told(found: Judged, metric: str, items: str = "images") -> str:
    """Say all of a verdict: the word, the difference, its interval, and what the word leaves open.

    Args:
        found: the verdict.
        metric: what was compared, for its unit.
        items: what the items are.

    """
    return "; ".join([headline(found, metric), *remarks(found, metric, items)])


def remarks(found: Judged, metric: str, items: str = "images") -> list[str]:
    """What the word leaves open, each without a full stop: reasons, margin, what could not be seen, the word over all looks."""
    said = {
        "cannot judge": [unjudged(found, items)],
        "different": ["a description: neither direction is better"],
        "equivalent": [f"within the margin of {size(metric, found.margin or 0.0)}"],
        "no difference": unseen(found, metric, items),
    }.get(found.verdict, [])
    if max(found.flattered) > 0:
        reach = size(metric, max(found.flattered))
        said = [*said, f"a step was chosen on {items} that judge here: the interval reaches {reach} further for it"]
    return [*said, *together(found, metric)]


def unseen(found: Judged, metric: str, items: str = "images") -> list[str]:
    """Which effects could not have been seen, and what would show half of the smallest; nothing of files of before."""
    smallest = found.smallest_effect
    if not smallest:
        return []
    with_them = _counted(found, items)
    told = [f"effects below {size(metric, smallest)} cannot be seen reliably with {with_them}"]
    if found.margin is not None:
        told.insert(0, f"not within the margin of {size(metric, found.margin)}")
    if found.units_for_half is not None:
        many = f"about {_rounded(found.units_for_half):,}{' groups' if found.unit == 'groups' else ''}"
        return [*told, f"{many} would show {size(metric, smallest / 2, unit=False)}"]
    more = "groups" if found.unit == "groups" else items
    return [*told, f"more {more} would not show half of it, for the seeds differ: {_seeds_wanted(found)}"]


def together(found: Judged, metric: str) -> list[str]:
    """The word over all that was looked at, where it is another than the row's own."""
    joint = found.joint
    if joint is None or joint.verdict == found.verdict:
        return []
    ends = f"{signed(metric, joint.low)} to {signed(metric, joint.high)}"
    return [f"that is on its own; over all {joint.looks} looks together {joint.verdict} ({ends})"]


def word_of_all(found: Judged) -> Words:
    """The word that overall words rest on: over all looks together, or the row's own where it is the only one."""
    return found.verdict if found.joint is None else found.joint.verdict


def covers(found: Judged, items: str = "images", subject: str = "run") -> str:
    """What the interval covers and what not, as one sentence; `subject` is what was measured: model, run or recipe."""
    if found.rule == "percentile":
        return (
            "The interval was made by the older rule (percentiles), too short for few images, seeds or trainings; compare "
            "again for the present one."
        )
    parts = [f"the choice of {_counted(found, items)}"]
    if found.evaluation_seeds > 1:
        parts.append(f"{found.evaluation_seeds} evaluation seeds")
    if found.training_seeds > 1:
        return f"The interval covers {_listed([*parts, f'{found.training_seeds} trainings'])}."
    if found.evaluation_seeds > 1:
        return f"The interval covers {_listed(parts)}, and no other training: the word is about {ABOUT[subject]}."
    missing = "no other evaluation seed and no other training"
    return f"The interval covers {parts[0]} alone, {missing}: the word is about {ABOUT[subject]}."


def counted_words(words: Sequence[Words]) -> str:
    """How often each word fell.

    Example:
        >>> counted_words(["no difference", "better", "better"])
        'better in 2, no difference in 1'

    """
    return ", ".join(f"{word} in {words.count(word)}" for word in ORDER if word in words)


def unjudged(found: Judged, items: str = "images") -> str:
    """Why a difference cannot be judged."""
    if found.units >= FEWEST[found.unit]:
        return (
            f"{percent(found.undefined)} of the resamples define no value (at most {percent(MOST_UNDEFINED)} may), so the "
            "interval is of a selection; label more, or measure what is labelled everywhere"
        )
    if found.unit == "groups":
        return f"{_counted(found, items)}; a verdict needs {FEWEST['groups']} groups"
    return f"{_counted(found, items)}; a verdict needs {FEWEST['items']} (or {FEWEST['groups']} groups)"


def _counted(found: Judged, items: str) -> str:
    """How many items, and in how many groups they are drawn."""
    if found.unit == "groups":
        return f"{_plural(found.units, 'groups')} of {_plural(found.items, items)}"
    return _plural(found.items, items)


def _plural(count: int, noun: str) -> str:
    singular = {"queries": "query"}.get(noun, noun.removesuffix("s"))
    return f"{count:,} {noun if count != 1 else singular}"


def _seeds_wanted(found: Judged) -> str:
    """What would narrow an interval that the seeds make wide."""
    of_training = found.components.get("training seeds", 0.0)
    if of_training >= found.components.get("evaluation seeds", 0.0):
        return "train with more seeds"
    return "measure with more evaluation seeds"


def _rounded(count: int) -> int:
    return int(float(f"{count:.2g}"))


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
