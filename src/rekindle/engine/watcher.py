# SPDX-License-Identifier: Apache-2.0
"""Progress watchers: the engine speaks to a Watcher, and what that does with it is not the engine's business."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

LOGGER = logging.getLogger("rekindle")


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step.

    Attributes:
        step: steps done; total: steps in all.
        loss: total loss.
        images_per_s: recent speed.
        data_wait: share of the recent time spent waiting for images, in [0, 1].
        memory_bytes: resident memory of the process, or peak allocated memory of the GPU.
        eta_s: seconds to the end at the recent speed.
    """

    step: int
    total: int
    loss: float
    images_per_s: float
    data_wait: float
    memory_bytes: int
    eta_s: float


class Watcher(Protocol):
    """Listens to a run."""

    def message(self, text: str) -> None:
        """Take one line of progress."""

    def step(self, report: StepReport) -> None:
        """Take note of a finished step."""

    def close(self) -> None:
        """Put the terminal back in order."""


class LoggingWatcher:
    """Passes everything to the logger `rekindle`; the default of the Python calls."""

    def message(self, text: str) -> None:
        """Log at level INFO."""
        LOGGER.info(text)

    def step(self, report: StepReport) -> None:
        """Log at level DEBUG."""
        LOGGER.debug("step %d of %d, loss %.4f", report.step, report.total, report.loss)

    def close(self) -> None:
        """Nothing to do."""
