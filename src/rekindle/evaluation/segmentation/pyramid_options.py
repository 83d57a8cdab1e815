# SPDX-License-Identifier: Apache-2.0
"""Options of decoders behind a pyramid: Semantic FPN and UPerNet. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import Presets
from rekindle.evaluation.training.options import SegmentationTrainingOptions

_FPN: dict[str, object] = {
    "steps": 20_000,
    "batch_size": 32,
    "lr": 6e-5,
    "head_lr_scale": 1.0,
    "warmup_steps": 1500,
    "weight_decay": 0.01,
    "drop_path": 0.1,
    "size_px": 512,
    "crop_px": 512,
    "channels": 256,
    "head_channels": 128,
}
"""The configuration that UDI, FLSL and SelfPatch share, with GLARE's 20,000 steps (specification 9.1)."""

_UPERNET: dict[str, object] = {
    "steps": 160_000,
    "batch_size": 16,
    "lr": 1e-4,
    "head_lr_scale": 1.0,
    "warmup_steps": 1500,
    "layer_decay": 0.65,
    "drop_path": 0.1,
    "size_px": 512,
    "crop_px": 512,
    "inference": "slide",
    "window_px": 512,
    "stride_px": 341,
    "channels": 512,
}
"""The public configuration of MAE for ADE20K (TEC, section 17)."""


class FpnOptions(SegmentationTrainingOptions):
    """Semantic FPN, trained together with the backbone."""

    lr: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of the backbone's last block. Low, because 300 steps at a high one overwrite what was to be measured:
    at 2e-4 a small MAE base and random weights end 1 point apart, at 2e-5 five (CamVid)."""
    head_lr_scale: float = Field(default=100.0, gt=0.0)
    """The decoder's rate is this times the backbone's (papers: 1, with hundreds of times the steps)."""
    size_px: int = Field(default=160, ge=1)
    """Short side to which images are resized, before the random scale in training, and for the test (paper: 512)."""
    crop_px: int = Field(default=160, ge=1)
    """Side of the square training crop; a multiple of the patch (paper: 512)."""
    pyramid: Literal["rescaled", "literal"] = "rescaled"
    """Four maps at strides 4, 8, 16, 32, or all at the patch's stride as the published configuration file has them."""
    channels: int = Field(default=64, ge=8)
    """Of the pyramid (papers: 256)."""
    head_channels: int = Field(default=32, ge=8)
    """Of the head (papers: 128)."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Of whole channels before the classifier."""
    drop_prefix: bool = False
    """Fine-tune without class token and registers, as the published configuration does; they stay in by default, as in
    pre-training."""

    PRESETS: ClassVar[Presets] = {
        "paper": _FPN,
        "paper-literal": _FPN | {"pyramid": "literal"},
        "loveda": _FPN | {"steps": 2000, "warmup_steps": 150},
        "mmseg-20k": _FPN
        | {
            "optimizer": "sgd",
            "lr": 0.01,
            "weight_decay": 5e-4,
            "schedule_power": 0.9,
            "final_lr": 1e-4,
            "warmup_steps": 0,
        },
    }


class UperNetOptions(SegmentationTrainingOptions):
    """UPerNet, trained together with the backbone."""

    lr: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of the backbone's last block. Low, as in `fpn`."""
    head_lr_scale: float = Field(default=100.0, gt=0.0)
    """The decoder's rate is this times the backbone's (papers: 1, with hundreds of times the steps)."""
    channels: int = Field(default=64, ge=8)
    """Of the decoder (papers: 512)."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Of whole channels before the classifier."""

    PRESETS: ClassVar[Presets] = {"paper": _UPERNET}
