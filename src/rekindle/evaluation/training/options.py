# SPDX-License-Identifier: Apache-2.0
"""Options of training on labels, alone or together with the backbone. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import ProtocolOptions

ClassTokenLayer = Literal["embedding", "head"]


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
    """Of AdamW decoupled, of SGD as L2; AdamW decays no vector, no class token and no positions."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of SGD; AdamW's first beta."""
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Each block's rate is this times the next one's, down to the patch embedding."""
    class_token_layer: ClassTokenLayer = "embedding"
    """Where `layer_decay` counts class token and registers: with the patch embedding (MAE, BEiT), or with the head (TEC)."""
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

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("crop_px", "window_px")

    size_px: int = Field(default=224, ge=1)
    """Short side to which images are resized, before the random scale in training, and for the test."""
    crop_px: int = Field(default=224, ge=1)
    """Side of the square training crop; a multiple of the patch."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale."""
    max_class_share: float = Field(default=0.75, gt=0.0, le=1.0)
    """A crop in which one class fills more than this is drawn again, ten times at most."""
    jitter: bool = True
    """Photometric distortion, each with probability 0.5: brightness +-32 levels, contrast and saturation times 0.5 to 1.5, hue
    +-36 degrees."""
    test_size_px: int = Field(default=0, ge=0)
    """Short side of the test images; 0: as in training, `size_px` (mmseg tests LoveDA at 1024)."""
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
