# SPDX-License-Identifier: Apache-2.0
"""Options of the protocols that train nothing and look at patch features directly. Torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rekindle.evaluation.options import Presets, ProtocolOptions

Cosine = Annotated[float, Field(ge=-1.0, lt=1.0)]


class PromptedSegOptions(ProtocolOptions):
    """Segmentation of an object from one of its patches: the patches whose cosine with it exceeds a threshold."""

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


class SimilarityOptions(ProtocolOptions):
    """How well cosines of patches tell whether two patches of an image show the same class."""

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


class ClusteringOptions(ProtocolOptions):
    """Segmentation by clusters of patch features, which get class names afterwards."""

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
