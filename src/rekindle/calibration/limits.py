# SPDX-License-Identifier: Apache-2.0
"""What the verdict promises, and whether what was measured keeps it. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rekindle.calibration.cells import SECTIONS, WHAT, Section
from rekindle.calibration.simulate import Measured
from rekindle.calibration.tally import Rate
from rekindle.core.options import Options

WRONG, OVERALL = 0.06, 0.05
COVERED = (0.93, 0.97)
WITH_COVERAGE: tuple[Section, ...] = ("items", "groups", "seeds", "trainings", "effects")
NOW = "now"

Standing = Literal["holds", "within its interval", "missed"]


class Check(Options):
    """One promise, kept or not, in one cell."""

    cell: str
    """Section, world and label."""
    what: Literal["wrong words", "coverage"]
    """What was promised."""
    rate: Rate
    """What was measured."""
    standing: Standing
    """holds: the rate itself is within the limit; within its interval: its interval reaches the limit; missed: it does not."""


class Limits(Options):
    """All promises."""

    checks: list[Check]
    """One per promise and cell."""

    @property
    def missed(self) -> list[Check]:
        """Those that were not kept."""
        return [check for check in self.checks if check.standing == "missed"]

    @property
    def told(self) -> str:
        """One sentence."""
        counts = {
            name: sum(check.standing == name for check in self.checks) for name in ("holds", "within its interval")
        }
        stand = f"{counts['holds']} hold, {counts['within its interval']} within their own interval, {len(self.missed)} missed"
        promised = (
            f"wrong words at most {WRONG:.0%}, overall {OVERALL:.0%}, coverage {COVERED[0]:.0%} to {COVERED[1]:.0%}"
        )
        return f"limits ({promised}): {stand}"


class Together(Options):
    """All promised cells of a section together, under one rule."""

    section: Section
    """Which."""
    label: str
    """The section in words."""
    rule: str
    """Which rule."""
    cells: int
    """How many cells there are."""
    wrong: Rate | None
    """Wrong words over all trials of those in which nothing differs; None where there is none."""
    coverage: Rate | None
    """Intervals that hold the truth over all trials of all of them; None where there is none to hold."""


class Calibration(Options):
    """What was measured, and whether it keeps what is promised."""

    trials: int
    """Simulated pairs of models in every cell."""
    real: int
    """Real pairs of small models per protocol and kind of items."""
    resamples: int
    """Draws of every interval."""
    seed: int
    """Of everything."""
    together: list[Together]
    """Every section, by rule."""
    measured: list[Measured]
    """Every cell, judged by the rule as before (bc97a06) and now."""
    limits: Limits
    """What is promised."""


def limits_of(measured: Sequence[Measured]) -> Limits:
    """Check what is promised; situations that no rule can tell from the rows (one run read as its recipe) are not promised."""
    checks = []
    for cell in measured:
        if not cell.is_promised:
            continue
        found, name = cell.by(NOW), f"{cell.section}: {cell.world}, {cell.label}"
        limit = OVERALL if cell.section == "overall" else WRONG
        checks.append(Check(cell=name, what="wrong words", rate=found.wrong, standing=_upper(found.wrong, limit)))
        if cell.section in WITH_COVERAGE and found.coverage is not None:
            checks.append(Check(cell=name, what="coverage", rate=found.coverage, standing=_between(found.coverage)))
    return Limits(checks=checks)


def together(measured: Sequence[Measured]) -> list[Together]:
    """Sum up the promised cells of each section, by rule."""
    found = []
    for section in SECTIONS:
        cells = [cell for cell in measured if cell.section == section and cell.is_promised]
        for rule in [judged.rule for judged in cells[0].judged] if cells else []:
            equal = [cell.by(rule) for cell in cells if not cell.effect]
            covered = [judged for cell in cells if (judged := cell.by(rule)).coverage is not None]
            wrong = _summed([(j.wrong, j.trials) for j in equal])
            coverage = _summed([(j.coverage, j.trials) for j in covered if j.coverage is not None])
            summed = Together(
                section=section, label=WHAT[section], rule=rule, cells=len(cells), wrong=wrong, coverage=coverage
            )
            found.append(summed)
    return found


def _summed(rates: Sequence[tuple[Rate, int]]) -> Rate | None:
    trials = sum(count for _, count in rates)
    return Rate.of(round(sum(rate.value * count for rate, count in rates)), trials) if trials else None


def _upper(rate: Rate, limit: float) -> Standing:
    if rate.value <= limit:
        return "holds"
    return "within its interval" if rate.least <= limit else "missed"


def _between(rate: Rate) -> Standing:
    low, high = COVERED
    if low <= rate.value <= high:
        return "holds"
    return "within its interval" if rate.most >= low and rate.least <= high else "missed"
