# SPDX-License-Identifier: Apache-2.0
"""What the verdict promises, and whether what was measured keeps it. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rekindle.calibration.cells import Section
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


def _upper(rate: Rate, limit: float) -> Standing:
    if rate.value <= limit:
        return "holds"
    return "within its interval" if rate.least <= limit else "missed"


def _between(rate: Rate) -> Standing:
    low, high = COVERED
    if low <= rate.value <= high:
        return "holds"
    return "within its interval" if rate.most >= low and rate.least <= high else "missed"
