# SPDX-License-Identifier: Apache-2.0
"""Steps and micro-batches of a run, cut by images, options and memory."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from rekindle.core.distributed import all_max, world_size
from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.data.memory import free_bytes
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.engine.loop import micro_batch_size
from rekindle.methods import METHODS
from rekindle.networks.backbone import Backbone
from rekindle.pretraining import costs
from rekindle.pretraining.machine import Machine
from rekindle.pretraining.network_sizes import trunk_of
from rekindle.pretraining.options import USUAL_EPOCHS, PretrainOptions

CPU_MICRO_BATCH_BYTES = 600e6
"""What a micro-batch may keep on a CPU, in float32: 4 images of a ViT-S/16 with adapters, 1,576 + 1,480 tokens.

Micro-batches of 2 images are 4 % slower and of 8 no faster; with 4, GLARE at batch 8 and rank 64 needs under 60 % of the
memory of LightlyTrain's DINO in both precisions (docs/performance.md). The bound is in float32 for both: in low precision larger
micro-batches are no faster; `engine.micro_batch_size` asks for another size.
"""


def plan_steps(options: PretrainOptions, num_images: int, machine: Machine) -> TrainingPlan:
    """Cut a run into steps. The batch is at most the number of images, and a multiple of its micro-batches.

    Raises: RequestError for fewer images than devices.
    """
    wanted = min(options.batch_size, num_images)
    if wanted < options.devices:
        raise RequestError(f"{num_images} images cannot be shared by {options.devices} devices; use --devices 1")
    usual = 64 if machine.is_gpu else 16
    largest = options.engine.micro_batch_size or (wanted if _prefers_whole_batch(options) else usual)
    micro = min(largest, wanted // options.devices)
    accumulate = max(1, wanted // (micro * options.devices))
    batch_size = micro * options.devices * accumulate
    steps_per_epoch = max(1, num_images // batch_size)
    steps = options.steps or max(1, round((options.epochs or USUAL_EPOCHS) * steps_per_epoch))
    return TrainingPlan(steps, steps_per_epoch, batch_size, accumulate * options.devices, options.seed)


def fitted_to_memory(
    plan: TrainingPlan,
    options: PretrainOptions,
    machine: Machine,
    backbone: Backbone,
    device: torch.device | str = "cpu",
) -> TrainingPlan:
    """The plan with micro-batches small enough for free memory, unless their size is asked for; the batch stays what it is.

    All processes take what fits into the one that has least. Args: device, on which they tell each other.
    """
    if options.engine.micro_batch_size is not None:
        return plan
    micro = micro_batch_size(plan)
    fitting = _fitting_micro_batch(options, machine, backbone, micro, plan.batch_size // options.devices)
    fitting = -int(all_max(torch.tensor(-fitting, device=device)))
    return replace(plan, num_slots=plan.batch_size // max(n for n in range(1, fitting + 1) if micro % n == 0))


def _prefers_whole_batch(options: PretrainOptions) -> bool:
    """Whether the method compares the images of a step with each other, so that each part of a cut one is encoded twice."""
    return bool(import_named(METHODS, "method", options.method).COMPARES_IMAGES)


def _fitting_micro_batch(
    options: PretrainOptions, machine: Machine, backbone: Backbone, at_most: int, batch: int
) -> int:
    """Images that fit into free memory at a time, by the model of `costs`: the loss that keeps most, GLARE's, counts.

    Args: at_most, images at a time; batch, of a step in this process, of which the views wait.
    """
    views = options.views
    trunk = trunk_of(backbone.vit, options)
    head = costs.Head(backbone.width)
    patches = 2 * (trunk.tokens(views.global_size_px) - trunk.prefix)

    rows, sizes = costs.Rows(student_patch=patches, student_region=patches), (views.global_size_px, views.local_size_px)
    number = 2 if machine.is_bf16 else 4
    waits = batch * costs.held_per_image(head, rows, sizes=sizes, num_local=views.num_local, bytes_each=number)

    def fitting(free: float, number: int, at_most: int) -> int:
        per_image = costs.kept_per_image(
            trunk, head, rows, sizes=sizes, num_local=views.num_local, train=options.train, bytes_each=number
        )
        if options.engine.recompute_blocks:
            per_image /= backbone.depth
        besides = costs.kept_besides(trunk, head, train=options.train, bytes_each=number)
        return costs.fitting_micro_batch(free, per_image, besides, at_most=at_most)

    if machine.is_gpu:
        return fitting(torch.cuda.mem_get_info()[0] - waits, number, at_most)
    if not _prefers_whole_batch(options):
        at_most = fitting(2 * CPU_MICRO_BATCH_BYTES, 4, at_most)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return fitting(free_bytes() // neighbours - waits, number, at_most)
