# SPDX-License-Identifier: Apache-2.0
"""Options of protocols that describe features. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rekindle.evaluation.options import Presets, ProtocolOptions


class SimilarityOptions(ProtocolOptions):
    """How well cosines of patches tell whether two patches of an image show the same class."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {"paper": {"size_px": 480}}

    size_px: int = Field(default=224, ge=1)
    """Side of the square input, a multiple of the patch (paper: 480)."""
    background: Literal["inter_only", "class", "ignore"] = "inter_only"
    """Pairs of two background patches are left out, count like those of any class, or background is left out entirely."""
    background_class: str = "background"
    """Which class is meant, where the data have one of this name."""
    num_bins: int = Field(default=200, ge=2)
    """Bins of the histograms over [-1, 1]."""
    overlap: Literal["histogram", "kde"] = "histogram"
    """The overlap of the histograms themselves, or of Gaussian kernels on their bins."""
    bandwidth: float = Field(default=0.02, gt=0.0)
    """Of the kernels, as a cosine."""


class VarianceOptions(ProtocolOptions):
    """How much features change when an image is cropped, or half of it becomes noise."""

    WHOLE_PATCHES: ClassVar[tuple[str, ...]] = ("size_px",)

    PRESETS: ClassVar[Presets] = {"paper": {"num_images": 1000, "num_views": 128}}

    levels: tuple[Literal["class", "patch"], ...] = Field(default=("patch", "class"), min_length=1)
    """Class tokens of random crops, patch tokens of noised images, or both; the first is the headline."""
    num_images: int = Field(default=32, ge=1)
    """Images that are measured, a fixed draw for all models and seeds (paper: 1000)."""
    num_views: int = Field(default=16, ge=2)
    """Crops, and noised versions, of each image (paper: 128)."""
    batch_size: int = Field(default=32, ge=1)
    """Views that enter the network together."""
    size_px: int = Field(default=224, ge=1)
    """Side of the square input, a multiple of the patch and of `align_px`."""
    scale: tuple[float, float] = (0.25, 1.0)
    """Smallest and largest area of a crop, as a share of the image."""
    coverage: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the image that blocks of noise cover."""
    align_px: int = Field(default=16, ge=1)
    """Side of the cells that the blocks are made of."""
    max_block: float = Field(default=0.3, gt=0.0, le=1.0)
    """Longest side of a block, as a share of the image's."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> VarianceOptions:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale = {self.scale} must be a range within (0, 1]")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels = {self.levels} names one twice")
        return self


class CkaOptions(ProtocolOptions):
    """How similar the tokens of the blocks are (TEC, section 16)."""

    max_rows: int = Field(default=10_000, ge=2)
    """Tokens over all images for the similarity of the whole data set, at most."""
    size_px: int = Field(default=224, ge=1)
    """Short side of the resized image, rounded like the long one to a multiple of the patch."""
