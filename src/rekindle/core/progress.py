# SPDX-License-Identifier: Apache-2.0
"""Progress of a run. Schedules and random draws are pure functions of it, so a resumed run repeats itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The position of one optimizer step, and of the micro-batch that is being computed.

    Attributes:
        step: optimizer steps done so far (0 for the first).
        total: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps that make one pass over the images.
        seed: the run's seed.
        slot: which micro-batch of the step this is (index in its process * processes + rank).
        num_slots: micro-batches of a step, over all processes.
    """

    step: int
    total: int
    steps_per_epoch: int = 1
    seed: int = 0
    slot: int = 0
    num_slots: int = 1

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.total))

    @property
    def epoch(self) -> int:
        """Index of the current epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def num_epochs(self) -> float:
        """Epochs of the whole run; not an integer when the run is counted in steps."""
        return self.total / self.steps_per_epoch
