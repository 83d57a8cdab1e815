# SPDX-License-Identifier: Apache-2.0
"""Options of protocols that train a decoder, alone or together with the backbone. Torch-free.

The defaults are small presets that say something in minutes on two cores; `PRESETS` holds the papers' own settings
(`--preset paper`, or the name of a data set).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import Presets, ProtocolOptions


class TrainingOptions(ProtocolOptions):
    """How a network is trained on labelled data."""

    steps: int = Field(default=300, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Adam with decoupled decay, or gradient descent with momentum."""
    lr: float = Field(default=2e-4, gt=0.0)
    """Peak learning rate of the backbone's last block and of the decoder."""
    head_lr_scale: float = Field(default=10.0, gt=0.0)
    """The decoder's rate is this times the backbone's (papers: 1, with hundreds of times the steps)."""
    final_lr: float = Field(default=0.0, ge=0.0)
    """Rate after the last step."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the rate falls after the warm-up: as a power of what is left, or along half a cosine."""
    schedule_power: float = Field(default=1.0, gt=0.0)
    """The rate of `poly` falls from peak to final as (1 - step / steps) to this power."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the rate rises linearly."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    """Of AdamW decoupled, of SGD as L2; none on vectors under AdamW."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of SGD; AdamW's first beta."""
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Each block's rate is this times the next one's, down to the patch embedding."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Stochastic depth of the last block; it rises linearly from 0 over the blocks."""
    clip_norm: float = Field(default=0.0, ge=0.0)
    """Greatest norm of the gradient; 0 does not clip."""
    train_backbone: bool = True
    """Fine-tune the backbone; otherwise the decoder alone learns, on frozen features in evaluation mode."""
    max_cache_gib: float = Field(default=4.0, ge=0.0)
    """Decoded training images kept in memory, at most."""


class SegmentationTrainingOptions(TrainingOptions):
    """How images become crops, and how test images are labelled."""

    size_px: int = Field(default=224, ge=1)
    """Short side to which images are resized, before the random scale in training, and for the test."""
    crop_px: int = Field(default=224, ge=1)
    """Side of the square training crop; a multiple of the patch."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale."""
    max_class_share: float = Field(default=0.75, gt=0.0, le=1.0)
    """A crop in which one class fills more than this is drawn again, ten times at most."""
    jitter: bool = True
    """Photometric distortion: brightness, contrast, saturation, hue."""
    inference: Literal["whole", "slide"] = "whole"
    """The test image at once, or in windows whose logits are averaged."""
    window_px: int = Field(default=224, ge=1)
    """Side of the window of `slide`."""
    stride_px: int = Field(default=149, ge=1)
    """Distance of windows of `slide`; the last one is flush with the border."""
    headline: Literal["mIoU", "oracle-mIoU"] = "mIoU"
    """What is compared: plain mIoU, or localisation alone (each predicted region takes the class of the true region that it
    overlaps best; LOCA, section 4). Both are reported."""
    regions: Literal["classes", "components"] = "classes"
    """What counts as a predicted region for the oracle: all pixels of a class, or each connected component."""
    search_lr: tuple[float, ...] = ()
    """Factors of `lr` to choose from; every backbone gets the same search, judged on a fifth of the training images."""
    search_drop_path: tuple[float, ...] = ()
    """Values of `drop_path` to choose from, together with `search_lr`."""
    search_optimizer: tuple[Literal["adamw", "sgd"], ...] = ()
    """Optimizers to choose from, together with the others; AdamW takes `adamw_lr` and decay 0.05 then, SGD `lr` and none."""
    adamw_lr: float = Field(default=1e-4, gt=0.0)
    """Rate of AdamW in a search over optimizers."""


_SEGMENTER: dict[str, object] = {
    "steps": 160_000,
    "optimizer": "sgd",
    "lr": 1e-3,
    "head_lr_scale": 1.0,
    "final_lr": 1e-5,
    "schedule_power": 0.9,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "size_px": 512,
    "crop_px": 512,
    "inference": "slide",
    "window_px": 512,
    "stride_px": 512,
    "search_lr": (0.3, 1.0, 3.0),
    "search_drop_path": (0.0, 0.1),
    "search_optimizer": ("sgd", "adamw"),
}
"""Recipe of Segmenter's public configuration for ADE20K, with the search that LOCA gives every backbone."""


_IMAGENET_S: dict[str, object] = {
    "steps": 3590,
    "batch_size": 256,
    "lr": 5e-4,
    "head_lr_scale": 1.0,
    "schedule": "cosine",
    "warmup_steps": 180,
    "layer_decay": 0.6,
    "jitter": False,
    "scale": (1.0, 2.0),
}
"""TEC's table 17, 100 epochs of ImageNet-S's 9,190 labelled images; its crops are random resized ones there."""


class LinearDecoderOptions(SegmentationTrainingOptions):
    """Segmenter's linear decoder, trained together with the backbone."""

    drop_path: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Stochastic depth of the last block; it rises linearly from 0 over the blocks."""

    PRESETS: ClassVar[Presets] = {
        "paper": _SEGMENTER,
        "ade20k": _SEGMENTER,
        "pascal-context": _SEGMENTER
        | {"batch_size": 16, "size_px": 480, "crop_px": 480, "window_px": 480, "stride_px": 320},
        "cityscapes": _SEGMENTER | {"lr": 1e-2, "size_px": 1024, "crop_px": 768, "window_px": 768, "stride_px": 512},
        "imagenet-s": _IMAGENET_S,
        "imagenet-s-finetuned": _IMAGENET_S | {"lr": 1e-4, "layer_decay": 0.45},
    }


class DepthOptions(TrainingOptions):
    """A DPT decoder on a frozen backbone."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps of the decoder."""
    lr: float = Field(default=1e-4, gt=0.0)
    """Peak learning rate; `head_lr_scale` multiplies it."""
    size_px: int = Field(default=224, ge=1)
    """Short side of the resized image, rounded like the long one to a multiple of the patch."""
    channels: int = Field(default=64, ge=8)
    """Of the decoder's fusion blocks (paper: 256)."""
    projections: tuple[int, int, int, int] = (48, 96, 192, 384)
    """Channels of the four levels, fine to coarse (paper: 96, 192, 384, 768; for ViT-L 256, 512, 1024, 1024)."""

    PRESETS: ClassVar[Presets] = {
        "paper": {
            "steps": 300_000,
            "head_lr_scale": 1.0,
            "weight_decay": 0.0,
            "channels": 256,
            "projections": (96, 192, 384, 768),
        },
    }


class MultiLabelOptions(ProtocolOptions):
    """Which classes an image shows: classification apart from localisation."""

    source: Literal["frozen", "finetuned", "segmentation"] = "frozen"
    """What scores the classes: BatchNorm and a linear layer on the mean of the frozen patch tokens; the same, trained with the
    backbone; or the greatest probability of any pixel under a fine-tuned linear decoder."""
    size_px: int = Field(default=224, ge=1)
    """Short side of the resized image, rounded like the long one to a multiple of the patch."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training images of `frozen`."""
    lr: float = Field(default=1e-3, gt=0.0)
    """Rate of AdamW of `frozen`."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decay of AdamW of `frozen` (own choice)."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step of `frozen`."""
    training: TrainingOptions = TrainingOptions()
    """Training of `finetuned`."""
    decoder: LinearDecoderOptions = LinearDecoderOptions()
    """Training of `segmentation`."""
