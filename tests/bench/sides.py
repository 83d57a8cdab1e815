# SPDX-License-Identifier: Apache-2.0
"""Sides that a test can predict."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping


class Sleeper:
    """Takes as long as the case says for its label, and keeps a block of memory while it does."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._seconds = float(str(case["seconds"]))
        self._bytes = int(str(case["bytes"]))
        self._runs = 0

    def run(self) -> int:
        block = bytearray(os.urandom(1024)) * (self._bytes // 1024)
        time.sleep(self._seconds)
        self._runs += 1
        return len(block[:3])

    def facts(self) -> dict[str, object]:
        return {"runs": self._runs, "threads": os.environ["OMP_NUM_THREADS"], "wait": os.environ["OMP_WAIT_POLICY"]}


class Slow(Sleeper):
    def __init__(self, case: Mapping[str, object]) -> None:
        super().__init__({**case, "seconds": 5 * float(str(case["seconds"]))})


class Broken(Sleeper):
    def run(self) -> int:
        raise ValueError("this side cannot")


class Dying(Sleeper):
    def run(self) -> int:
        os._exit(7)


class Counted:
    """Deals with the batch at once and says how large it was."""

    TIMES = 1

    def __init__(self, case: Mapping[str, object]) -> None:
        self._images = self.TIMES * int(str(case["batch_size"]))

    def run(self) -> int:
        time.sleep(0.001)
        return self._images

    def facts(self) -> dict[str, object]:
        return {"seen": self._images, "flops": 10 * self._images}


class CountedTwice(Counted):
    TIMES = 2
