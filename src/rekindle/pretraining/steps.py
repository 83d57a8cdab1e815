# SPDX-License-Identifier: Apache-2.0
"""How a run is cut into steps and shares, and in what precision it computes: decided from options, data and machine."""

from __future__ import annotations

import torch

from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.data.memory import free_bytes
from rekindle.engine.checkpoints import TrainingPlan
from rekindle.methods import METHODS
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block
from rekindle.pretraining import costs
from rekindle.pretraining.options import PretrainOptions

CPU_SHARE_BYTES = 600e6
"""What a share may keep on a CPU, in float32: 4 images of a ViT-S/16 with adapters, 1,576 + 1,480 tokens.

Shares of 2 images are 4 % slower and of 8 no faster; with 4, GLARE at batch 8 and rank 64 needs under 60 % of the memory of
LightlyTrain's DINO in both precisions (docs/performance.md). The bound is in float32 for both, so that the precision does not
change which images are counted together; `engine.micro_batch_size` asks for another size.
"""


def plan_steps(options: PretrainOptions, num_images: int, backbone: Backbone | None = None) -> TrainingPlan:
    """Cut a run into steps. The batch is at most the number of images, and a multiple of the shares it is cut into.

    With the backbone, shares are made small enough for free memory, unless their size is asked for.
    """
    wanted = min(options.batch_size, num_images)
    if wanted < options.devices:
        raise RequestError(f"{num_images} images cannot be shared by {options.devices} devices; use --devices 1")
    whole = import_named(METHODS, "method", options.method).COMPARES_IMAGES
    largest = options.engine.micro_batch_size or (wanted if whole else 64 if on_gpu(options) else 16)
    micro = min(largest, wanted // options.devices)
    accumulate = max(1, wanted // (micro * options.devices))
    batch_size = micro * options.devices * accumulate
    if (
        backbone is not None and options.engine.micro_batch_size is None and not whole
    ):  # the batch itself never depends on memory
        micro = max(n for n in range(1, _fitting_share(options, backbone, micro) + 1) if micro % n == 0)
        accumulate = batch_size // (micro * options.devices)
    steps_per_epoch = max(1, num_images // batch_size)
    steps = options.steps or max(1, round((options.epochs or 100.0) * steps_per_epoch))
    return TrainingPlan(steps, steps_per_epoch, batch_size, accumulate * options.devices, options.seed)


def _fitting_share(options: PretrainOptions, backbone: Backbone, at_most: int) -> int:
    """Images that fit into free memory at a time, by the model of `costs`: the loss that keeps most, GLARE's, counts."""
    views = options.views
    block = plain_block(backbone.vit.blocks[0])
    hidden = block.mlp.fc2.in_features
    maps = sum(p.numel() for p in block.mlp.parameters() if p.ndim == 2)
    trunk = costs.Trunk(
        backbone.width,
        backbone.depth,
        backbone.num_heads,
        hidden,
        backbone.patch_size,
        backbone.num_prefix,
        rank=options.adapter.width if options.train == "adapters" or options.adapter.in_full_training else 0,
        mlp_maps=maps // (backbone.width * hidden),  # 3 where the MLP is gated
    )
    head = costs.Head(backbone.width)
    patches = 2 * (trunk.tokens(views.global_size_px) - trunk.prefix)

    def fitting(free: float, number: int, at_most: int) -> int:
        per_image = costs.kept_per_image(
            trunk,
            head,
            costs.Rows(student_patch=patches, student_region=patches),
            sizes=(views.global_size_px, views.local_size_px),
            num_local=views.num_local,
            train=options.train,
            bytes_each=number,
        )
        if options.engine.recompute_blocks:
            per_image /= backbone.depth
        besides = costs.kept_besides(trunk, head, train=options.train, bytes_each=number)
        return costs.fitting_share(free, per_image, besides, at_most=at_most)

    number = 2 if compute_precision(options) == "bf16" else 4
    if on_gpu(options):
        return fitting(torch.cuda.mem_get_info()[0], number, at_most)
    return fitting(free_bytes(), number, fitting(2 * CPU_SHARE_BYTES, 4, at_most))


def compute_precision(options: PretrainOptions) -> str:
    """`fp32` or `bf16`, as asked for or as the device suggests."""
    if options.precision != "auto":
        return options.precision
    return "bf16" if on_gpu(options) and torch.cuda.is_bf16_supported() else "fp32"


def on_gpu(options: PretrainOptions) -> bool:
    """Whether the run computes on a GPU."""
    return options.accelerator == "gpu" or (options.accelerator == "auto" and torch.cuda.is_available())
