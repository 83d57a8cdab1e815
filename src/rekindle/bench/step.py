# SPDX-License-Identifier: Apache-2.0
"""Step benchmark: one optimizer step of ours on fixed views, as engine/loop.py does it, without data and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from rekindle.adapters.saved import load_backbone
from rekindle.bench.stage import case_device, count_flops, device_facts, fixed_views, settle, taken
from rekindle.core.fabric import Fabric
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.step import Stepper
from rekindle.pretraining.machine import machine_of
from rekindle.pretraining.options import PretrainOptions, resolve
from rekindle.pretraining.run import build_method
from rekindle.pretraining.steps import fitted_to_memory, plan_steps
from rekindle.views.batch import ViewBatch

STEPS_PER_EPOCH, EPOCHS = 100, 100
FIRST_STEP = 40 * STEPS_PER_EPOCH
"""Where the timed steps stand in a run: every warm-up is over, so that nothing is held still that usually moves."""


def build_stepper(case: Mapping[str, object], method: str) -> tuple[Stepper, PretrainOptions, TrainingPlan]:
    """Build backbone, adapters, method and optimizer as a run of these options would, and its plan."""
    device, seed = case_device(case), taken(case, "seed", int)
    asked = {
        "method": method,
        "backbone": taken(case, "backbone", str),
        "train": taken(case, "train", str),
        "epochs": EPOCHS,
        "batch_size": taken(case, "batch_size", int),
        "accelerator": "cpu" if device.type == "cpu" else "gpu",
        "precision": taken(case, "precision", str),
        "seed": seed,
        "views": case["views"],
        "adapter": {"rank": taken(case, "rank", int), "blocks": case["blocks"]},
        "engine": {"micro_batch_size": case["micro_batch_size"]},
        method: {name: taken(case, name, int) for name in ("num_prototypes", "head_hidden", "head_bottleneck")},
    }
    resolved = resolve({}, asked, file_name="bench")
    options = resolved.options
    backbone, _ = load_backbone(
        options.backbone, options.network, init="random", seed=seed, drop_path=options.network.drop_path
    )
    machine = machine_of(options)
    built, _ = build_method(resolved, backbone, machine)
    fabric = Fabric(accelerator=device.type, devices=1, precision="32-true")
    stepper = Stepper(built, fabric, options.optim, precision=options.precision)
    plan = plan_steps(options, STEPS_PER_EPOCH * options.batch_size, machine)
    plan = fitted_to_memory(plan, options, machine, backbone)
    return stepper, options, plan


def one_step(stepper: Stepper, plan: TrainingPlan, batch: ViewBatch, step: int) -> float:
    """Do one optimizer step as a run does it, micro-batch by micro-batch. Returns the loss."""
    size = len(batch) // plan.num_slots
    parts = (batch.images(slice(start, start + size)) for start in range(0, len(batch), size))
    return stepper.step(step, plan, lambda: next(parts)).values["loss"]


class _OurStep:
    """A side that steps; its subclasses say with which method."""

    METHOD: ClassVar[str]

    def __init__(self, case: Mapping[str, object]) -> None:
        self._device = case_device(case)
        self._stepper, self._options, self._plan = build_stepper(case, self.METHOD)
        self._batch = fixed_views(case).images(slice(0, self._plan.batch_size))
        self._step = FIRST_STEP
        self._losses: list[float] = []

    def run(self) -> int:
        """One step."""
        self._losses.append(one_step(self._stepper, self._plan, self._batch, self._step))
        self._step += 1
        settle(self._device)
        return len(self._batch)

    def facts(self) -> dict[str, object]:
        """Numbers that train, images computed at a time, FLOPs of a step, losses, versions."""
        memory = device_facts(self._device)
        flops = count_flops(lambda: one_step(self._stepper, self._plan, self._batch, self._step))
        return memory | {
            "trained_parameters": sum(p.numel() for p in self._stepper.trained),
            "train": self._options.train,
            "images_at_a_time": len(self._batch) // self._plan.num_slots,
            "optimizer": type(self._stepper.optimizer).__name__.removeprefix("Fabric"),
            "flops": flops,
            "losses": self._losses,
            "torch": torch.__version__,
        }


class OursDino(_OurStep):
    """DINO as `rekindle pretrain --method dino` runs it."""

    METHOD = "dino"


class OursGlare(_OurStep):
    """GLARE as `rekindle pretrain --method glare` runs it."""

    METHOD = "glare"
