# SPDX-License-Identifier: Apache-2.0
"""Options of LOCA, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rekindle.methods.shared.distillation_options import DistillationOptions
from rekindle.views.options import VisibleShape


class LocaOptions(DistillationOptions):
    """Options of LOCA; defaults are the paper's, from its released code where the two differ."""

    position_weight: float = Field(1.0, ge=0)
    """Weight of L_pos; 0 for clusters only."""
    cluster_weight: float = Field(1.0, ge=0)
    """Weight of L_clu; 0 for positions only: the reference branch then trains, and queries have no position embedding."""
    memax_weight: float = Field(1.0, ge=0)
    """Weight of the mean-entropy maximisation."""
    reference_grid: int | None = Field(None, ge=1)
    """Patches per side of the reference view, which are the classes of L_pos; None: as the views have them."""
    position_mode: Literal["query_reference", "single"] = "query_reference"
    """Queries are located in a reference, or every patch of one view in that view, without position embedding, where all patches
    read only the visible ones (Zhai et al., arXiv:2207.07611); needs cluster_weight 0."""
    position_target: Literal["all", "central", "box"] = "all"
    """What is located: every patch of a query, its central patch, or its box (l1 and generalised IoU, as UP-DETR)."""
    mask_ratio: float = Field(0.8, ge=0, le=1)
    """Share eta of the reference's patches that queries cannot see; 1 hides all."""
    mask_shape: VisibleShape = "structured"
    """Which stay visible: a run in reading order, the first ones, any, or a rectangle."""
    shared_masks: bool = True
    """One draw for all images of a step, of what stays visible and of what a large query keeps."""
    query_keep: float = Field(0.36, gt=0, le=1)
    """Share of the large query's patches that enter the encoder (70 of 196)."""
    cluster_level: Literal["patch", "image_cls", "image_gap"] = "patch"
    """What is clustered: patches, class tokens, or the mean of the patches."""
    sinkhorn: bool = True
    """Balance the targets over the step's reference rows."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Iterations of Sinkhorn-Knopp."""
    num_prototypes: int = Field(4096, ge=2)
    """Clusters K, the outputs of the head."""
    norm_last_layer: bool = True
    """Prototypes have unit length, so that scores are cosines."""
    teacher_temperature: tuple[float, float] = (0.05, 0.05)
    """Sharpening of the targets."""
    teacher_temperature_epochs: int = Field(0, ge=0)
    """Epochs between the two."""
    freeze_last_layer_epochs: int = Field(0, ge=0)
    """Epochs in which the prototypes do not move."""
    export: Literal["teacher", "student"] = "student"
    """Which network is saved and evaluated."""

    @model_validator(mode="after")
    def _consistent(self) -> LocaOptions:
        if not (self.position_weight or self.cluster_weight):
            raise ValueError("position_weight and cluster_weight are both 0, so there is no loss; raise one of them")
        if self.position_mode == "single" and (self.cluster_weight or self.position_target != "all"):
            raise ValueError(
                "position_mode = single locates all patches of a view in itself, without clusters; set cluster_weight = 0 and "
                "position_target = all"
            )
        return self
