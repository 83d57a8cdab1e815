# SPDX-License-Identifier: Apache-2.0
"""Options of protocols that label pixels, objects or depth. Torch-free.

The defaults are small presets that say something in minutes on two cores; `PRESETS` holds the papers' own settings
(`--preset paper`, or the name of a data set).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import Presets, ProtocolOptions
from rekindle.evaluation.training.options import SegmentationTrainingOptions, TrainingOptions

Cosine = Annotated[float, Field(ge=-1.0, lt=1.0)]


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


_HUMMINGBIRD: dict[str, object] = {"size_px": 512, "augmentation_epochs": 2, "drop_ignored": False}
"""What the published protocol has at every size of the memory."""


class DenseRetrievalOptions(ProtocolOptions):
    """Dense nearest-neighbour retrieval (Hummingbird)."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {
        "paper": _HUMMINGBIRD | {"memory_size": 1024 * 10**4},
        "memory-2": _HUMMINGBIRD | {"memory_size": 1024 * 10**2},
        "memory-3": _HUMMINGBIRD | {"memory_size": 1024 * 10**3},
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
    drop_ignored: bool = True
    """Leave ignored pixels out of the memory; otherwise they count as class 0, as in the published protocol, which its presets
    follow: right where class 0 is a background, wrong where it is a class like CamVid's sky."""
    compat: Literal["none", "hungarian"] = "none"
    """hungarian: rename the predicted classes for the greatest sum of IoUs, and count absent classes as 0, as the public tool
    does; otherwise classes keep their names and absent ones are left out."""


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
    "auxiliary_channels": 256,
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
        "loveda": _FPN | {"steps": 2000, "warmup_steps": 150, "test_size_px": 1024},
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
    auxiliary_weight: float = Field(default=0.4, ge=0.0)
    """Of the loss of the auxiliary head, a small convolutional one on the third map, while training (mmseg: 0.4); 0: none."""
    auxiliary_channels: int = Field(default=32, ge=8)
    """Of the auxiliary head (papers: 256)."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Of whole channels before the classifier."""

    PRESETS: ClassVar[Presets] = {"paper": _UPERNET}


class PromptedSegOptions(ProtocolOptions):
    """Segmentation of an object from one of its patches: the patches whose cosine with it exceeds a threshold."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {"paper": {"size_px": 480}}

    size_px: int = Field(default=224, ge=1)
    """Side of the square input, a multiple of the patch (paper: 480)."""
    unit: Literal["category", "instance"] = "category"
    """A target is everything of one class in an image, or every single object (connected component of a mask)."""
    prompt: Literal["interior", "random", "centroid", "oracle"] = "interior"
    """The target's patch farthest from its edge, random ones, that nearest its centre of mass, or the best (an upper bound)."""
    num_random: int = Field(default=5, ge=1)
    """Random prompts of a target, whose IoUs are averaged."""
    average: Literal["target", "category", "image"] = "target"
    """What counts equally in the mean."""
    thresholds: tuple[Cosine, ...] = Field(default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=1)
    """Cosines that a patch must exceed; the headline is the mean IoU at the best single one for all targets."""
    background_class: str = "background"
    """Class that is no target, where the data have one of this name; in COCO's format what no annotation covers."""


class ClusteringOptions(ProtocolOptions):
    """Segmentation by clusters of patch features, which get class names afterwards."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {
        "large": {"size_px": 480, "max_tokens": 500_000},
        "overclustering": {"num_clusters": 500, "naming": "majority"},
    }

    size_px: int = Field(default=224, ge=1)
    """Side of the square input, a multiple of the patch."""
    num_clusters: int = Field(default=0, ge=0)
    """Clusters of the whole data set; 0: as many as classes."""
    naming: Literal["hungarian", "majority"] = "hungarian"
    """Each class gets one cluster so that the sum of IoUs is greatest, or each cluster gets its most frequent class."""
    max_tokens: int = Field(default=50_000, ge=1)
    """Tokens that the clusters are fitted to, spread evenly over the images; all are then assigned."""
    restarts: int = Field(default=3, ge=1)
    """Initialisations, of which the best is kept."""


class VideoOptions(ProtocolOptions):
    """Label propagation in videos."""

    size_px: int = Field(default=240, ge=1)
    """Short side of the resized frames (papers: 480); the long one is cut to a multiple of 64 px."""
    num_context: int = Field(default=7, ge=0)
    """Last frames whose labels are used, beside the first frame."""
    num_neighbours: int = Field(default=5, ge=1)
    """Patches of all those frames that a patch takes its label from."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Of the weights exp(cosine / temperature)."""
    radius: int = Field(default=6, ge=0)
    """Rows and columns of patches around its own place in which a patch looks (papers: 12, at twice the size)."""
    masks: str = ""
    """Folder to write the masks of every frame to, as indexed PNG; nothing is written without it."""

    PRESETS: ClassVar[Presets] = {"paper": {"size_px": 480, "radius": 12}}
