# SPDX-License-Identifier: Apache-2.0
"""A training that pauses: the program that each side of `rekindle bench gain` runs in a process of its own.

It is run as a file, by the python of any environment, so it asks of the Rekindle there no more than `pretrain`, `resolve` and the
names `train` and `ModelWriter` of the module `rekindle.pretraining.run`, and nothing of this package. One JSON a line each way:

    parent: the request {file, asked, label, resume, threads}
    child:  {ready: steps, batch_size, head_steps, ...}, before the first step
    parent: {pauses: steps to pause after, models: folder for the model at each of them, or null, head_steps: or null}, then "go"
    child:  {step, seconds, memory_bytes} after every step; {paused: step} at a pause, until the parent says "go" again
    child:  {end: steps, is_finished}, or {error, is_request}

Seconds of a step count from the end of the step before, or of the pause before. Where the parent's end of the pipe is closed, the
run stops as it does for Ctrl-C: it writes its checkpoint, and can be resumed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any


def main() -> None:
    """Train what the parent asks for."""
    says = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no message
    talk = Talk(says)
    request = json.loads(sys.stdin.readline())
    try:
        talk.say(end=trained(request, talk))
    except BaseException as error:
        is_request = type(error).__name__ == "RequestError"
        talk.say(error=str(error) if is_request else traceback.format_exc(), is_request=is_request)


def trained(request: dict[str, Any], talk: Talk) -> dict[str, object]:
    """Train as a request says, with pauses; return how it ended."""
    import torch

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    options: Any = importlib.import_module("rekindle.pretraining.options")
    training: Any = importlib.import_module("rekindle.pretraining.run")
    resolved = options.resolve(request["file"], request["asked"], file_name=request["label"])
    pausing = Pausing(talk)
    training.ModelWriter, real_writer = pausing.remembering(training.ModelWriter), training.ModelWriter
    training.train, real_train = pausing.starting(training.train), training.train
    try:
        result = training.pretrain(resolved, resume=request["resume"], watcher=pausing)
    finally:
        training.ModelWriter, training.train = real_writer, real_train
    return {"steps": result.steps, "is_finished": result.is_finished}


class Talk:
    """Lines to and from the parent."""

    def __init__(self, says: IO[str]) -> None:
        self._says = says

    def say(self, **told: object) -> None:
        """Tell the parent, if it is still there."""
        try:
            self._says.write(json.dumps(told) + "\n")
            self._says.flush()
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)

    def hear(self) -> str:
        """What the parent says next; without a parent, ask the run to stop."""
        line = sys.stdin.readline()
        if not line:
            os.kill(os.getpid(), signal.SIGTERM)
        return line


class Pausing:
    """A watcher that tells each step and waits where it is told to."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._since = 0.0
        self._pauses: set[int] = set()
        self._models: str | None = None
        self._writer: Any = None

    def remembering(self, writer: Any) -> Any:
        """Return what makes a run's writer of models, and keeps it."""

        def made(*given: Any, **named: Any) -> Any:
            self._writer = writer(*given, **named)
            return self._writer

        return made

    def starting(self, train: Any) -> Any:
        """Return the loop, which begins when the parent says so."""

        def begun(*given: Any, **named: Any) -> Any:
            plan, heads = given[2], int(named.get("head_steps", 0))
            told = {"steps": plan.steps, "batch_size": plan.batch_size, "head_steps": heads}
            self._talk.say(ready=told | _software(named))
            asked = json.loads(self._talk.hear() or "{}")
            self._pauses, self._models = set(asked.get("pauses", ())), asked.get("models")
            if asked.get("head_steps") is not None and heads:
                named["head_steps"] = asked["head_steps"]
            self._talk.hear()
            self._since = time.perf_counter()
            return train(*given, **named)

        return begun

    def message(self, text: str) -> None:
        """Lines of progress stand in the run's own log."""

    def step(self, report: Any) -> None:
        """Tell a step; where it is one to pause after, write the model and wait."""
        took = time.perf_counter() - self._since
        self._talk.say(step=report.step, seconds=took, memory_bytes=report.memory_bytes)
        if report.step in self._pauses:
            if self._models is not None and report.step < report.total:
                self._writer.save(Path(self._models, f"step-{report.step:06}"), report.step)
            self._talk.say(paused=report.step)
            self._talk.hear()
        self._since = time.perf_counter()

    def close(self) -> None:
        """Nothing to do."""


def _software(named: dict[str, Any]) -> dict[str, object]:
    import torch

    from rekindle import __version__

    return {
        "rekindle": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(named["fabric"].device.type),
        "precision": str(named["precision"]),
    }


if __name__ == "__main__":
    main()
