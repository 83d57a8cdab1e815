# SPDX-License-Identifier: Apache-2.0
"""The loop: batches in, optimizer steps out. It knows a Method, and no method."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Generic, TypeVar

import psutil
import torch
from torch import nn

from rekindle.core.distributed import all_sum, rank, world_size
from rekindle.core.errors import RekindleError
from rekindle.core.progress import Progress
from rekindle.core.rng import seeded_default
from rekindle.engine.checkpoints import TrainingPlan, load_checkpoint, save_checkpoint
from rekindle.engine.metrics_log import MetricsLog
from rekindle.engine.optimizer import build_optimizer, clip_per_tensor, set_schedule, total_norm
from rekindle.engine.options import EngineOptions, OptimOptions
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.watcher import StepReport, Watcher
from rekindle.methods.base import LossBreakdown, Method, ViewBatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Value = TypeVar("Value")


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


class _Sealed(Generic[Value]):
    """Carries frozen dataclasses through Fabric's wrapper, which would otherwise try to convert their fields."""

    def __init__(self, value: Value) -> None:
        self.value = value


class _Stepped(nn.Module):
    """The method as DDP sees it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, call: _Sealed[tuple[ViewBatch, Progress]]) -> _Sealed[LossBreakdown]:
        """Compute the loss of one share of a step."""
        return _Sealed(self.method(*call.value))


def train(
    method: Method,
    batches: Callable[[int], Iterator[ViewBatch]],
    plan: TrainingPlan,
    *,
    fabric: Fabric,
    optim: OptimOptions,
    engine: EngineOptions,
    folder: RunFolder,
    watcher: Watcher,
    resume: bool,
    max_skipped: int,
    record_skipped: Callable[[frozenset[int]], None],
) -> TrainingOutcome:
    """Train `method` by `plan`, writing checkpoints and metrics into `folder`.

    Args: batches(start_step) yields this process's shares, micro-batch by micro-batch, from that step on; max_skipped,
    unreadable images at which the run gives up; record_skipped, told which they were however the run ends.
    Raises: RekindleError if a loss or gradient is not finite; weights, teacher and centres have then not moved.
    """
    optimizer = build_optimizer(method, optim)
    with warnings.catch_warnings():
        # Newer torch calls the switch forward_sync_buffers; ours must stay off under either name, because the sums that a
        # centre has observed belong to their process until the step ends.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        module, optimizer = fabric.setup(_Stepped(method), optimizer)
    start = load_checkpoint(folder.checkpoint, method, optimizer, plan) if resume and folder.checkpoint.exists() else 0
    if start:
        watcher.message(f"resuming after step {start} of {plan.steps}")
    method.train()
    trained = [p for p in method.parameters() if p.requires_grad]
    is_writer = rank() == 0
    log = MetricsLog(folder.metrics, start_step=start, tensorboard=engine.tensorboard) if is_writer else None
    accumulate = plan.num_slots // world_size()
    clock = _Clock(plan, start)
    skipped: set[int] = set()
    raised: set[str] = set()
    began = last_saved = time.monotonic()
    stream: Iterator[ViewBatch] | None = None
    try:
        with _stop_requested() as stop:
            stream = batches(start)
            for step in range(start, plan.steps):
                values: dict[str, float] = defaultdict(float)
                at_start = Progress(step, plan.steps, plan.steps_per_epoch, plan.seed, num_slots=plan.num_slots)
                lr, decay = set_schedule(optimizer, optim, at_start, plan.batch_size)
                for micro in range(accumulate):
                    with clock.waiting():
                        batch = next(stream).to(fabric.device)
                    skipped.update(batch.skipped)
                    progress = Progress(
                        step, plan.steps, plan.steps_per_epoch, plan.seed, micro * world_size() + rank(), plan.num_slots
                    )
                    with fabric.no_backward_sync(module, enabled=micro < accumulate - 1):
                        with seeded_default(plan.seed, "step", step, progress.slot):
                            breakdown: LossBreakdown = module(_Sealed((batch, progress))).value
                        _require_finite(breakdown, batch, step)
                        fabric.backward(breakdown.total / accumulate)
                    for name, value in _scalars(breakdown).items():
                        values[name] += value / accumulate
                if len(skipped) > max_skipped:
                    raise RekindleError(
                        f"{len(skipped)} images could not be read so far (limit {max_skipped}); see {folder.skipped}, mend "
                        "or remove them, or raise --data.max-unreadable-fraction"
                    )
                norm = clip_per_tensor(trained, optim.clip_norm)
                if not bool(norm.isfinite()):
                    raise RekindleError(
                        f"a gradient is not finite at step {step}; nothing has moved. Lower --optim.lr-per-256 or use "
                        f"--precision fp32, then continue from the last checkpoint with --resume"
                    )
                method.before_step(at_start)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                method.after_step(at_start)
                done = step + 1
                clock.tick()
                watcher.step(clock.report(done, values["loss"], fabric.device))
                if done % engine.log_steps == 0 or done == plan.steps:
                    values.update(lr=lr, weight_decay=decay, grad_norm=float(norm), epoch=step / plan.steps_per_epoch)
                    values["trained_norm"] = total_norm(trained)
                    if log is not None:
                        log.write(done, values, clock.speed())
                    for alarm in set(method.alarms(values)) - raised if done > plan.steps // 10 else ():
                        raised.add(alarm)
                        watcher.message(f"warning at step {done}: {alarm}")
                wants_stop = bool(all_sum(torch.tensor(float(stop.is_set()), device=fabric.device)) > 0)
                is_due = (
                    done % engine.checkpoint_steps == 0
                    if engine.checkpoint_steps
                    else time.monotonic() - last_saved > 60 * engine.checkpoint_minutes
                )
                if is_writer and (is_due or wants_stop or done == plan.steps):
                    save_checkpoint(folder.checkpoint, method, optimizer, plan, done)
                    last_saved = time.monotonic()
                if wants_stop:
                    return TrainingOutcome(done, done == plan.steps, frozenset(skipped), time.monotonic() - began)
    finally:
        if is_writer:
            record_skipped(frozenset(skipped))
        stream = None  # lets go of the workers, also where a traceback keeps this frame alive
        if log is not None:
            log.close()
        watcher.close()
    return TrainingOutcome(plan.steps, True, frozenset(skipped), time.monotonic() - began)


def _scalars(breakdown: LossBreakdown) -> dict[str, float]:
    """Loss, terms and stats as numbers, averaged over the processes."""
    named = {"loss": breakdown.total.detach(), **breakdown.terms, **breakdown.stats}
    stacked = all_sum(torch.stack([v.float() for v in named.values()])) / world_size()
    return dict(zip(named, stacked.tolist(), strict=True))


def _require_finite(breakdown: LossBreakdown, batch: ViewBatch, step: int) -> None:
    if bool(breakdown.total.isfinite()):
        return
    terms = {name: float(value) for name, value in breakdown.terms.items()}
    bad = [name for name, value in terms.items() if not math.isfinite(value)] or list(terms)
    images = ", ".join(str(i) for i in batch.image_index.tolist()[:8])
    raise RekindleError(
        f"the loss is not finite at step {step} (term {', '.join(bad)}; images number {images}); nothing has moved. Lower "
        "--optim.lr-per-256 or use --precision fp32, then continue from the last checkpoint with --resume"
    )


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
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
        return StepReport(
            done,
            self._plan.steps,
            loss,
            speed["images_per_s"],
            speed["data_wait"],
            memory,
            left / max(speed["images_per_s"], 1e-9),
        )
