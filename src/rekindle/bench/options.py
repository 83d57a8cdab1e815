# SPDX-License-Identifier: Apache-2.0
"""Options of `rekindle bench`. Torch-free."""

from __future__ import annotations

from typing import Literal

import tyro
from pydantic import Field

from rekindle.adapters.options import Train
from rekindle.core.options import Accelerator, Options
from rekindle.views.options import ViewsOptions


class BenchOptions(Options):
    """How fast is it here? Rounds in turn between the sides, each in a process of its own; medians, and their ratio."""

    name: tyro.conf.Positional[str] = ""
    """views: crops of an image; step: one optimizer step; epoch: training with its data; t100: what 100 epochs take;
    extract: features; start: from the command to the first step."""
    peer: tuple[str, ...] = ()
    """Other projects to measure beside ours: lightly-train, lightly-train-dinov2, lightly, torchvision, albumentations."""
    rounds: int | None = Field(None, ge=1)
    """Timed rounds of each side; None: what the bench usually does (5, or 3 where a round is long)."""
    warmup: int = Field(1, ge=0)
    """Untimed rounds of each side before them."""
    threads: int = Field(1, ge=1)
    """Threads of each side's operations on a CPU; one is least disturbed by neighbours."""
    images: str = ""
    """Images to use (a folder, a glob, a list, a tar pattern); without it some are made from the seed."""
    num_images: int | None = Field(None, ge=1)
    """Images to make or to take; None: what the bench usually takes."""
    height: int = Field(360, ge=16)
    """Height of the images that are made, in pixels."""
    width: int = Field(480, ge=16)
    """Width of the images that are made, in pixels."""
    batch_size: int = Field(8, ge=1)
    """Images per step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Images that our step computes at a time; None: as a run chooses. The peers compute the whole batch at once."""
    backbone: str | None = None
    """Architecture, with random weights; peers build the same sizes. None: ViT-S/16, and a tiny one for `start`."""
    method: str | None = None
    """Method (`rekindle list methods`); None: both dino and glare for `step`, glare elsewhere."""
    train: Train = "adapters"
    """What our sides train; the peers train all weights."""
    rank: int = Field(64, ge=1)
    """Width of our adapters' bottleneck, where adapters train: what the recipe takes for few images; GLARE's paper has 512."""
    blocks: int | None = Field(None, ge=1)
    """Last blocks that have adapters, where adapters train; None: all."""
    head_hidden: int = Field(2048, ge=1)
    """Width of our projection head's hidden layers; the peers keep theirs (2048)."""
    head_bottleneck: int = Field(256, ge=1)
    """Width of our head before the prototypes; the peers keep theirs (256)."""
    num_prototypes: int = Field(8192, ge=2)
    """Outputs of the projection head."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of every side; figures compare at equal precision only."""
    accelerator: Accelerator = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    seed: int = Field(0, ge=0)
    """Seed of images, weights and views."""
    out: str = ""
    """File for what --json prints."""
    views: ViewsOptions = ViewsOptions()
    """Sizes and number of the views."""
