# SPDX-License-Identifier: Apache-2.0
"""A short soak: a training whose steps leave ever other holes in the heap stays where its first steps were."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.core.heap import PAUSE_STEPS, heap_trim, own_memory_bytes
from rekindle.engine.watcher import StepReport
from tests.engine.running import Recorder, run, write_images

MIB = 1 << 20
STEPS = 45
BLOCKS, LEAST_BYTES = 64, 60_000
"""Blocks of one step: 4 MB, from the heap, each a little larger than those of the step before, so that no hole is used again."""


@pytest.mark.skipif(heap_trim() is None, reason="the C library has no malloc_trim")
def test_holes_of_ever_other_sizes_do_not_add_up(tmp_path: Path) -> None:
    kept: list[bytearray] = []
    memory: list[int] = []

    def leave_holes(report: StepReport) -> None:
        memory.append(own_memory_bytes())
        blocks = [bytearray(LEAST_BYTES + 600 * report.step) for _ in range(BLOCKS)]
        for block in blocks:
            del block[1000:]  # shrinks where it stands: a hole between two blocks in use
        kept.extend(blocks)

    run(write_images(tmp_path / "images"), tmp_path / "run", watcher=Recorder(leave_holes), steps=STEPS)
    left = BLOCKS * LEAST_BYTES * (STEPS - 2 * PAUSE_STEPS)
    grown = max(memory[2 * PAUSE_STEPS :]) - max(memory[1 : 2 * PAUSE_STEPS])
    assert grown < left / 3, f"memory has grown by {grown / MIB:.0f} MiB; holes of all steps are {left / MIB:.0f}"
