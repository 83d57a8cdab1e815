# SPDX-License-Identifier: Apache-2.0
"""A few real runs on a handful of images, small enough for every test of the engine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rekindle.core.option_trees import nested
from rekindle.engine.watcher import StepReport
from rekindle.pretraining.options import resolve
from rekindle.pretraining.run import PretrainResult, pretrain

TINY: dict[str, Any] = {
    "backbone": "vit:width=32,depth=2,heads=2,patch=8,img=32",
    "init": "random",
    "train": "all",
    "method": "glare",
    "steps": 6,
    "batch_size": 4,
    "accelerator": "cpu",
    "precision": "fp32",
    "views.global_size_px": 32,
    "views.local_size_px": 16,
    "views.num_local": 2,
    "data.num_workers": 0,
    "engine.tensorboard": False,
    "engine.micro_batch_size": 4,
    "optim.lr_per_256": 0.05,
    "optim.warmup_epochs": 0.0,
    "glare.num_prototypes": 32,
    "glare.head_hidden": 32,
    "glare.head_bottleneck": 16,
    "glare.region_min_patches": 1,
    "glare.region_max_patches": 3,
    "glare.freeze_last_layer_epochs": 0,
}


def write_images(folder: Path, count: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for i in range(count):
        pixels = torch.randint(0, 256, (7, 8, 3), generator=draw, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy()).resize((56, 48), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:02}.png")
    return folder


def options(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    flat = {**TINY, "images": str(images), "out": str(out), **{k.replace("__", "."): v for k, v in changes.items()}}
    return nested({k: v for k, v in flat.items() if v is not None})


def run(images: Path, out: Path, *, resume: bool = False, watcher: Any = None, **changes: Any) -> PretrainResult:
    return pretrain(resolve({}, options(images, out, **changes)), resume=resume, watcher=watcher)


def checkpoint(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("speed")
    return lines


def assert_same_training(first: Path, second: Path) -> None:
    """Weights, teacher, centres, optimizer state and metric lines are equal bit for bit."""
    a, b = checkpoint(first), checkpoint(second)
    assert a["step"] == b["step"]
    assert a["method"].keys() == b["method"].keys()
    for name, tensor in a["method"].items():
        assert torch.equal(tensor, b["method"][name]), name
    for key, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][key][name]), (key, name)
    assert metrics(first) == metrics(second)


class Recorder:
    """A watcher that remembers, and may act after a step."""

    def __init__(self, after_step: Any = None) -> None:
        self.messages: list[str] = []
        self.steps: list[StepReport] = []
        self._after_step = after_step

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        if self._after_step is not None:
            self._after_step(report)

    def close(self) -> None: ...


def stop_after(step: int) -> Recorder:
    """A watcher that asks the run to stop, as a scheduler would."""

    def act(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return Recorder(act)
