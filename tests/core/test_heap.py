# SPDX-License-Identifier: Apache-2.0
"""The heap is trimmed where memory has grown, and only there."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import pytest

from rekindle.core import heap
from rekindle.core.heap import PAUSE_STEPS, SteadyHeap, heap_trim, own_memory_bytes

MIB = 1 << 20


def _trimmed_at(memory: Sequence[int]) -> list[int]:
    """The steps, counted from 0, after which a process with so many MiB is trimmed."""
    step, found = 0, []
    keeper = SteadyHeap(own_bytes=lambda: memory[step] * MIB, trim=lambda: found.append(step))
    for step in range(len(memory)):  # noqa: B007  (both functions above read it)
        keeper.after_step()
    return found


def test_what_loading_leaves_behind_goes_after_the_first_step_and_steady_memory_is_left_alone() -> None:
    assert _trimmed_at([900] + [600] * 100) == [0]


def test_memory_that_has_grown_by_a_hundredth_is_trimmed_and_then_has_time_to_settle() -> None:
    settled = [900] + [600] * PAUSE_STEPS
    assert _trimmed_at([*settled, 602, 605, 607, *[600] * 20]) == [0, PAUSE_STEPS + 3]
    again = _trimmed_at([*settled, *[700] * 60])  # it needs that much: the next ten steps say so
    assert again == [0, PAUSE_STEPS + 1]


def test_small_processes_grow_by_four_megabytes_before_anything_is_done() -> None:
    assert _trimmed_at([90] + [60] * PAUSE_STEPS + [63] * 50) == [0]


def test_what_steps_need_is_the_most_that_any_took_in_the_pause() -> None:
    assert _trimmed_at([900] + [600, 640] * (PAUSE_STEPS // 2) + [646] * 50) == [0]


def test_without_the_call_nothing_is_asked_and_nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> int:
        raise AssertionError("memory was read")

    class Musl:
        """A C library without the call."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert heap_trim() is None
    SteadyHeap(own_bytes=never).after_step()
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert heap_trim() is None


@pytest.mark.skipif(heap.heap_trim() is None, reason="the C library has no malloc_trim")
def test_trimming_gives_back_holes_between_blocks_in_use() -> None:
    trim, size, kept = heap_trim(), 60_000, []
    assert trim is not None
    trim()
    holes = [bytearray(size) for _ in range(2000)]
    kept = holes[::2]
    del holes
    before = own_memory_bytes()
    trim()
    assert own_memory_bytes() < before - len(kept) * size // 2
