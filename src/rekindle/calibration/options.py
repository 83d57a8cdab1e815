# SPDX-License-Identifier: Apache-2.0
"""Options of `rekindle study calibration`. Torch-free."""

from __future__ import annotations

from pydantic import Field, field_validator

from rekindle.calibration.cells import SECTIONS, WHAT, Section
from rekindle.core.errors import unknown_name
from rekindle.core.options import Options

SHORT_TRIALS, SHORT_REAL = 400, 8


class CalibrationOptions(Options):
    """Measure how often the verdict is wrong: simulated rows of every kind of score, and small real models."""

    out: str = "calibration"
    """Folder of calibration.json, calibration.md and calibration.png."""
    trials: int = Field(1000, ge=1)
    """Simulated pairs of models in every cell."""
    real: int = Field(40, ge=0)
    """Real pairs of small models per protocol and kind of items; 0 for none. They need PyTorch and about twenty minutes."""
    cells: tuple[str, ...] = SECTIONS
    """Which sections to measure."""
    resamples: int = Field(500, ge=100)
    """Draws of every interval; the product's default is 2000, which changes the rates by less than 0.2 points."""
    seed: int = Field(0, ge=0)
    """Of everything that is drawn."""
    short: bool = False
    """A few cells of every section, 400 trials at most, and 8 real pairs under the quick protocols: ten minutes on two cores."""

    @field_validator("cells")
    @classmethod
    def _known(cls, cells: tuple[str, ...]) -> tuple[str, ...]:
        for name in cells:
            if name not in WHAT:
                raise ValueError(str(unknown_name("section", name, dict.fromkeys(WHAT, ""))))
        return cells

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections asked for, in the order of the table."""
        return tuple(section for section in SECTIONS if section in self.cells)

    @property
    def trials_run(self) -> int:
        """Simulated pairs of each cell."""
        return min(self.trials, SHORT_TRIALS) if self.short else self.trials

    @property
    def real_run(self) -> int:
        """Real pairs of each protocol."""
        return min(self.real, SHORT_REAL) if self.short else self.real
