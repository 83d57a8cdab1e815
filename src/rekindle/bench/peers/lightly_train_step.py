# SPDX-License-Identifier: Apache-2.0
"""LightlyTrain's DINO and DINOv2 steps: its method classes, networks, optimizers and schedules (all weights train).

Its Trainer is left out, callbacks, logs and progress bar with it: what is timed is what its training step, its hooks and
its optimizer do, in the order in which PyTorch Lightning calls them. That favours the peer.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from lightly_train._commands import train_helpers
from lightly_train._methods.dino.dino import DINO
from lightly_train._methods.dinov2.dinov2 import DINOv2
from lightly_train._models import package_helpers
from lightly_train._models.dinov2_vit.dinov2_vit_src import configs, layers
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

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
from rekindle.networks.checkpoints.architecture import Architecture

DATASET_SIZE, EPOCHS, STEPS = 100_000, 100, 100_000
FIRST_STEP = 40_000
CLIP_NORM = 3.0
"""What both methods' `configure_gradient_clipping` asks for; the Trainer would do it over the optimizer's tensors."""
SAME_NAME = (
    *("ffn_layer", "block_chunks", "qkv_bias", "proj_bias", "ffn_bias"),
    *("drop_path_rate", "drop_path_uniform", "interpolate_offset", "interpolate_antialias"),
)
"""What the configuration of a DINOv2 ViT and its class call the same."""


class _LightlyTrainStep(ABC):
    """A side that steps; its subclasses say with which method of LightlyTrain's, on which network of its own.

    What comes from the package is `Any`: a type checker sees its types only where it is installed.
    """

    METHOD: ClassVar[Any]
    METHOD_ARGS: ClassVar[Mapping[str, object]] = {}
    """What differs from the method's defaults, besides the number of prototypes."""

    def __init__(self, case: Mapping[str, object]) -> None:
        logging.getLogger("lightly_train").setLevel(logging.ERROR)
        self._device = case_device(case)
        seed = derived_seed(taken(case, "seed", int), "bench peer")
        torch.manual_seed(seed)
        random.seed(seed)  # DINOv2 draws its masks from here
        self._method = self._build(case).to(self._device)
        self._method._log_timing_metrics = lambda metrics: None  # goes to the Trainer's loggers
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

    def _build(self, case: Mapping[str, object]) -> Any:
        """The method as `lightly_train.pretrain` sets it up; its parts are in the modes that it has put them in."""
        model = package_helpers.get_wrapped_model(**self._network(architecture_of(case)), num_input_channels=3)
        optimizer_args = train_helpers.get_optimizer_args("auto", None, self.METHOD, model)
        method_args = train_helpers.get_method_args(
            self.METHOD,
            {"output_dim": taken(case, "num_prototypes", int), **self.METHOD_ARGS},
            train_helpers.get_scaling_info(dataset_size=DATASET_SIZE, epochs=EPOCHS),
            optimizer_args,
            model,
        )
        embedding = train_helpers.get_embedding_model(model)
        return self.METHOD(method_args, optimizer_args, embedding, taken(case, "batch_size", int), 3)

    @staticmethod
    @abstractmethod
    def _network(arch: Architecture) -> dict[str, Any]:
        """What `get_wrapped_model` is to wrap: `model`, and `model_args` where that is a name."""

    def run(self) -> int:
        """One training step, as the Trainer's automatic optimization orders it."""
        batch = {"views": self._views}
        self._method.on_train_batch_start(batch, 0)
        with self._autocast():
            loss: Tensor = self._method.training_step_impl(batch, 0).loss
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._method.on_before_optimizer_step(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._all_parameters(), CLIP_NORM)
        self._optimizer.step()
        self._place.global_step += 1
        self._schedule.step()
        self._method.on_train_batch_end(loss, batch, 0)
        self._losses.append(float(loss.detach()))
        settle(self._device)
        return len(self._views[0])

    def _autocast(self) -> AbstractContextManager[object]:
        if self._mixed is None:
            return nullcontext()
        context: AbstractContextManager[object] = self._mixed.autocast_context_manager()
        return context

    def _all_parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def facts(self) -> dict[str, object]:
        """Numbers that train, the optimizer that its defaults choose, FLOPs of a step, losses, versions."""
        memory = device_facts(self._device)
        losses = list(self._losses)
        return memory | {
            "trained_parameters": sum(p.numel() for p in self._all_parameters() if p.requires_grad),
            "train": "all",
            "optimizer": type(self._optimizer).__name__,
            "flops": count_flops(self.run),
            "losses": losses,
            "torch": torch.__version__,
            "lightly-train": version("lightly-train"),
        }


class LightlyTrainDino(_LightlyTrainStep):
    """LightlyTrain's DINO on a timm ViT of the case's sizes, as `lightly_train.pretrain(method="dino")` sets it up."""

    METHOD = DINO

    @staticmethod
    def _network(arch: Architecture) -> dict[str, Any]:
        sizes = {"embed_dim": arch.width, "depth": arch.depth, "num_heads": arch.heads}
        sizes |= {"patch_size": arch.patch, "img_size": arch.img}
        return {"model": "timm/vit_small_patch16_224", "model_args": sizes}


class LightlyTrainDinov2(_LightlyTrainStep):
    """LightlyTrain's DINOv2 on its own DINOv2 ViT of the case's sizes; its masks are drawn anew in every step.

    Everything but the sizes is what its configuration of a pretrained ViT-S/14 says: layer scale, stochastic depth of
    0.3 in the student, and how positions are resized.
    """

    METHOD = DINOv2
    METHOD_ARGS: ClassVar[Mapping[str, object]] = {
        "warmup_steps": 10,
        "teacher_temp_warmup_steps": 30,
        "student_freeze_backbone_steps": 19,
        "student_freeze_last_layer_steps": 0,
    }
    """A short training on pretrained weights: the heads alone for the first steps. At FIRST_STEP all that is over."""

    @staticmethod
    def _network(arch: Architecture) -> dict[str, Any]:
        # Put together here, as the package's own `vit_small` has width, depth and heads fixed.
        config = configs.MODELS["vits14" if arch.registers else "vits14-noreg"]["config"]
        student = configs.load_and_merge_config(str(configs.get_config_path(config))).student
        model = DinoVisionTransformer(
            img_size=arch.img,
            patch_size=arch.patch,
            embed_dim=arch.width,
            depth=arch.depth,
            num_heads=arch.heads,
            num_register_tokens=arch.registers,
            block_fn=partial(layers.NestedTensorBlock, attn_class=layers.MemEffAttention),
            init_values=student.layerscale,
            **{name: student[name] for name in SAME_NAME},
        )
        return {"model": model}
