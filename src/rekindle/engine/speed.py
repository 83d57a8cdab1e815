# SPDX-License-Identifier: Apache-2.0
"""Speed of a run and what it has used: images per second, waiting for data, time left, memory, energy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.energy import energy_meter
from rekindle.engine.watcher import StepReport


class SpeedClock:
    """Speed over the last steps, part of it spent waiting for data, time to the end."""

    def __init__(self, plan: TrainingPlan, start: int) -> None:
        self._plan = plan
        self._marks: deque[tuple[float, float]] = deque([(time.perf_counter(), 0.0)], maxlen=50)
        self._waited = 0.0
        self._done = start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def tick(self) -> None:
        """A step is done."""
        self._done += 1
        self._marks.append((time.perf_counter(), self._waited))

    def speed(self) -> dict[str, float]:
        """Images per second over the last 49 steps at most, and the part of that time spent waiting for data."""
        (first, waited_before), (last, waited) = self._marks[0], self._marks[-1]
        seconds = max(last - first, 1e-9)
        return {
            "images_per_s": (len(self._marks) - 1) * self._plan.batch_size / seconds,
            "data_wait": (waited - waited_before) / seconds,
        }

    def report(self, done: int, loss: float, device: torch.device) -> StepReport:
        """Line of progress after `done` steps."""
        speed = self.speed()
        left = (self._plan.steps - done) * self._plan.batch_size
        return StepReport(
            done,
            self._plan.steps,
            loss,
            speed["images_per_s"],
            speed["data_wait"],
            _memory_bytes(device),
            left / max(speed["images_per_s"], 1e-9),
        )


class UsedResources:
    """What this process has used since the start of the training."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._began = device, time.monotonic()
        self._joules = energy_meter(device)

    def so_far(self) -> dict[str, float]:
        """Seconds, memory (resident, or the GPU's peak), and joules where the device tells."""
        found = {"seconds": time.monotonic() - self._began, "memory_bytes": float(_memory_bytes(self._device))}
        return found if self._joules is None else found | {"energy_joules": self._joules()}


def _memory_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
