# SPDX-License-Identifier: Apache-2.0
"""One self-contained page about one comparison: the verdict first, then numbers, pictures and settings.

Everything is inside the file: no script, no font, no picture comes from elsewhere. All text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from rekindle.core.files import write_atomically


@dataclass(frozen=True)
class VerdictRow:
    """One protocol's verdict.

    Attributes:
        protocol: its name.
        metric: what the numbers are, for example mIoU.
        verdict: better, no difference, or worse.
        base, model: the two values, means over the seeds, fractions.
        base_std, model_std: their standard deviations over the seeds.
        difference, low, high: model minus base, with its interval.
        level: coverage of the interval.
        per_class: class -> difference.

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


@dataclass(frozen=True)
class Picture:
    """A PNG file with what it shows."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes:
        title: headline.
        lead: what was done, one or two sentences.
        rows: one per protocol.
        pictures: in order.
        facts: label -> value (data, model, seeds, time).
        command: what reproduces it.
        settings: the resolved options, as text.

    """

    title: str
    lead: str
    rows: Sequence[VerdictRow]
    pictures: Sequence[Picture]
    facts: Mapping[str, str]
    command: str
    settings: str


def points(value: float) -> str:
    """Return a difference in percentage points, with its sign; two digits where one would show none.

    Example:
        >>> points(0.0312), points(-0.0001), points(0.0)
        ('+3.1', '-0.01', '0.0')

    """
    digits = 1 if abs(value) >= 0.0005 else 2
    text = f"{100 * value:+.{digits}f}"
    return "0.0" if float(text) == 0 else text


def overall(rows: Sequence[VerdictRow], subject: str = "The adapted model") -> str:
    """One sentence over all protocols; it says no more than they do.

    Example:
        >>> overall([])
        'Nothing was compared.'

    """
    words = {c.verdict for c in rows}
    if not words:
        return "Nothing was compared."
    if words == {"better"}:
        return f"{subject} is better than its base under {_under(rows)}."
    if words == {"worse"}:
        return f"{subject} is worse than its base under {_under(rows)}."
    if words == {"no difference"}:
        return f"No difference between the adapted model and its base could be shown under {_under(rows)}."
    parts = [
        f"{word} under {_under([c for c in rows if c.verdict == word])}"
        for word in ("better", "no difference", "worse")
        if word in words
    ]
    return f"{subject} against its base: {'; '.join(parts)}."


def write_page(page: Page, path: Path) -> None:
    """Write the page as one HTML file, atomically."""
    text = render(page)
    write_atomically(path, lambda stream: stream.write(text.encode()))


def render(page: Page) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader("rekindle.reporting", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["points"] = points
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    pictures = [
        {"title": p.title, "caption": p.caption, "data": base64.b64encode(p.path.read_bytes()).decode()}
        for p in page.pictures
    ]
    return environment.get_template("summary.html").render(
        page=page, pictures=pictures, verdict=overall(page.rows), scale=_scale(page.rows)
    )


def _under(rows: Sequence[VerdictRow]) -> str:
    """Protocols with their intervals, joined to a phrase."""
    parts = [f"{c.protocol} ({points(c.low)} to {points(c.high)} points)" for c in rows]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _scale(rows: Sequence[VerdictRow]) -> float:
    """Half the width of the interval plot: the farthest end of an interval and a tenth more."""
    ends = [abs(value) for c in rows for value in (c.low, c.high)]
    return 1.1 * max([*ends, 0.005])
