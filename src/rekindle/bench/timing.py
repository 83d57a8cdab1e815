# SPDX-License-Identifier: Apache-2.0
"""Time several sides of one case in turn, each in its own process. Torch-free.

Neighbours, caches and frequency drift from minute to minute, so a figure alone means little: rounds alternate between the
sides, and what is quoted is the ratio of medians. A side's imports, memory and threads are its own.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

import psutil

from rekindle.core.errors import RekindleError
from rekindle.core.tables import imported

SAMPLE_SECONDS = 0.01
Label = TypeVar("Label")


class Side(Protocol):
    """One contender. It is built in its own process, as Side(case), which is not timed."""

    def __init__(self, case: Mapping[str, object]) -> None: ...

    def run(self) -> int:
        """Do the work once and return the number of images that it dealt with."""

    def facts(self) -> dict[str, object]:
        """Return what else to report, as plain values: versions, counted FLOPs, differences."""


@dataclass(frozen=True)
class SideTimes:
    """What was measured of one side.

    Attributes:
        label: name of the side.
        seconds: of every round, in order.
        images: per round.
        setup_seconds: imports and preparation, before the first round.
        baseline_bytes: resident memory after the preparation.
        peak_bytes: largest resident memory during the rounds (of the process, and on a GPU the device's peak in `facts`).
        facts: what the side itself reported.
    """

    label: str
    seconds: tuple[float, ...]
    images: int
    setup_seconds: float
    baseline_bytes: int
    peak_bytes: int
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def images_per_s(self) -> float:
        """Images per second at the median."""
        return self.images / self.median

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the rounds."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        derived = {"median_s": self.median, "images_per_s": self.images_per_s, "spread": self.spread}
        return asdict(self) | {"seconds": list(self.seconds)} | derived


def measure(
    sides: Mapping[str, str],
    case: Mapping[str, object],
    *,
    rounds: int = 5,
    warmup: int = 1,
    threads: int = 1,
    message: Callable[[str], None] | None = None,
) -> list[SideTimes]:
    """Measure every side of a case: `warmup` untimed rounds each, then `rounds` in turn, A B C, B C A, C A B, ...

    Args: sides, label -> "module:Class" of a `Side`; case, plain values that every side receives; threads of each side; tell,
    called with a line about every preparation and round.
    Raises: RekindleError with the side's own trace if one fails.
    """
    message = message or (lambda line: None)
    context = mp.get_context("spawn")
    processes: dict[str, _Remote] = {}
    try:
        with threads_fixed(threads):
            for label, target in sides.items():
                processes[label] = _Remote(label, target, dict(case), threads, context)
        setups = {}
        for label, process in processes.items():
            message(f"preparing {label}")
            setups[label] = process.ask("setup")
        for label, process in processes.items():
            for turn in range(warmup):
                took, _ = process.ask("run")
                message(f"{label}: warm-up {turn + 1} of {warmup}, {took:.3f} s")
        seconds: dict[str, list[float]] = {label: [] for label in sides}
        images: dict[str, int] = {}
        labels = list(sides)
        for turn in range(rounds):
            for label in in_turn(labels, turn):
                took, images[label] = processes[label].ask("run")
                seconds[label].append(took)
                message(f"{label}: round {turn + 1} of {rounds}, {took:.3f} s")
        measured = []
        message("counting operations")
        for label, process in processes.items():
            peak, facts = process.ask("end")
            setup, baseline = setups[label]
            measured.append(SideTimes(label, tuple(seconds[label]), images[label], setup, baseline, peak, facts))
        return measured
    finally:
        for process in processes.values():
            process.stop()


def in_turn(labels: list[Label], turn: int) -> list[Label]:
    """Return the sides in the order of a round, so that each is first, second, ... equally often.

    Example:
        >>> in_turn(["A", "B", "C"], 1)
        ['B', 'C', 'A']
    """
    return labels[turn % len(labels) :] + labels[: turn % len(labels)]


@contextmanager
def threads_fixed(threads: int) -> Iterator[None]:
    """What OpenMP reads when a process starts: its threads, and not to spin while they wait."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class _Remote:
    """A side in a process of its own; only one works at a time.

    Not a daemon, because a side that trains has data workers; it ends when its pipe closes, also if this process dies.
    """

    def __init__(self, label: str, target: str, case: dict[str, object], threads: int, context: Any) -> None:
        self._label = label
        self._pipe, theirs = mp.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, case, threads))
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> Any:
        try:
            self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(5)
            raise RekindleError(
                f"bench: the process of '{self._label}' ended (exit code {self._process.exitcode}); was memory short?"
            ) from error
        if isinstance(answer, str):
            raise RekindleError(f"bench: '{self._label}' failed:\n{answer}")
        return answer

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, target: str, case: dict[str, object], threads: int) -> None:
    side: Side | None = None
    watch = PeakWatch()
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            if what == "setup":
                began = time.perf_counter()
                side = _build(target, case, threads)
                pipe.send((time.perf_counter() - began, watch.resident()))
            elif what == "run":
                assert side is not None
                with watch:
                    began = time.perf_counter()
                    images = side.run()
                    took = time.perf_counter() - began
                pipe.send((took, images))
            else:
                assert side is not None
                pipe.send((watch.peak, side.facts()))
        except Exception:
            pipe.send(traceback.format_exc())


def _build(target: str, case: dict[str, object], threads: int) -> Side:
    import torch

    torch.set_num_threads(threads)
    side: Side = imported(target)(case)
    return side


class PeakWatch:
    """Largest resident memory while work goes on: sampled, because the kernel's high-water mark would hold the imports'.

    Args: pid, of the process; None for this one.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def resident(self) -> int:
        """Resident bytes now."""
        return int(self._process.memory_info().rss)

    def __enter__(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    def _sample(self) -> None:
        while True:
            try:
                self.peak = max(self.peak, self.resident())
            except psutil.NoSuchProcess:
                return
            if self._done.wait(SAMPLE_SECONDS):
                return
