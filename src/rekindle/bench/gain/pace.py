# SPDX-License-Identifier: Apache-2.0
"""Seconds of a training, step by step, and the models it passes; torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Mark:
    """A model on the way of a training.

    Attributes:
        step: done.
        seconds: of training up to it, without start-up, measuring and the turns of others.
        joules: up to it; None where the device does not tell.
        model: its folder.
    """

    step: int
    seconds: float
    joules: float | None
    model: Path


@dataclass(frozen=True)
class Training:
    """One training of a side: its seed, and its marks in order; the last one is its end."""

    seed: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Pace:
    """How fast a side trains.

    Attributes:
        steps: of a run; batch_size: images of a step; head_steps: those at the start in which heads alone move.
        step_seconds: median of a step; head_step_seconds: of those in which heads alone move, None without them.
        whole_seconds: of all steps of a run, mean over its trainings.
        setup_seconds: from the start of the process to the moment before the first step; first_step_seconds: of the first step.
        timed_steps: how many steps that rests on; is_counted_up: they are a few steps, and whole_seconds is counted up from them.
        peak_bytes: largest resident memory, or the GPU's.
        joules: of a whole run; None where the device does not tell.
        facts: versions, threads, device, precision.
    """

    steps: int
    batch_size: int
    head_steps: int
    step_seconds: float
    head_step_seconds: float | None
    whole_seconds: float
    setup_seconds: float
    first_step_seconds: float
    timed_steps: int
    is_counted_up: bool
    peak_bytes: int
    joules: float | None
    facts: dict[str, Any]

    @property
    def images_per_s(self) -> float:
        """Images per second over a whole run."""
        return self.steps * self.batch_size / self.whole_seconds

    def seconds_at(self, step: int) -> float:
        """Seconds up to a step, counted up from those of single steps."""
        heads = min(step, self.head_steps)
        return heads * (self.head_step_seconds or 0.0) + (step - heads) * self.step_seconds


def counted_up(
    plan: Mapping[str, Any],
    full: Sequence[float],
    heads: Sequence[float],
    joules: tuple[float, float] | None,
    *,
    setup_seconds: float,
    first_step_seconds: float,
    peak_bytes: int,
) -> Pace:
    """Return the pace that some timed steps come to over a whole run.

    Args: plan: steps, batch_size, head_steps, facts; full, seconds of steps in which all moves; heads, of those in which heads
    alone do, empty where there are none; joules, medians of one step of either kind.
    """
    steps, head_steps = int(plan["steps"]), int(plan["head_steps"])
    usual, first = median(full), median(heads) if heads else None
    used = None if joules is None else (steps - head_steps) * joules[0] + head_steps * joules[1]
    return Pace(
        steps=steps,
        batch_size=int(plan["batch_size"]),
        head_steps=head_steps,
        step_seconds=usual,
        head_step_seconds=first,
        whole_seconds=head_steps * (first or 0.0) + (steps - head_steps) * usual,
        setup_seconds=setup_seconds,
        first_step_seconds=first_step_seconds,
        timed_steps=len(full) + len(heads),
        is_counted_up=True,
        peak_bytes=peak_bytes,
        joules=used,
        facts=dict(plan["facts"]),
    )


@dataclass(frozen=True)
class Recorded:
    """What was written down of one training.

    Attributes:
        plan: steps, batch_size, head_steps, facts.
        seconds: by step; joules: likewise, where the device told.
        setup_seconds: of each start.
        peak_bytes: largest.
        end: steps at which it ended; 0 where it has not.
    """

    plan: dict[str, Any]
    seconds: dict[int, float]
    joules: dict[int, float]
    setup_seconds: tuple[float, ...]
    peak_bytes: int
    end: int

    @property
    def usual(self) -> float:
        """Median of the steps in which all moves, or of all where there are no others."""
        heads = int(self.plan["head_steps"])
        return median([s for step, s in self.seconds.items() if step > heads] or list(self.seconds.values()))

    def seconds_at(self, step: int) -> float:
        """Seconds up to a step; one that was done when nobody listened counts like the usual one."""
        return math.fsum(self.seconds.get(number, self.usual) for number in range(1, step + 1))

    def joules_at(self, step: int) -> float | None:
        """Joules up to a step; None unless every one of them told."""
        told = [self.joules.get(number) for number in range(1, step + 1)]
        return math.fsum(j for j in told if j is not None) if None not in told else None


def pace_of(trainings: Sequence[Recorded]) -> Pace:
    """Return the pace of a side whose trainings came to their end."""
    plan, ends = trainings[0].plan, [own.end for own in trainings]
    heads = int(plan["head_steps"])
    full = [s for own in trainings for step, s in own.seconds.items() if step > heads]
    first = [s for own in trainings for step, s in own.seconds.items() if step <= heads]
    joules = [own.joules_at(own.end) for own in trainings]
    return Pace(
        steps=round(fmean(ends)),
        batch_size=int(plan["batch_size"]),
        head_steps=heads,
        step_seconds=median(full or first),
        head_step_seconds=median(first) if first else None,
        whole_seconds=fmean(own.seconds_at(own.end) for own in trainings),
        setup_seconds=median([s for own in trainings for s in own.setup_seconds]),
        first_step_seconds=median([own.seconds.get(1, own.usual) for own in trainings]),
        timed_steps=len(full) + len(first),
        is_counted_up=False,
        peak_bytes=max(own.peak_bytes for own in trainings),
        joules=None if None in joules else fmean(j for j in joules if j is not None),
        facts=dict(plan["facts"]),
    )
