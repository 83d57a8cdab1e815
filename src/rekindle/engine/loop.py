# SPDX-License-Identifier: Apache-2.0
"""Training loop: batches in, optimizer steps out. It knows a Method, and no method."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

import torch

from rekindle.core.distributed import all_sum, rank, world_size
from rekindle.core.errors import RekindleError
from rekindle.core.heap import SteadyHeap
from rekindle.core.short_memory import is_out_of_memory
from rekindle.engine.checkpoints import TrainingPlan, has_checkpoint, load_checkpoint, save_checkpoint
from rekindle.engine.metrics_log import MetricsLog, Pictures
from rekindle.engine.optimizer import total_norm
from rekindle.engine.options import EngineOptions, OptimOptions
from rekindle.engine.probe import Probe
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.speed import SpeedClock, UsedResources
from rekindle.engine.step import FirstStep, NotFinite, StepOutcome, Stepper
from rekindle.engine.watcher import Watcher
from rekindle.methods.base import Method, ViewBatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches: TypeAlias = Callable[[int, TrainingPlan], Iterator[ViewBatch]]
"""This process's micro-batches from a step on, as the plan cuts them."""


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended.

    Attributes:
        steps_done: optimizer steps done, counting those before a resume.
        is_finished: False if it was asked to stop early; the checkpoint is then written.
        skipped: positions of images that could not be read.
        seconds: time in this process.
    """

    steps_done: int
    is_finished: bool
    skipped: frozenset[int]
    seconds: float


LONG_STEP_S = 10.0
"""A first step that takes longer is told after its first micro-batch."""


@dataclass(frozen=True)
class RunHooks:
    """What a run does beside its steps, given by those who know images and models.

    Attributes:
        record_skipped: takes the positions of the images that could not be read, however the run ends.
        image_name: of a position in the source, for messages.
        probe: of the process that writes; measures the model now and then.
        draw: likewise; makes pictures for TensorBoard of the model after a step.
    """

    record_skipped: Callable[[frozenset[int]], None] = lambda skipped: None
    image_name: Callable[[int], str] = str
    probe: Probe | None = None
    draw: Callable[[int], Pictures] | None = None


def train(
    method: Method,
    batches: Batches,
    plan: TrainingPlan,
    *,
    fabric: Fabric,
    precision: str,
    optim: OptimOptions,
    engine: EngineOptions,
    folder: RunFolder,
    watcher: Watcher,
    resume: bool,
    max_skipped: int,
    hooks: RunHooks,
    head_steps: int = 0,
) -> TrainingOutcome:
    """Train `method` by `plan`, writing checkpoints and metrics into `folder`.

    Where memory runs out, the micro-batches of a step are halved, once: the batch of a step stays what it is.

    Args:
        method: what learns.
        batches: (start_step, plan) -> this process's micro-batches from that step on.
        plan: how the run is cut into steps.
        fabric: launched.
        precision: `fp32` or `bf16`.
        optim: optimizer and schedule.
        engine: checkpoints, logs.
        folder: of the run.
        watcher: who is told how it goes.
        resume: go on from the folder's checkpoint, if there is one.
        max_skipped: unreadable images at which the run gives up.
        hooks: what is done beside the steps.
        head_steps: steps at the start in which heads alone move.

    Raises: RekindleError if a loss or gradient is not finite; weights, teacher and centres have then not moved.
    """
    stepper = Stepper(method, fabric, optim, precision=precision, head_steps=head_steps)
    start = 0
    if resume and has_checkpoint(folder.checkpoint):
        asked = plan.num_slots
        start, plan = load_checkpoint(folder.checkpoint, method, stepper.optimizer, plan)
        if engine.micro_batch_size is not None:  # where memory was short, smaller ones may be asked for
            plan = replace(plan, num_slots=max(asked, plan.num_slots))
        watcher.message(f"resuming after step {start} of {plan.steps}")
    return _Training(stepper, batches, plan, fabric.device, engine, folder, watcher, max_skipped, hooks).go_on(start)


class _Training:
    """A run from one step on, in this process."""

    def __init__(
        self,
        stepper: Stepper,
        batches: Batches,
        plan: TrainingPlan,
        device: torch.device,
        engine: EngineOptions,
        folder: RunFolder,
        watcher: Watcher,
        max_skipped: int,
        hooks: RunHooks,
    ) -> None:
        self._stepper, self._batches, self._plan, self._device = stepper, batches, plan, device
        self._engine, self._folder, self._watcher, self._hooks = engine, folder, watcher, hooks
        self._max_skipped = max_skipped
        self._skipped: set[int] = set()
        self._raised: set[str] = set()
        self._stream: Iterator[ViewBatch] | None = None
        self._was_halved = False
        self._log: MetricsLog | None = None  # of the process that writes
        self._used, self._heap = UsedResources(device), SteadyHeap()
        self._began = self._last_saved = time.monotonic()

    def go_on(self, start: int) -> TrainingOutcome:
        """Train from step `start` to the plan's end, or until the process is asked to stop."""
        if rank() == 0:
            self._log = MetricsLog(self._folder.metrics, start_step=start, tensorboard=self._engine.tensorboard)
        try:
            with _stop_requested(self._tell_stop) as stop:
                step = self._steps_from(start, stop)
        finally:
            if rank() == 0:
                self._hooks.record_skipped(frozenset(self._skipped))
            self._stream = None  # lets go of the workers, also where a traceback keeps this frame alive
            if self._log is not None:
                self._log.close()
            if self._hooks.probe is not None:
                self._hooks.probe.close(self._watcher)
            self._watcher.close()
        seconds = time.monotonic() - self._began
        return TrainingOutcome(step, step == self._plan.steps, frozenset(self._skipped), seconds)

    def _tell_stop(self) -> None:
        self._watcher.message(
            "asked to stop: this step ends first, then the checkpoint is written (Ctrl-C again: at once)"
        )

    def _steps_from(self, start: int, stop: threading.Event) -> int:
        self._saved = self._started = start
        self._start_reading(start)
        step, probe = start, self._hooks.probe
        if probe is not None:
            probe.open(self._folder, start, self._watcher, tensorboard=self._engine.tensorboard)
            if start == 0:
                probe.run(0, self._folder, self._watcher)
        while step < self._plan.steps:
            outcome = self._attempt(step)
            if outcome is None:
                self._halve(step)
                continue
            step += 1
            self._heap.after_step()
            self._clock.tick()
            self._watcher.step(self._clock.report(step, outcome.values["loss"], self._device))
            if step % self._engine.log_steps == 0 or step == self._plan.steps:
                self._write(step, outcome)
            if probe is not None and probe.is_due(step, self._plan.steps):
                probe.run(step, self._folder, self._watcher)
            self._draw(step)
            wants_stop = bool(all_sum(torch.tensor(float(stop.is_set()), device=self._device)) > 0)
            if wants_stop or step == self._plan.steps or self._is_checkpoint_due(step):
                self._save(step)
            if wants_stop:
                break
        return step

    def _start_reading(self, step: int) -> None:
        self._stream, self._clock = self._batches(step, self._plan), SpeedClock(self._plan, step)

    def _next_micro_batch(self) -> ViewBatch:
        assert self._stream is not None
        with self._clock.waiting():
            batch = next(self._stream).to(self._device)
        self._skipped.update(batch.skipped)
        if len(self._skipped) > self._max_skipped:
            raise RekindleError(
                f"{len(self._skipped)} images could not be read so far (limit {self._max_skipped}); see "
                f"{self._folder.skipped}, mend or remove them, or raise --data.max-unreadable-fraction"
            )
        return batch

    def _tell_first_look(self, seconds: float) -> None:
        """Where what comes before the first loss takes long, say so: the teacher's pass over all images of the step."""
        if seconds > LONG_STEP_S:
            speed = self._plan.batch_size / seconds
            self._watcher.message(
                f"before any loss the teacher looks at all {self._plan.batch_size} images of a step: {seconds:.0f} s, at "
                f"{speed:.2g} images/s; the speed of a whole step follows"
            )

    def _tell_first_estimate(self, took: float, seconds: float) -> None:
        """Where the first step will take long, say so once its first micro-batch is through: the first line of speed."""
        if seconds > LONG_STEP_S:
            done, whole = (
                micro_batch_size(self._plan) * world_size(),
                timedelta(seconds=round(seconds * self._plan.steps)),
            )
            speed = self._plan.batch_size / seconds
            self._watcher.message(
                f"the first {done} of {self._plan.batch_size} images took {took:.1f} s: at {speed:.2g} images/s "
                f"a step takes {seconds:.0f} s, all {self._plan.steps} steps {whole}; the first micro-batch is often the slowest"
            )

    def _attempt(self, step: int) -> StepOutcome | None:
        """The step, or None if memory ran out and smaller micro-batches may mend it."""
        try:
            tell = FirstStep(self._tell_first_look, self._tell_first_estimate) if step == self._started else None
            return self._stepper.step(step, self._plan, self._next_micro_batch, tell)
        except NotFinite as error:
            if self._log is not None and step > self._saved:
                self._stepper.abandon()
                self._log.sync()
                self._write_checkpoint(step)
            raise RekindleError(
                f"{error}. {self._named(error.images)} The last good step is {step}"
                f"{', and its checkpoint is written' if step else ''}. Look at these images, lower --optim.lr-per-256 or use "
                "--precision fp32, then continue with --resume"
            ) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = micro_batch_size(self._plan)
            if self._was_halved or world_size() > 1 or size == 1:
                raise RekindleError(
                    f"memory ran out at step {step} with micro-batches of {size} images ({error}). Use a smaller "
                    "--engine.micro-batch-size, --engine.recompute-blocks, or a smaller model, then --resume"
                ) from error
        return None  # outside of the handler: its frames would keep the activations alive

    def _halve(self, step: int) -> None:
        """Go on with micro-batches of half the size, or of the largest divisor below."""
        self._stream = None  # lets go of its workers before the next ones start
        self._stepper.abandon()
        size = micro_batch_size(self._plan)
        smaller = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        self._plan, self._was_halved = replace(self._plan, num_slots=self._plan.batch_size // smaller), True
        self._start_reading(step)
        self._watcher.message(
            f"memory ran out at step {step}; going on with micro-batches of {smaller} images. The batch stays "
            f"{self._plan.batch_size}, and so does its loss"
        )

    def _write(self, step: int, outcome: StepOutcome) -> None:
        """Log the values of a step, and tell alarms that the method raises for the first time."""
        values = outcome.values | {
            "lr": outcome.lr,
            "weight_decay": outcome.weight_decay,
            "grad_norm": outcome.grad_norm,
            "epoch": (step - 1) / self._plan.steps_per_epoch,
            "trained_norm": total_norm(self._stepper.trained),
        }
        if self._log is not None:
            self._log.write(step, values, self._clock.speed() | self._used.so_far())
        alarms = set(self._stepper.method.alarms(values)) if step > self._plan.steps // 10 else set()
        for alarm in alarms - self._raised:
            self._raised.add(alarm)
            self._watcher.message(f"warning at step {step}: {alarm}")

    def _draw(self, step: int) -> None:
        every = self._engine.pictures_every
        if self._log is None or self._hooks.draw is None or not every:
            return
        if step % every == 0 or step == self._plan.steps:
            self._log.show(step, self._hooks.draw(step))

    def _is_checkpoint_due(self, step: int) -> bool:
        if self._engine.checkpoint_steps:
            return step % self._engine.checkpoint_steps == 0
        return time.monotonic() - self._last_saved > 60 * self._engine.checkpoint_minutes

    def _save(self, step: int) -> None:
        """Write log, probe and checkpoint to disk, in the process that writes."""
        if self._log is None:
            return
        self._folder.require_still_there()
        self._log.sync()
        if self._hooks.probe is not None:
            self._hooks.probe.sync()
        self._write_checkpoint(step)
        self._last_saved, self._saved = time.monotonic(), step

    def _write_checkpoint(self, step: int) -> None:
        stepper = self._stepper
        save_checkpoint(self._folder.checkpoint, stepper.method, stepper.optimizer, self._plan, step)

    def _named(self, images: list[int]) -> str:
        """Name the images of a step that failed: some in the sentence, all of them in a file of the folder."""
        names = [self._hooks.image_name(i) for i in images]
        shown = f"Images: {', '.join(names[:4])}"
        if self._log is None:
            return f"{shown}."
        path = self._folder.not_finite
        self._folder.write_text(path, "".join(f"{name}\n" for name in names))
        return f"{shown}{f' and {len(names) - 4} more' if len(names) > 4 else ''} (all in {path})."


def micro_batch_size(plan: TrainingPlan) -> int:
    """Images that one process computes at a time."""
    return plan.batch_size // plan.num_slots


@contextmanager
def _stop_requested(tell: Callable[[], None]) -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the step in hand ends and a checkpoint is written. Args: tell, says so."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if event.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not event.is_set():
            event.set()
            tell()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
