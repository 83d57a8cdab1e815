# SPDX-License-Identifier: Apache-2.0
"""Forecast of a run from a few of its own steps: memory, time, disk, and what was chosen for so many images."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import psutil
import torch

from rekindle.core.errors import RequestError
from rekindle.engine.loop import micro_batch_size
from rekindle.engine.optimizer import warmup_steps
from rekindle.engine.step import Stepper
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.pretraining.options import Resolved
from rekindle.pretraining.run import count_trained, head_warmup_steps, needed_bytes, prepare


@dataclass(frozen=True)
class Forecast:
    """What a run would take on this machine.

    Attributes:
        images: in the source.
        steps: optimizer steps, of which `warmup_steps` raise the learning rate and `head_steps` move heads alone.
        epochs: passes over the images.
        batch_size: images a step; share_size, of them computed at a time.
        trained_parameters: numbers that training moves.
        step_seconds: median of the measured steps, `measured_steps` of them, after one that was not counted; None: not measured.
        images_per_s: at that speed.
        total_seconds: of all steps, without probes, checkpoints and what comes before the first step.
        memory_bytes: peak of a GPU, or what the process holds, while measuring.
        disk_bytes: for checkpoints and the model.
        chosen: option -> value and why, where a recipe decided.
    """

    images: int
    steps: int
    warmup_steps: int
    head_steps: int
    epochs: float
    batch_size: int
    share_size: int
    trained_parameters: int
    measured_steps: int
    step_seconds: float | None
    images_per_s: float | None
    total_seconds: float | None
    memory_bytes: int | None
    disk_bytes: int
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def forecast(resolved: Resolved, *, measured_steps: int = 3, watcher: Watcher | None = None) -> Forecast:
    """Prepare a run as `pretrain` does, do a few of its steps, and say what all of them would take. Nothing is written.

    Args: measured_steps, steps whose time is taken; 0 measures nothing.
    Raises: RequestError for a run that cannot be, or for more than one process.
    """
    watcher = watcher or LoggingWatcher()
    if resolved.options.devices > 1:
        raise RequestError("--devices: a plan is measured in one process; leave it out, and divide by the devices")
    prepared = prepare(resolved, watcher)
    options, plan, method = prepared.resolved.options, prepared.plan, prepared.method
    head_steps = head_warmup_steps(options, plan, method, watcher)
    optim = options.optim
    seconds: list[float] = []
    memory = None
    if measured_steps:
        device = prepared.fabric.device
        stepper = Stepper(method, prepared.fabric, optim, precision=prepared.machine.precision, head_steps=0)
        # From the middle of the run: there everything moves. More steps than the run has are its own, again and again.
        middle = plan.steps // 2
        stream = prepared.stream(watcher)
        batches = chain.from_iterable(stream(middle, plan) for _ in range(measured_steps + 1))
        for number in range(measured_steps + 1):
            began = time.perf_counter()
            stepper.step(min(middle + number, plan.steps - 1), plan, lambda: next(batches).to(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
            watcher.message(
                f"step {number} of {measured_steps}: {seconds[-1]:.2f} s{' (not counted)' if not number else ''}"
            )
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
    median = statistics.median(seconds[1:]) if seconds else None
    chosen = {
        name: {"value": _value(options.model_dump(mode="json"), name), "why": why}
        for name, why in prepared.resolved.reasons.items()
    }
    return Forecast(
        images=len(prepared.images),
        steps=plan.steps,
        warmup_steps=warmup_steps(optim, plan.steps, plan.steps_per_epoch),
        head_steps=head_steps,
        epochs=plan.steps / plan.steps_per_epoch,
        batch_size=plan.batch_size,
        share_size=micro_batch_size(plan),
        trained_parameters=count_trained(method),
        measured_steps=measured_steps,
        step_seconds=median,
        images_per_s=None if median is None else plan.batch_size / median,
        total_seconds=None if median is None else median * plan.steps,
        memory_bytes=memory,
        disk_bytes=needed_bytes(method),
        chosen=chosen,
    )


def _value(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree
