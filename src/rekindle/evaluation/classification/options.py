# SPDX-License-Identifier: Apache-2.0
"""Options of protocols that classify or find whole images. Torch-free.

The defaults are small presets that say something in minutes on two cores; `PRESETS` holds the papers' own settings.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rekindle.evaluation.options import Presets, ProtocolOptions
from rekindle.evaluation.training.options import TrainingOptions

Descriptor = Literal["cls", "pat", "hyb"]
Inputs = Literal["cls", "pat", "cls+pat"]


class KnnOptions(ProtocolOptions):
    """Classification by nearest neighbours (E4)."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    k: int = Field(default=10, ge=1)
    """Neighbours that vote in the headline (MMC's main setting)."""
    other_k: tuple[int, ...] = (20, 50, 100)
    """Other numbers of neighbours to report; those above the number of training images are left out."""
    descriptor: Descriptor = "cls"
    """What stands for an image in the headline: class token, mean of the patch tokens, or both."""
    every_descriptor: bool = True
    """Also report the other descriptors that the model has."""
    temperature: float = Field(default=0.07, gt=0.0)
    """A neighbour's vote weighs exp(cosine / temperature)."""
    standardise: bool = False
    """First subtract the training images' mean and divide by their deviation, for features that are not centred (MAE)."""
    size_px: int = Field(default=224, ge=1)
    """Side of the centre crop; the short side is resized to 256 / 224 of it first."""


class OneShotOptions(ProtocolOptions):
    """Episodes of a few classes with one labelled image each (E5)."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {"paper": {"queries": 15}}

    episodes: int = Field(default=1000, ge=2)
    """How many; the seed draws them."""
    ways: int = Field(default=5, ge=2)
    """Classes of an episode."""
    shots: int = Field(default=1, ge=1)
    """Labelled images of each class; a query takes the class of the most similar one."""
    queries: int = Field(default=10, ge=1)
    """Images of each class that are classified."""
    descriptor: Descriptor = "cls"
    """What stands for an image: class token, mean of the patch tokens, or both."""
    headline: Literal["accuracy", "F1"] = "accuracy"
    """What is compared: nearest neighbours, or the decision "same class" by a threshold on the cosine. Both are reported."""
    size_px: int = Field(default=224, ge=1)
    """Side of the centre crop; the short side is resized to 256 / 224 of it first."""


class ImageRetrievalOptions(ProtocolOptions):
    """Retrieval of images that show the same place, by the rules of revisited Oxford and Paris (E6)."""

    PRESETS: ClassVar[Presets] = {
        "multi-scale": {"size_px": 512, "scales": (1.0, 0.7071, 0.5)},
        "official": {"size_px": 1024, "scales": (1.0, 0.7071, 0.5), "crop_query": True},
    }

    size_px: int = Field(default=224, ge=1)
    """Longest side of an image; larger ones are reduced to it, smaller ones stay."""
    scales: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """The descriptor is the mean over these sizes, relative to the first, each of unit length."""
    crop_query: bool = False
    """Cut queries to their box first, as the official protocol does."""
    descriptor: Descriptor = "cls"
    """What stands for an image: class token, mean of the patch tokens, or both."""
    level: Literal["easy", "medium", "hard"] = "medium"
    """Which positives count in the headline; all three are reported."""
    ranks: tuple[int, ...] = (1, 5, 10)
    """Precision among the first so many is reported, too."""


class LinearProbeOptions(ProtocolOptions):
    """A linear classifier on a frozen backbone (E10; TEC, section 14)."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {
        "paper": {"lr": 0.1, "batch_size": 16384, "epochs": 90, "warmup_epochs": 10.0, "augment": True},
        "lars": {"lr": 0.1, "batch_size": 16384, "epochs": 90, "warmup_epochs": 10.0, "augment": True},
        "sgd": {
            "recipe": "sgd",
            "lr": 0.001,
            "batch_size": 1024,
            "epochs": 100,
            "warmup_epochs": 0.0,
            "num_blocks": 4,
            "augment": True,
        },
        "sgd-base": {
            "recipe": "sgd",
            "lr": 0.001,
            "batch_size": 1024,
            "epochs": 100,
            "warmup_epochs": 0.0,
            "inputs": "cls+pat",
            "augment": True,
        },
    }

    recipe: Literal["lars", "sgd"] = "lars"
    """MAE's: BatchNorm without affine, and LARS; or DINO's: no norm, and gradient descent with momentum."""
    inputs: Inputs = "cls"
    """What the classifier reads: class tokens, the mean of the patch tokens, or both."""
    num_blocks: int = Field(default=1, ge=1)
    """Class tokens of so many last blocks, joined (DINO: 4 for ViT-S); the patches are those of the last block."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=256, ge=2)
    """Images per step; a rest of a single image is left out."""
    lr: float = Field(default=16.0, gt=0.0)
    """Rate for 256 images a step, growing linearly with their number (papers: 0.1 with LARS, 0.001 with sgd, and thousands of
    steps)."""
    warmup_epochs: float = Field(default=5.0, ge=0.0)
    """Passes in which the rate rises linearly, before it falls to 0 along a cosine."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of both optimizers."""
    augment: bool = False
    """Random resized crops and mirror images, extracted anew in every pass; without it the features are computed once."""
    size_px: int = Field(default=224, ge=1)
    """Side of the input."""
    max_cache_gib: float = Field(default=8.0, gt=0.0)
    """Refuse data whose descriptors would take more memory than this."""


_TEC: dict[str, object] = {
    "epochs": 100.0,
    "warmup_epochs": 20.0,
    "batch_size": 1024,
    "lr": 1e-3,
    "lr_images": 256,
    "head_lr_scale": 1.0,
    "final_lr": 1e-6,
    "layer_decay": 0.55,
    "drop_path": 0.1,
    "inputs": "pat",
    "head_norm": True,
    "augmentation": "rand-m9-mstd0.5-inc1",
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
}
"""TEC, table 15, for a ViT-B."""


_GLARE: dict[str, object] = {
    "epochs": 100.0,
    "warmup_epochs": 5.0,
    "batch_size": 128,
    "lr": 1e-4,
    "head_lr_scale": 1.0,
    "layer_decay": 1.0,
    "crop_area": (0.35, 1.0),
}
"""GLARE, specification 9.2 (the paper gives no recipe): the class token, weight decay 0.05, smoothing 0.1, drop path 0.1 and
224 px are the defaults."""


class FinetuneOptions(TrainingOptions):
    """Classification by fine-tuning the whole network (E9; TEC, section 13)."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {
        "mmc": _TEC
        | {
            "warmup_epochs": 5.0,
            "batch_size": 256,
            "lr": 5e-4,
            "layer_decay": 0.65,
            "inputs": "cls+pat",
            "head_norm": False,
            "random_erasing": 0.0,
        },
        "mmc-small": _TEC
        | {
            "epochs": 200.0,
            "warmup_epochs": 5.0,
            "batch_size": 128,
            "lr": 5e-4,
            "layer_decay": 0.65,
            "inputs": "cls+pat",
            "head_norm": False,
            "augmentation": "3-augment",
            "random_erasing": 0.0,
        },
        "derm7pt": _GLARE,
        "covidx": _GLARE,
        "tec-mae": _TEC | {"class_token_layer": "head"},
        "tec-ibot": _TEC | {"layer_decay": 0.65, "class_token_layer": "head"},
        "tec-large": _TEC
        | {
            "epochs": 50.0,
            "warmup_epochs": 5.0,
            "layer_decay": 0.65,
            "final_lr": 1e-5,
            "class_token_layer": "head",
        },
    }

    schedule: Literal["poly", "cosine"] = "cosine"
    """How the rate falls after the warm-up: as a power of what is left, or along half a cosine."""
    batch_size: int = Field(default=16, ge=2)
    """Images per step; even where images are mixed."""
    layer_decay: float = Field(default=0.65, gt=0.0, le=1.0)
    """Each block's rate is this times the next one's, down to the patch embedding."""
    drop_path: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Stochastic depth of the last block; it rises linearly from 0 over the blocks."""
    epochs: float = Field(default=0.0, ge=0.0)
    """Passes over the training images; 0: `steps` and `warmup_steps` hold."""
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    """Warm-up where `epochs` are given."""
    lr_images: int = Field(default=0, ge=0)
    """The rates are for batches of so many images and grow linearly with the batch; 0: as given."""
    inputs: Inputs = "cls"
    """What the classifier reads: the class token, the mean of the patch tokens, or both."""
    head_norm: bool = False
    """A LayerNorm of the classifier's own in place of the network's final one (MAE, TEC)."""
    size_px: int = Field(default=224, ge=1)
    """Side of the training crop and of the centre crop of the test."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the image that a training crop covers."""
    augmentation: str = "none"
    """After crop and mirror image: none, 3-augment (one of grey, solarise, blur; then colours), or a RandAugment of timm
    (rand-m9-mstd0.5-inc1)."""
    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the target that goes to all classes alike."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Parameter of the Beta distribution that two images are mixed with; 0 mixes none."""
    cutmix: float = Field(default=0.0, ge=0.0)
    """Parameter of the Beta distribution of the part that comes from another image; 0 cuts none."""
    random_erasing: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability that a box of the image becomes noise."""
    train: Literal["all", "head", "input-adapter", "encoder-adapters"] = "all"
    """What learns: everything; the classifier; it and the class token with its MLP; these and the encoder adapters (TEC)."""
    conditioning: str = ""
    """Run folder of a TEC training, whose adapters `input-adapter` and `encoder-adapters` take."""
