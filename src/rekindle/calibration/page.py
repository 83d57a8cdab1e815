# SPDX-License-Identifier: Apache-2.0
"""calibration.md: the measured rates as tables. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rekindle.calibration.cells import SECTIONS, WHAT, Section
from rekindle.calibration.limits import COVERED, NOW, OVERALL, WRONG, Calibration
from rekindle.calibration.simulate import Measured
from rekindle.calibration.tally import Judgement, Rate

BEFORE = "as before"


def page(found: Calibration) -> str:
    """Return the whole page in Markdown."""
    return "\n".join(_lines(found)) + "\n"


def rate_told(rate: Rate) -> str:
    """Return "5.2 (4.0 to 6.8)", in percent.

    Example:
        >>> rate_told(Rate.of(52, 1000))
        '5.2 (4.0 to 6.8)'
    """
    return f"{100 * rate.value:.1f} ({100 * rate.least:.1f} to {100 * rate.most:.1f})"


def _lines(found: Calibration) -> Iterator[str]:
    yield "# How often the verdict is wrong"
    yield ""
    yield (
        f"Percent of trials, with 95 % intervals (Wilson). {found.trials} simulated pairs of models in every cell, {found.real} "
        f"real pairs where models are real, {found.resamples} resamples, level 95 %, seed {found.seed}. *{BEFORE}* is the rule "
        f"of commit bc97a06, *{NOW}* the verdict as it is. Half-widths are in points. A dash: there is none."
    )
    yield ""
    yield found.limits.told
    for check in found.limits.missed:
        yield f"- missed: {check.cell}: {check.what} {rate_told(check.rate)}"
    yield ""
    yield 'All promised situations of a section together ("wrong": those in which nothing differs):'
    yield ""
    yield "| section | situations | rule | wrong | coverage |"
    yield "|---|---|---|---|---|"
    for row in found.together:
        rates = [rate_told(rate) if rate else "-" for rate in (row.wrong, row.coverage)]
        yield f"| {row.label} | {row.cells} | {row.rule} | {' | '.join(rates)} |"
    for section in SECTIONS:
        cells = [cell for cell in found.measured if cell.section == section]
        if cells:
            yield from _section(section, cells)


def _section(section: Section, cells: Sequence[Measured]) -> Iterator[str]:
    yield ""
    yield f"## {WHAT[section][0].upper()}{WHAT[section][1:]}"
    yield ""
    yield from _explained(section)
    heading = ["score", "situation", f"wrong, {BEFORE}", f"better, {NOW}", f"worse, {NOW}", f"wrong, {NOW}"]
    heading += [f"coverage, {BEFORE}", f"coverage, {NOW}", f"half-width, {BEFORE} and {NOW}"]
    if section in ("few", "groups"):
        heading.append("cannot judge")
    yield "| " + " | ".join(heading) + " |"
    yield "|" + "---|" * len(heading)
    for cell in cells:
        before, now = cell.by(BEFORE), cell.by(NOW)
        row = [
            cell.world,
            cell.label,
            rate_told(before.wrong),
            rate_told(now.better),
            rate_told(now.worse),
            rate_told(now.wrong),
        ]
        row += [_coverage(before), _coverage(now), f"{_width(before)}, {_width(now)}"]
        if section in ("few", "groups"):
            row.append(f"{100 * now.cannot_judge.value:.1f}")
        yield "| " + " | ".join(row) + " |"


def _explained(section: Section) -> Iterator[str]:
    if section == "effects":
        yield 'Here "better" is right: its rate is the power. "Wrong" is the word of the wrong side.'
    elif section == "overall":
        yield f"Promised: at most {OVERALL:.0%} wrong."
    elif section in ("items", "groups", "seeds", "trainings"):
        yield f"Promised from 30 items or 8 groups on: at most {WRONG:.0%} wrong, coverage {COVERED[0]:.0%} to {COVERED[1]:.0%}."
    yield ""


def _coverage(found: Judgement) -> str:
    return "-" if found.coverage is None else rate_told(found.coverage)


def _width(found: Judgement) -> str:
    return "-" if found.half_width is None else f"{found.half_width:.2f}"
