# SPDX-License-Identifier: Apache-2.0
"""The loop: batches in, optimizer steps out. It knows a Method, and no method."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import psutil
import torch

from rekindle.core.distributed import all_sum, rank, world_size
from rekindle.core.errors import RekindleError
from rekindle.engine.checkpoints import TrainingPlan, has_checkpoint, load_checkpoint, save_checkpoint
from rekindle.engine.energy import energy_meter
from rekindle.engine.metrics_log import MetricsLog, Pictures
from rekindle.engine.optimizer import total_norm
from rekindle.engine.options import EngineOptions, OptimOptions
from rekindle.engine.probe import Probe
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.step import NotFinite, StepOutcome, Stepper, is_out_of_memory
from rekindle.engine.watcher import StepReport, Watcher
from rekindle.methods.base import Method, ViewBatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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


def train(
    method: Method,
    batches: Callable[[int, TrainingPlan], Iterator[ViewBatch]],
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
    record_skipped: Callable[[frozenset[int]], None],
    image_name: Callable[[int], str] = str,
    head_steps: int = 0,
    probe: Probe | None = None,
    draw: Callable[[int], Pictures] | None = None,
) -> TrainingOutcome:
    """Train `method` by `plan`, writing checkpoints and metrics into `folder`.

    Where memory runs out, the shares of a step are halved, once: the batch of a step stays what it is.

    Args: batches(start_step, plan) yields this process's shares, micro-batch by micro-batch, from that step on; precision,
    `fp32` or `bf16`; max_skipped, unreadable images at which the run gives up; record_skipped, told which they were however
    the run ends; image_name, of a position in the source, for messages; head_steps, steps at the start in which heads alone
    move; probe, of the process that writes, measures the model now and then; draw, likewise, makes pictures for TensorBoard of
    the model after a step.
    Raises: RekindleError if a loss or gradient is not finite; weights, teacher and centres have then not moved.
    """
    stepper = Stepper(method, fabric, optim, precision=precision, head_steps=head_steps)
    start = 0
    if resume and has_checkpoint(folder.checkpoint):
        start, plan = load_checkpoint(folder.checkpoint, method, stepper.optimizer, plan)
        watcher.message(f"resuming after step {start} of {plan.steps}")
    is_writer = rank() == 0
    log = MetricsLog(folder.metrics, start_step=start, tensorboard=engine.tensorboard) if is_writer else None
    clock, costs = _Clock(plan, start), _Costs(fabric.device)
    skipped: set[int] = set()
    raised: set[str] = set()
    began = last_saved = time.monotonic()
    stream: Iterator[ViewBatch] | None = None
    was_halved = False
    saved = start

    def next_share() -> ViewBatch:
        assert stream is not None
        with clock.waiting():
            batch = next(stream).to(fabric.device)
        skipped.update(batch.skipped)
        if len(skipped) > max_skipped:
            raise RekindleError(
                f"{len(skipped)} images could not be read so far (limit {max_skipped}); see {folder.skipped}, mend "
                "or remove them, or raise --data.max-unreadable-fraction"
            )
        return batch

    def attempt(step: int) -> StepOutcome | None:
        """The step, or None if memory ran out and smaller shares may mend it."""
        try:
            return stepper.step(step, plan, next_share)
        except NotFinite as error:
            if log is not None and step > saved:
                stepper.abandon()
                log.sync()
                save_checkpoint(folder.checkpoint, method, stepper.optimizer, plan, step)
            raise RekindleError(
                f"{error}. {_named(error.images, image_name, folder if is_writer else None)} The last good step is {step}"
                f"{', and its checkpoint is written' if step else ''}. Look at these images, lower --optim.lr-per-256 or use "
                "--precision fp32, then continue with --resume"
            ) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if was_halved or world_size() > 1 or share_size(plan) == 1:
                raise RekindleError(
                    f"memory ran out at step {step} with shares of {share_size(plan)} images ({error}). Use a smaller "
                    "--engine.micro-batch-size, --engine.recompute-blocks, or a smaller model, then --resume"
                ) from error
        return None  # outside of the handler: its frames would keep the activations alive

    try:
        with _stop_requested() as stop:
            stream = batches(start, plan)
            step = start
            if probe is not None:
                probe.open(folder, start, tensorboard=engine.tensorboard)
                if start == 0:
                    probe.run(0, folder, watcher)
            while step < plan.steps:
                outcome = attempt(step)
                if outcome is None:
                    stream = None  # lets go of its workers before the next ones start
                    stepper.abandon()
                    plan, was_halved = _halved(plan), True
                    stream, clock = batches(step, plan), _Clock(plan, step)
                    watcher.message(
                        f"memory ran out at step {step}; going on with shares of {share_size(plan)} images. The batch stays "
                        f"{plan.batch_size}; averages over the patches of a share now run over these shares"
                    )
                    continue
                step += 1
                clock.tick()
                watcher.step(clock.report(step, outcome.values["loss"], fabric.device))
                if step % engine.log_steps == 0 or step == plan.steps:
                    values = outcome.values | {
                        "lr": outcome.lr,
                        "weight_decay": outcome.weight_decay,
                        "grad_norm": outcome.grad_norm,
                        "epoch": (step - 1) / plan.steps_per_epoch,
                        "trained_norm": total_norm(stepper.trained),
                    }
                    if log is not None:
                        log.write(step, values, clock.speed() | costs.so_far())
                    for alarm in set(method.alarms(values)) - raised if step > plan.steps // 10 else ():
                        raised.add(alarm)
                        watcher.message(f"warning at step {step}: {alarm}")
                if probe is not None and probe.is_due(step, plan.steps):
                    probe.run(step, folder, watcher)
                if log is not None and draw is not None and engine.pictures_every:
                    if step % engine.pictures_every == 0 or step == plan.steps:
                        log.show(step, draw(step))
                wants_stop = bool(all_sum(torch.tensor(float(stop.is_set()), device=fabric.device)) > 0)
                is_due = (
                    step % engine.checkpoint_steps == 0
                    if engine.checkpoint_steps
                    else time.monotonic() - last_saved > 60 * engine.checkpoint_minutes
                )
                if log is not None and (is_due or wants_stop or step == plan.steps):
                    folder.require_still_there()
                    log.sync()
                    if probe is not None:
                        probe.sync()
                    save_checkpoint(folder.checkpoint, method, stepper.optimizer, plan, step)
                    last_saved, saved = time.monotonic(), step
                if wants_stop:
                    return TrainingOutcome(step, step == plan.steps, frozenset(skipped), time.monotonic() - began)
    finally:
        if is_writer:
            record_skipped(frozenset(skipped))
        stream = None  # lets go of the workers, also where a traceback keeps this frame alive
        if log is not None:
            log.close()
        if probe is not None:
            probe.close(watcher)
        watcher.close()
    return TrainingOutcome(plan.steps, True, frozenset(skipped), time.monotonic() - began)


def share_size(plan: TrainingPlan) -> int:
    """Images that one process computes at a time."""
    return plan.batch_size // plan.num_slots


def _named(images: list[int], image_name: Callable[[int], str], folder: RunFolder | None) -> str:
    """Name the images of a step that failed: some in the sentence, all of them in a file of the folder."""
    names = [image_name(i) for i in images]
    shown = f"Images: {', '.join(names[:4])}"
    if folder is None:
        return f"{shown}."
    folder.write_text(folder.not_finite, "".join(f"{name}\n" for name in names))
    return f"{shown}{f' and {len(names) - 4} more' if len(names) > 4 else ''} (all in {folder.not_finite})."


def _halved(plan: TrainingPlan) -> TrainingPlan:
    """The plan with shares of half the size, or of the largest divisor below."""
    size = share_size(plan)
    smaller = next(n for n in range(size // 2, 0, -1) if size % n == 0)
    return replace(plan, num_slots=plan.batch_size // smaller)


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the step in hand ends and a checkpoint is written."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if event.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Clock:
    """Speed over the last steps, share of it spent waiting for data, time to the end."""

    def __init__(self, plan: TrainingPlan, start: int) -> None:
        self._plan = plan
        self._marks: deque[tuple[float, float]] = deque([(time.perf_counter(), 0.0)], maxlen=50)
        self._waited = 0.0
        self._done = start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def tick(self) -> None:
        self._done += 1
        self._marks.append((time.perf_counter(), self._waited))

    def speed(self) -> dict[str, float]:
        (first, waited_before), (last, waited) = self._marks[0], self._marks[-1]
        seconds = max(last - first, 1e-9)
        return {
            "images_per_s": (len(self._marks) - 1) * self._plan.batch_size / seconds,
            "data_wait": (waited - waited_before) / seconds,
        }

    def report(self, done: int, loss: float, device: torch.device) -> StepReport:
        speed = self.speed()
        left = (self._plan.steps - done) * self._plan.batch_size
        return StepReport(
            done,
            self._plan.steps,
            loss,
            speed["images_per_s"],
            speed["data_wait"],
            _memory_bytes(device),
            left / max(speed["images_per_s"], 1e-9),
        )


class _Costs:
    """What this process has used since the start of the training."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._began = device, time.monotonic()
        self._joules = energy_meter(device)

    def so_far(self) -> dict[str, float]:
        """Seconds, memory (resident, or the GPU's peak), and joules where the device tells."""
        found = {"seconds": time.monotonic() - self._began, "memory_bytes": float(_memory_bytes(self._device))}
        return found if self._joules is None else found | {"energy_joules": self._joules()}


def _memory_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
