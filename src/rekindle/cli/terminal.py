# SPDX-License-Identifier: Apache-2.0
"""Terminal output of a run: one live line in a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rekindle.engine.watcher import StepReport

PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """75 -> '1:15', 3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(report: StepReport) -> str:
    """One line about a step."""
    return (
        f"step {report.step}/{report.total}  loss {report.loss:.4f}  {report.images_per_s:.1f} images/s  "
        f"ETA {duration(report.eta_s)}  data wait {report.data_wait:.0%}  memory {report.memory_bytes / 2**30:.2f} GiB"
    )


class TerminalWatcher:
    """Prints messages and a progress line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_plain = 0.0

    def message(self, text: str) -> None:
        """Print one line above the progress line."""
        self._console.print(text, markup=False)

    def step(self, report: StepReport) -> None:
        """Refresh the progress line, or print a plain one now and then."""
        if self._console.is_terminal:
            width = 20
            filled = round(width * report.step / report.total)
            bar = Text("━" * filled, style="green") + Text("━" * (width - filled), style="dim")
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=False)
                self._live.start()
            self._live.update(bar + Text(" " + line(report)))
            return
        now = time.monotonic()
        if report.step in (1, report.total) or now - self._last_plain >= PLAIN_SECONDS:
            print(line(report), file=sys.stderr, flush=True)
            self._last_plain = now

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
