# SPDX-License-Identifier: Apache-2.0
"""Trainings in turn: every side goes on to its next mark, then the next side does. What is done is written down at once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rekindle.bench.gain.options import GainOptions
from rekindle.bench.gain.pace import Mark, Pace, Recorded, Training, counted_up
from rekindle.bench.gain.remote import PausingRun, Plan, StepTime
from rekindle.bench.gain.sides import Side
from rekindle.bench.timing import in_turn
from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.engine.run_folder import RunFolder

Message = Callable[[str], None]
TELL_SECONDS = 30.0
"""Between lines of progress inside of a part."""


def train_in_turn(
    sides: Sequence[Side], seed: int, options: GainOptions, work: Path, message: Message
) -> dict[str, tuple[Recorded, Training]]:
    """Train every side with one seed, the sides in turn from mark to mark; return what there is of each, by label.

    What is finished in `work` is not trained again, and what is begun goes on.

    Raises: RequestError for a folder that was trained with something else; RekindleError if a training fails or stops.
    """
    folders = {side.label: TrainingFolder(work / side.folder / f"seed-{seed}") for side in sides}
    for side in sides:
        folders[side.label].claim(side, options.shares)
    open_sides = [side for side in sides if not folders[side.label].is_done]
    for side in sides:
        if side not in open_sides:
            message(f"{side.label}, seed {seed}: trained before")
    runs: dict[str, PausingRun] = {}
    clock = _Clock(message)
    try:
        for side in open_sides:
            folder = folders[side.label]
            resume = RunFolder(folder.run).holds_run
            message(f"{side.label}, seed {seed}: {'going on' if resume else 'preparing'}")
            runs[side.label] = PausingRun(
                side, seed, folder.run, resume=resume, threads=options.threads, log=folder.log
            )
            plan = runs[side.label].ready()
            folder.note(plan=asdict(plan), setup_seconds=runs[side.label].setup_seconds)
            runs[side.label].prepare(marks_of(options.shares, plan.steps), folder.models)
            clock.expect(side.label, plan.steps)
        turn = seed
        waiting = list(open_sides)
        while waiting:
            for side in in_turn(waiting, turn):
                run, folder = runs[side.label], folders[side.label]
                run.advance(lambda step, f=folder, s=side: _noted(f, s, seed, step, clock))  # type: ignore[misc]
                folder.note(peak_bytes=run.peak_bytes)
                clock.tell(side.label, seed, run.steps_done)
                if run.is_finished or run.steps_done >= clock.steps(side.label):
                    run.finish()
                    folder.note(end=run.steps_done)
                    waiting.remove(side)
            turn += 1
    finally:
        for run in runs.values():
            run.stop()
    return {side.label: (folders[side.label].recorded(), folders[side.label].training(seed)) for side in sides}


def time_in_turn(sides: Sequence[Side], options: GainOptions, scratch: Path, message: Message) -> dict[str, Pace]:
    """Time some steps of every side, one at a time in turn, and count up to its whole run.

    Raises: RequestError for a run that has too few steps.
    """
    assert options.time_only is not None
    wanted, warm = options.time_only, options.warmup
    few = math.ceil(wanted / 4)
    runs: dict[str, PausingRun] = {}
    plans: dict[str, Plan] = {}
    steps: dict[str, list[StepTime]] = {side.label: [] for side in sides}
    try:
        for side in sides:
            message(f"preparing {side.label}")
            log = scratch / f"{side.folder}.log"
            run = PausingRun(side, 0, scratch / side.folder, resume=False, threads=options.threads, log=log)
            plan = plans[side.label] = run.ready()
            runs[side.label] = run
            own_heads = warm + few if plan.head_steps else 0
            last = own_heads + warm + wanted
            if last > plan.steps:
                raise RequestError(
                    f"--time-only {wanted}: {side.label} has {plan.steps} steps, and timing takes {last} with the untimed ones; "
                    "time fewer, or train it whole"
                )
            run.prepare(range(1, last + 1), None, own_heads)
        for part, rounds in (("heads alone", warm + few), ("step", warm + wanted)):
            taking = [side for side in sides if part == "step" or plans[side.label].head_steps]
            for turn in range(rounds if taking else 0):
                for side in in_turn(taking, turn):
                    steps[side.label] += runs[side.label].advance()
                    kind = f"{part}, untimed" if turn < warm else f"{part} {turn - warm + 1} of {rounds - warm}"
                    message(f"{side.label}: {kind}, {steps[side.label][-1].seconds:.3f} s")
        return {
            side.label: _counted(plans[side.label], steps[side.label], runs[side.label], warm, few) for side in sides
        }
    finally:
        for run in runs.values():
            run.stop()


def _counted(plan: Plan, steps: list[StepTime], run: PausingRun, warm: int, few: int) -> Pace:
    heads = steps[warm : warm + few] if plan.head_steps else []
    full = steps[(warm + few if plan.head_steps else 0) + warm :]
    joules = [[s.joules for s in part if s.joules is not None] for part in (full, heads)]
    told = (median(joules[0]), median(joules[1]) if joules[1] else 0.0) if joules[0] else None
    return counted_up(
        asdict(plan),
        [step.seconds for step in full],
        [step.seconds for step in heads],
        told,
        setup_seconds=run.setup_seconds,
        first_step_seconds=steps[0].seconds,
        peak_bytes=run.peak_bytes,
    )


def marks_of(shares: Sequence[float], steps: int) -> list[int]:
    """Steps of the marks.

    Example:
        >>> marks_of((0.125, 0.5, 1.0), 6)
        [1, 3, 6]
    """
    return sorted({max(1, round(share * steps)) for share in shares})


class TrainingFolder:
    """What is kept of one training: its run, the models at its marks, and its times."""

    def __init__(self, path: Path) -> None:
        self.run, self.models, self.log = path / "run", path / "marks", path / "printed.log"
        self._asked, self._times = path / "asked.json", path / "times.jsonl"
        self._path = path

    def claim(self, side: Side, shares: Sequence[float]) -> None:
        """Take the folder for a training. Raises: RequestError if it holds one of something else."""
        asked = json.loads(json.dumps({"recipe": side.recipe, "marks": list(shares)}))
        if self._asked.exists():
            before = json.loads(self._asked.read_text(encoding="utf-8"))
            for name in asked:
                if asked[name] != before.get(name):
                    raise RequestError(
                        f"--work: {self._path} was begun with {name} = {before.get(name)}, and {side.label} now has "
                        f"{asked[name]}; put it back, remove that folder to train anew, or give another --work"
                    )
            return
        self._path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._asked, lambda stream: stream.write(json.dumps(asked).encode()))

    @property
    def is_done(self) -> bool:
        """Whether the training came to its end."""
        return self._times.exists() and self.recorded().end > 0

    def note(self, **told: object) -> None:
        """Write something down."""
        with self._times.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(told) + "\n")

    def recorded(self) -> Recorded:
        """Return what was written down; of a step that was done twice, the last time."""
        lines = [json.loads(line) for line in self._times.read_text(encoding="utf-8").splitlines()]
        plans = [line["plan"] for line in lines if "plan" in line]
        steps = [line for line in lines if "step" in line]
        return Recorded(
            plan=plans[-1],
            seconds={line["step"]: line["seconds"] for line in steps},
            joules={line["step"]: line["joules"] for line in steps if line["joules"] is not None},
            setup_seconds=tuple(line["setup_seconds"] for line in lines if "plan" in line),
            peak_bytes=max([line["peak_bytes"] for line in lines if "peak_bytes" in line], default=0),
            end=max([line["end"] for line in lines if "end" in line], default=0),
        )

    def training(self, seed: int) -> Training:
        """Return the marks of a training that came to its end; the end is the model that its run left."""
        recorded = self.recorded()
        passed = {step: path for step, path in models_at(self.models).items() if step < recorded.end}
        models = passed | {recorded.end: self.run}
        return Training(
            seed,
            tuple(
                Mark(step, recorded.seconds_at(step), recorded.joules_at(step), path) for step, path in models.items()
            ),
        )


def models_at(folder: Path) -> dict[int, Path]:
    """Models of a folder of marks, by step."""
    found = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*") if path.is_dir()}
    return dict(sorted(found.items()))


def _noted(folder: TrainingFolder, side: Side, seed: int, step: StepTime, clock: _Clock) -> None:
    folder.note(step=step.step, seconds=step.seconds, joules=step.joules)
    clock.step(side.label, seed, step)


class _Clock:
    """Says how far trainings are, and how long they will take at the seconds of their last steps."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._last: dict[str, list[float]] = {}
        self._told = time.monotonic()

    def expect(self, label: str, steps: int) -> None:
        """A side has so many steps."""
        self._steps[label], self._done[label], self._last[label] = steps, 0, []

    def steps(self, label: str) -> int:
        """Steps of a side."""
        return self._steps[label]

    def step(self, label: str, seed: int, step: StepTime) -> None:
        """A step is done."""
        self._done[label] = step.step
        self._last[label] = [*self._last[label], step.seconds][-20:]
        if time.monotonic() - self._told > TELL_SECONDS:
            self.tell(label, seed, step.step)

    def tell(self, label: str, seed: int, step: int) -> None:
        """One line."""
        self._told = time.monotonic()
        last = self._last[label]
        each = f", {median(last):.3g} s a step" if last else ""
        self._message(f"{label}, seed {seed}: step {step} of {self._steps[label]}{each}{self._left()}")

    def _left(self) -> str:
        usual: Mapping[str, float] = {label: median(last) for label, last in self._last.items() if last}
        if len(usual) < len(self._steps):
            return ""
        left = sum((self._steps[label] - self._done[label]) * seconds for label, seconds in usual.items())
        return f"; about {told_seconds(left)} of training with this seed left"


def told_seconds(seconds: float) -> str:
    """Write seconds as people read them.

    Example:
        >>> told_seconds(42.31), told_seconds(610), told_seconds(5000)
        ('42.3 s', '10:10 min', '1:23 h')
    """
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def as_plain(pace: Pace) -> dict[str, Any]:
    """Plain values, for JSON."""
    return asdict(pace) | {"images_per_s": pace.images_per_s}
