# SPDX-License-Identifier: Apache-2.0
"""The C library's heap: give back what it keeps free, when a training has grown by it.

Every step of a training takes and frees buffers of other sizes than the last (matched rows, regions, images), and glibc serves
those below 32 MB from one heap. It reuses the holes that they leave, but none fits exactly, so the heap grows for hundreds of
steps although what is in use does not. `malloc_trim` returns the pages of all holes to the system; the next step has to touch
again those that it uses, which costs a part of a step. Hence: not after every step, but where memory has grown.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

STATM = Path("/proc/self/statm")

GROWTH, LEAST_BYTES = 0.01, 4 << 20
"""The heap is trimmed where a process's own memory has grown by this share of what steps need, and by at least these bytes."""

PAUSE_STEPS = 10
"""Steps after a trimming in which memory may settle; what it then has is what steps need, as they all differ a little."""


class SteadyHeap:
    """Keeps the memory of a training where its first steps had it. Does nothing where the C library is not glibc.

    Args: own_bytes, memory of this process alone; trim, gives free pages back, None where there is no such call.
    """

    def __init__(self, own_bytes: Callable[[], int] | None = None, trim: Callable[[], object] | None = None) -> None:
        self._own_bytes, self._trim = own_bytes or own_memory_bytes, trim or heap_trim()
        self._needed = 0  # the most that the process had in the steps right after a trimming
        self._since = PAUSE_STEPS  # steps since then; the first of all is followed by one: loading leaves much behind

    def after_step(self) -> None:
        """A step is done, its buffers are freed."""
        if self._trim is None:
            return
        own = self._own_bytes()
        if self._since < PAUSE_STEPS:
            self._needed, self._since = max(self._needed, own), self._since + 1
        elif own > self._needed + max(GROWTH * self._needed, LEAST_BYTES):
            self._trim()
            self._since = 0


def heap_trim() -> Callable[[], object] | None:
    """Glibc's malloc_trim(0), or None on another system or C library (musl, macOS, Windows)."""
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)


def own_memory_bytes() -> int:
    """Resident bytes of this process that are neither mapped from a file nor shared with others. Linux only."""
    resident, shared = STATM.read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
