# SPDX-License-Identifier: Apache-2.0
"""LightlyTrain's DINO step: its method class, its model wrapper, its optimizer, its schedules (all weights train).

Its Trainer is left out, callbacks and progress bar with it: what is timed is what its training step, its hooks and its
optimizer do, in the order in which PyTorch Lightning calls them. That favours the peer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from types import SimpleNamespace

import torch
from lightly_train._commands import train_helpers
from lightly_train._methods.dino.dino import DINO
from lightly_train._models import package_helpers
from pytorch_lightning.plugins.precision import MixedPrecision

from rekindle.bench.stage import (
    architecture_of,
    case_device,
    count_flops,
    device_facts,
    fixed_views,
    settle,
    taken,
    view_list,
)
from rekindle.core.rng import derived_seed

DATASET_SIZE, EPOCHS, STEPS = 100_000, 100, 100_000
FIRST_STEP = 40_000
CLIP_NORM = 3.0
"""What the method's own `configure_gradient_clipping` asks for; the Trainer would do it over the optimizer's tensors."""


class LightlyTrainDino:
    """LightlyTrain's DINO on a timm ViT of the case's sizes, as `lightly_train.pretrain(method="dino")` sets it up."""

    def __init__(self, case: Mapping[str, object]) -> None:
        logging.getLogger("lightly_train").setLevel(logging.ERROR)
        self._device = case_device(case)
        arch = architecture_of(case)
        batch_size = taken(case, "batch_size", int)
        torch.manual_seed(derived_seed(taken(case, "seed", int), "bench peer"))
        model = package_helpers.get_wrapped_model(
            model="timm/vit_small_patch16_224",
            model_args={
                "embed_dim": arch.width,
                "depth": arch.depth,
                "num_heads": arch.heads,
                "patch_size": arch.patch,
                "img_size": arch.img,
            },
            num_input_channels=3,
        )
        optimizer_args = train_helpers.get_optimizer_args("auto", None, DINO, model)
        method_args = train_helpers.get_method_args(
            DINO,
            {"output_dim": taken(case, "num_prototypes", int)},
            train_helpers.get_scaling_info(dataset_size=DATASET_SIZE, epochs=EPOCHS),
            optimizer_args,
            model,
        )
        self._method = DINO(method_args, optimizer_args, train_helpers.get_embedding_model(model), batch_size, 3)
        self._method.to(self._device).train()
        self._place = SimpleNamespace(
            global_step=FIRST_STEP,
            estimated_stepping_batches=STEPS,
            max_epochs=EPOCHS,
            current_epoch=FIRST_STEP * EPOCHS // STEPS,
        )
        self._method._trainer = self._place
        (self._optimizer,), (schedule,) = self._method.configure_optimizers()
        self._schedule = schedule["scheduler"]
        self._mixed = None
        if taken(case, "precision", str) == "bf16":
            self._mixed = MixedPrecision("bf16-mixed", self._device.type)
        self._views = view_list(fixed_views(case))
        self._losses: list[float] = []

    def run(self) -> int:
        """One training step, as the Trainer's automatic optimization orders it."""
        with self._autocast():
            loss = self._method.training_step_impl({"views": self._views}, 0).loss
        self._optimizer.zero_grad()
        loss.backward()
        self._method.on_before_optimizer_step(self._optimizer)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        self._optimizer.step()
        self._schedule.step()
        self._place.global_step += 1
        self._losses.append(float(loss.detach()))
        settle(self._device)
        return len(self._views[0])

    def _autocast(self) -> AbstractContextManager[object]:
        if self._mixed is None:
            return nullcontext()
        context: AbstractContextManager[object] = self._mixed.autocast_context_manager()
        return context

    def facts(self) -> dict[str, object]:
        """Numbers that train, the optimizer that its defaults choose, FLOPs of a step, losses, versions."""
        memory = device_facts(self._device)
        losses = list(self._losses)
        trained = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        return memory | {
            "trained_parameters": sum(p.numel() for p in trained),
            "train": "all",
            "optimizer": type(self._optimizer).__name__,
            "flops": count_flops(self.run),
            "losses": losses,
            "torch": torch.__version__,
            "lightly-train": version("lightly-train"),
        }
