# SPDX-License-Identifier: Apache-2.0
"""Remaining time of work in equal parts."""

from __future__ import annotations

import time

from rekindle.engine.watcher import Watcher


class Clock:
    """Says how far the work is and when it will be done."""

    def __init__(self, total: int, watcher: Watcher, *, every_s: float = 0.0) -> None:
        self._total, self._watcher, self._every_s = total, watcher, every_s
        self._start = self._last = time.monotonic()
        self._done = 0

    def tick(self, text: str) -> None:
        """One part is done; `text` says which."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < self._every_s and self._done < self._total:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / self._done * (self._total - self._done)
        self._watcher.message(f"[{self._done}/{self._total}] {text} ({elapsed:.0f} s, about {left:.0f} s left)")
