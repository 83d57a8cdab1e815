# SPDX-License-Identifier: Apache-2.0
"""Options of the protocols. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import Presets, ProtocolOptions


class LinearSegOptions(ProtocolOptions):
    """Linear segmentation on frozen features. The defaults take a minute or so on two cores."""

    PRESETS: ClassVar[Presets] = {
        "paper": {"size_px": 512, "steps": 40_000, "lr": 1e-4, "warmup_steps": 1500, "loss_stride": 1},
    }

    size_px: int = Field(default=224, ge=1)
    """Short side of the resized image, rounded like the long one to a multiple of the patch (paper: 512)."""
    steps: int = Field(default=600, ge=1)
    """Optimizer steps of the head (paper: 40,000)."""
    batch_size: int = Field(default=16, ge=1)
    """Images per step (paper: 16)."""
    lr: float = Field(default=5e-3, gt=0.0)
    """Peak learning rate (paper: 1e-4; the default moves the head about as far in its fewer steps)."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    """Decoupled weight decay of AdamW (paper: 0.05)."""
    warmup_steps: int = Field(default=22, ge=0)
    """Steps of linear warm-up from 1e-6 of the rate (paper: 1500, the same share of its steps)."""
    loss_stride: int = Field(default=4, ge=1)
    """The loss is taken on labels reduced by this factor (paper: 1); the metrics never are."""
    flip_augment: bool = False
    """Also train on the mirrored images; doubles the cache (the paper flips, crops, scales and jitters)."""
    max_cache_gib: float = Field(default=8.0, gt=0.0)
    """Refuse data whose cached features would take more memory than this (own choice)."""


class DenseRetrievalOptions(ProtocolOptions):
    """Dense nearest-neighbour retrieval (Hummingbird)."""

    PRESETS: ClassVar[Presets] = {
        "paper": {"size_px": 512, "augmentation_epochs": 2, "memory_size": 1024 * 10**4},
        "memory-2": {"size_px": 512, "augmentation_epochs": 2, "memory_size": 1024 * 10**2},
        "memory-3": {"size_px": 512, "augmentation_epochs": 2, "memory_size": 1024 * 10**3},
    }

    size_px: int = Field(default=224, ge=1)
    """Side of the square input, a multiple of the patch (published numbers: 512)."""
    num_neighbours: int = Field(default=30, ge=1)
    """Neighbours that vote for a patch."""
    temperature: float = Field(default=0.02, gt=0.0)
    """Of the softmax over the neighbours' cosines."""
    memory_size: int = Field(default=102_400, ge=1)
    """Patches in memory, spread evenly over the training images (published: 1024 times 10^2 to 10^4)."""
    augmentation_epochs: int = Field(default=1, ge=0)
    """Passes over the training images with random crops and colours; 0: one pass over the plain images."""
    drop_ignored: bool = False
    """Leave ignored pixels out of the memory; otherwise they count as class 0, as in the published protocol.
    Choose it where class 0 is not a background."""
    compat: Literal["none", "hungarian"] = "none"
    """hungarian: rename the predicted classes for the greatest sum of IoUs, and count absent classes as 0, as the public tool
    does; otherwise classes keep their names and absent ones are left out."""
