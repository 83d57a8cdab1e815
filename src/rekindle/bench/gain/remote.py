# SPDX-License-Identifier: Apache-2.0
"""The parent's end of a training that pauses (`child`): starts it, lets it go on to its next pause, and watches what it uses.

`rekindle.bench.timing` runs sides in processes of this environment, and a round of theirs is one call. Here a side may be another
environment's, and a round is a part of one long run; turns, threads and the watch over memory are those of `timing`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rekindle.bench.gain.sides import Side
from rekindle.bench.timing import PeakWatch, threads_fixed
from rekindle.core.errors import RekindleError, RequestError
from rekindle.engine.energy import energy_meter

CHILD = Path(__file__).with_name("child.py")
STOPPING_SECONDS = 300.0
"""What a step and its checkpoint may take after a run was asked to stop, before it is ended."""


@dataclass(frozen=True)
class StepTime:
    """One step: its number, its seconds, and its joules where the device tells."""

    step: int
    seconds: float
    joules: float | None


@dataclass(frozen=True)
class Plan:
    """How a run is cut into steps, and what it runs with.

    Attributes:
        steps: of the whole run.
        batch_size: images of a step.
        head_steps: steps at the start in which heads alone move.
        facts: versions, threads, device, precision.
    """

    steps: int
    batch_size: int
    head_steps: int
    facts: dict[str, Any]


class PausingRun:
    """A training in a process of its own, which goes on when it is told to.

    Args: side; seed; out, folder of the run; resume, go on with what is there; threads, None: the run's own choice; log, file for
    what it prints.
    """

    def __init__(self, side: Side, seed: int, out: Path, *, resume: bool, threads: int | None, log: Path) -> None:
        self.side, self.seed = side, seed
        self._began = time.perf_counter()
        self._log = log
        with log.open("a") as errors, threads_fixed(threads) if threads else nullcontext():
            self._process = subprocess.Popen(
                [side.python, "-P", "-W", "ignore", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which then asks the run to stop
            )
        self.peak_bytes = 0
        self.setup_seconds = 0.0
        self.is_finished = False
        self.steps_done = 0
        self._watch = PeakWatch(self._process.pid)
        request = {"file": side.recipe, "asked": side.asked(seed, out), "label": side.label}
        self._say(json.dumps(request | {"resume": resume, "threads": threads}))

    def ready(self) -> Plan:
        """Wait until the run is before its first step."""
        told = self._hear()["ready"]
        self.setup_seconds = time.perf_counter() - self._began
        facts = {name: told[name] for name in ("rekindle", "torch", "threads", "device", "precision")}
        self._is_gpu = told["device"] == "cuda"
        return Plan(told["steps"], told["batch_size"], told["head_steps"], facts)

    def prepare(self, pauses: Sequence[int], models: Path | None, head_steps: int | None = None) -> None:
        """Say after which steps to pause, and where the models of these steps go."""
        asked = {"pauses": [*pauses], "models": None if models is None else str(models), "head_steps": head_steps}
        self._say(json.dumps(asked))

    def advance(self, tell: Callable[[StepTime], None] = lambda step: None) -> list[StepTime]:
        """Go on to the next pause, or to the end; return the steps that were done. Args: tell, called after each."""
        done: list[StepTime] = []
        meter = energy_meter(torch.device("cuda" if self._is_gpu else "cpu"))
        before = 0.0
        self._say("go")
        with self._watch:
            while True:
                told = self._hear()
                if "step" in told:
                    now = None if meter is None else meter()
                    joules, before = (None, 0.0) if now is None else (now - before, now)
                    done.append(StepTime(told["step"], told["seconds"], joules))
                    self.steps_done = told["step"]
                    if self._is_gpu:
                        self.peak_bytes = max(self.peak_bytes, told["memory_bytes"])
                    tell(done[-1])
                if "paused" in told or "end" in told:
                    break
        if not self._is_gpu:
            self.peak_bytes = max(self.peak_bytes, self._watch.peak)
        if "end" in told:
            self.steps_done, self.is_finished = told["end"]["steps"], told["end"]["is_finished"]
        return done

    def finish(self) -> None:
        """Let a run that has paused after its last step write its model. Raises: RekindleError if it does not finish."""
        if not self.is_finished:
            self.advance()
        if not self.is_finished:
            raise RekindleError(
                f"{self._named} stopped after step {self.steps_done}; the same command goes on from there"
            )

    def stop(self) -> None:
        """Have the run write its checkpoint and end, if it has not."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended
        if self._process.poll() is None and not self.is_finished:
            self._process.terminate()
        try:
            self._process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def _named(self) -> str:
        return f"bench gain: '{self.side.label}', seed {self.seed},"

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            if told["is_request"]:
                raise RequestError(f"{self._named} cannot begin: {told['error']}")
            raise RekindleError(f"{self._named} failed:\n{told['error']}")
        return told

    def _ended(self) -> RekindleError:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").splitlines()[-5:]
        said = "\n".join(lines) or "it said nothing; was memory short?"
        return RekindleError(f"{self._named} ended with exit code {code}:\n{said}")
