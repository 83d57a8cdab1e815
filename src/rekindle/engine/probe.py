# SPDX-License-Identifier: Apache-2.0
"""Measuring a model now and then while it is trained. What is measured the engine does not know."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from rekindle.core.files import write_atomically
from rekindle.engine.metrics_log import MetricsLog
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import Watcher

SHARE_OF_TIME = 0.08  # what probes may cost at most, where nobody says how often


@dataclass(frozen=True)
class Reading:
    """What a probe found.

    Attributes:
        values: by name.
        headline: what decides which step was best, higher is better; None where nothing does.
        alarms: what is wrong, and what to change.

    """

    values: Mapping[str, float]
    headline: float | None = None
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """Where the headline was best, and where it is now.

    Attributes:
        step: of the best headline.
        headline: the best, higher is better.
        last_step: of the last measurement.
        last: headline there.

    """

    step: int
    headline: float
    last_step: int
    last: float

    @property
    def has_fallen(self) -> bool:
        """Whether it was better before."""
        return self.headline > self.last


@dataclass
class Probe:
    """When to measure, and what becomes of it.

    Measuring touches nothing that training depends on, so that a run gives the same numbers with and without.

    Attributes:
        measure: of the model as it is.
        save_best: called with the step, and how many were looked at, when the headline is better than ever before.
        every: steps between measurements; None: as often as keeps their cost under 8 % of the time. The first step, before
            anything has moved, and the last one are always measured.
        compared: what the headline is of; headlines of something else, before a run went on, count no more.
        standing: of the headline, once it was measured.

    """

    measure: Callable[[], Reading]
    save_best: Callable[[int, int], None]
    every: int | None = None
    compared: str = ""
    standing: Standing | None = None
    _looked: list[int] = field(default_factory=list)
    _log: MetricsLog | None = None
    _free_again: float = 0.0
    _told: set[str] = field(default_factory=set)

    @property
    def looks(self) -> int:
        """How many steps the headline was measured at."""
        return len(self._looked)

    def open(self, folder: RunFolder, start: int, watcher: Watcher, *, tensorboard: bool) -> None:
        """Begin, or go on after step `start`."""
        self._log = MetricsLog(folder.probes, start_step=start, tensorboard=tensorboard)
        if start and folder.best_probe.exists():
            before = json.loads(folder.best_probe.read_text(encoding="utf-8"))
            looked, compared = before.pop("looked", []), before.pop("compared", "")
            if compared != self.compared:
                watcher.message(
                    "the probe was measured on other labelled data or items before; which step is best is counted from here on"
                )
                return
            self._looked = [step for step in looked if step <= start]
            if before["step"] <= start:
                self.standing = Standing(**before)

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` steps."""
        if step in (0, total):
            return True
        return step % self.every == 0 if self.every else time.monotonic() >= self._free_again

    def run(self, step: int, folder: RunFolder, watcher: Watcher) -> None:
        """Measure, write, and remember the best."""
        assert self._log is not None
        began = time.monotonic()
        reading = self.measure()
        seconds = time.monotonic() - began
        self._free_again = time.monotonic() + seconds * (1 / SHARE_OF_TIME - 1)
        self._log.write(step, dict(reading.values), {"seconds": seconds})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in reading.values.items())
        watcher.message(f"probe at step {step} ({seconds:.1f} s): {shown}")
        for alarm in reading.alarms:
            if alarm not in self._told:
                self._told.add(alarm)
                watcher.message(f"warning at step {step}: {alarm}")
        if reading.headline is None:
            return
        is_best = self.standing is None or reading.headline > self.standing.headline
        best = (
            (step, reading.headline)
            if self.standing is None or is_best
            else (self.standing.step, self.standing.headline)
        )
        self.standing = Standing(*best, step, reading.headline)
        self._looked.append(step)
        found = asdict(self.standing) | {"compared": self.compared, "looked": self._looked}
        text = json.dumps(found) + "\n"
        write_atomically(folder.best_probe, lambda stream: stream.write(text.encode()))
        if is_best:
            self.save_best(step, self.looks)

    def sync(self) -> None:
        """Have what was measured on the disk."""
        if self._log is not None:
            self._log.sync()

    def close(self, watcher: Watcher) -> None:
        """End, and tell which step was best."""
        if self._log is not None:
            self._log.close()
        if self.standing is not None:
            watcher.message(f"the best probe was at step {self.standing.step} ({self.standing.headline:.4g})")
