# SPDX-License-Identifier: Apache-2.0
"""Epoch benchmark: whole training steps with their data, the first epoch, which decodes, and the second.

A round is a run of two epochs through `rekindle.pretraining.run`, once with an image store and once without. What is reported is
the time between the loop's start and its steps, as its own watcher is told; building the model and writing it are left out.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from rekindle.bench.options import BenchOptions
from rekindle.bench.stage import taken
from rekindle.bench.synthetic import write_images
from rekindle.bench.table import bench_of, sides_of
from rekindle.bench.timing import SideTimes, measure
from rekindle.data.images import find_images
from rekindle.engine.watcher import StepReport
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import Resolved, resolve
from rekindle.pretraining.run import pretrain
from rekindle.pretraining.steps import plan_steps

MOST_STEPS = 24
"""Steps of an epoch at most: the loop tells its waits over its last 50 steps, and two epochs must fit."""
EPOCHS = ("first epoch", "second epoch")


def run(options: BenchOptions, case: Mapping[str, object], message: Callable[[str], None]) -> list[SideTimes]:
    """Measure the sides, and make a row of each one's epochs."""
    rounds = options.rounds or bench_of(options).rounds
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
        prepared = {**case, "source": str(images_of(case, Path(scratch)))}
        runs = measure(
            sides_of(options), prepared, rounds=rounds, warmup=options.warmup, threads=options.threads, message=message
        )
    return [_row(side, number, options.warmup) for side in runs for number in range(len(EPOCHS))]


def images_of(case: Mapping[str, object], scratch: Path) -> Path:
    """As many images as fit: made, or the first ones of the case's own, as a list."""
    count = min(taken(case, "num_images", int), MOST_STEPS * taken(case, "batch_size", int))
    if not case["images"]:
        size = {"height": taken(case, "height", int), "width": taken(case, "width", int)}
        return write_images(scratch / "images", count, seed=taken(case, "seed", int), **size)
    found = find_images(taken(case, "images", str))
    if any(ref.member for ref in found.refs):
        return Path(taken(case, "images", str))
    path = scratch / "images.txt"
    path.write_text("\n".join(str(Path(ref.path).absolute()) for ref in found.refs[:count]), encoding="utf-8")
    return path


def _row(side: SideTimes, number: int, warmup: int) -> SideTimes:
    epochs = side.facts["epochs"]
    assert isinstance(epochs, list)
    told = [epoch[number] for epoch in epochs[warmup:]]
    waits = [round(epoch["wait"] / epoch["seconds"], 3) for epoch in told]
    return SideTimes(
        f"{side.label}, {EPOCHS[number]}",
        tuple(epoch["seconds"] for epoch in told),
        told[0]["images"],
        side.setup_seconds,
        side.baseline_bytes,
        side.peak_bytes,
        {"data_wait": waits},
    )


class TwoEpochs:
    """A side that trains for two epochs; its subclasses say how much is kept."""

    STORE_GIB: ClassVar[float | None]
    METHOD: ClassVar[str] = ""
    """Method, where a side is one; otherwise the case's, or glare."""

    def __init__(self, case: Mapping[str, object]) -> None:
        # A spawned process spawns its own children by default; a run's data workers start as they do for a user.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        self._case = case
        self._epochs: list[list[dict[str, float]]] = []

    def run(self) -> int:
        """Train, from a folder of images to a model."""
        with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as scratch:
            resolved = self._resolved(Path(scratch, "run"))
            plan = plan_steps(resolved.options, len(find_images(resolved.options.images)), machine_of(resolved.options))
            watcher = _Notes(plan.batch_size, plan.steps_per_epoch)
            pretrain(resolved, watcher=watcher)
        self._epochs.append(watcher.epochs())
        return plan.steps * plan.batch_size

    def _resolved(self, out: Path) -> Resolved:
        return resolve({}, self.asked(out), file_name="bench")

    def asked(self, out: Path) -> dict[str, object]:
        """Return the options of the run."""
        case = self._case
        method = self.METHOD or str(case["method"] or "glare")
        return {
            "images": case["source"],
            "out": str(out),
            "backbone": case["backbone"],
            "method": method,
            "train": "all",  # a random backbone cannot be frozen
            "init": "random",
            "epochs": 2,
            "batch_size": case["batch_size"],
            "accelerator": "cpu" if case["device"] == "cpu" else "gpu",
            "precision": case["precision"],
            "seed": case["seed"],
            "views": case["views"],
            "data": {"store_gib": self.STORE_GIB},
            "engine": {"tensorboard": False},
            method: {"num_prototypes": case["num_prototypes"]},
        }

    def facts(self) -> dict[str, object]:
        """What every epoch of every run took, and waited for data."""
        return {"epochs": self._epochs}


class Kept(TwoEpochs):
    """With an image store."""

    STORE_GIB = None


class Decoded(TwoEpochs):
    """Without."""

    STORE_GIB = 0.0


class _Notes:
    """A watcher that remembers how every step stood."""

    def __init__(self, batch_size: int, steps_per_epoch: int) -> None:
        self._batch_size, self._steps_per_epoch = batch_size, steps_per_epoch
        self._reports: list[StepReport] = []

    def message(self, text: str) -> None: ...

    def step(self, report: StepReport) -> None:
        """Remember a step."""
        self._reports.append(report)

    def close(self) -> None: ...

    def epochs(self) -> list[dict[str, float]]:
        """Seconds, seconds of waiting for data, and images of each epoch."""
        ends = [self._since_start(self._reports[(number + 1) * self._steps_per_epoch - 1]) for number in range(2)]
        (first, first_wait), (both, both_wait) = ends
        images = self._steps_per_epoch * self._batch_size
        return [
            {"seconds": first, "wait": first_wait, "images": images},
            {"seconds": both - first, "wait": both_wait - first_wait, "images": images},
        ]

    def _since_start(self, report: StepReport) -> tuple[float, float]:
        """Seconds from the loop's start to this step, and those of them spent waiting; while the loop averages over all."""
        seconds = report.step * self._batch_size / report.images_per_s
        return seconds, report.data_wait * seconds
