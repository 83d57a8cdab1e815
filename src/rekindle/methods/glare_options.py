# SPDX-License-Identifier: Apache-2.0
"""Options of GLARE, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rekindle.methods.shared.distillation_options import CentredOptions
from rekindle.views.options import MatchMode, checked_threshold


class GlareOptions(CentredOptions):
    """Options of GLARE. [P] stated in the paper, [R] from the code it builds on, [D] decided here; see docs/methods/glare.md."""

    global_weight: float = Field(1.0, ge=0)
    """Weight w_g of L_glob [P]; 0 switches the term off."""
    regional_weight: float = Field(1.0, ge=0)
    """Weight w_r of L_reg [P]; 0 switches the term and its cross-attention off."""
    local_weight: float = Field(1.0, ge=0)
    """Weight w_l of L_loc1 + L_loc2 [P]; 0 switches both off."""

    balance: Literal["centre", "sinkhorn"] = "centre"
    """How the targets are kept from collapsing: running centre, or Sinkhorn-Knopp over the step's rows."""
    centre_momentum: float = Field(0.9, ge=0, le=1)
    """Weight of a centre's old value [R]."""
    num_centres: Literal[1, 2, 3] = 3
    """3: class, patch and region tokens have a centre each [D]; 2: patch and region share one; 1: all share one."""
    sinkhorn_iterations: int = Field(3, ge=1)
    """Iterations where `balance` is sinkhorn."""

    distortion: Literal["blur", "mask", "rotate", "noise", "none"] = "blur"
    """What happens to the chosen patches of the student's global views [P: blur]. `none` drops L_loc1 [D]."""
    distortion_shape: Literal["random", "block"] = "random"
    """Which patches are chosen [P: random]."""
    distortion_ratio: Literal["ibot", "fixed"] = "ibot"
    """ibot: none with probability 1/2, else a share drawn from U(0.1, 0.5) [P]; fixed: 30 % of every view."""
    blur_sigma_px: float = Field(5.0, gt=0)
    """Standard deviation of the patch blur, in pixels of the view [D]."""
    blur_sigma_max_px: float | None = Field(None, gt=0)
    """Draw the standard deviation once a step, uniformly from `blur_sigma_px` to this; None: it is constant [D]."""
    blur_scope: Literal["crop", "patch"] = "crop"
    """Blur the whole view and composite [D], or each patch in isolation."""
    student_input: Literal["distorted", "two_pass"] = "distorted"
    """All losses see the distorted view in one pass [D], or L_loc1 alone does and a second pass is clean."""

    correspondence: MatchMode = "containment"
    """When a patch of one view corresponds to one of the other [D]."""
    correspondence_threshold: float | None = None
    """Share of the smaller patch for `overlap` (0.5), teacher-patch widths for `nearest` (1); unused otherwise."""
    reduction: Literal["mean", "sum"] = "mean"
    """Eqs. 7-9 as averages [D] or as the printed sums."""
    match_reduction: Literal["mean", "sum"] = "mean"
    """Average over the patches C(s) that correspond to a patch [D], or sum."""
    local_crops_in_loc2: bool = False
    """Let small crops take part in L_loc2 [D: no]."""
    symmetric: bool = True
    """Both directions between the two global views [D]; off: the first is the student's, the second the teacher's."""

    num_regions: int | None = Field(None, ge=1)
    """Regions M per view; None: one per attention head [P]."""
    region_min_patches: int = Field(3, ge=1)
    """Smallest side of a region, in patches [D]."""
    region_max_patches: int = Field(7, ge=1)
    """Largest side of a region, in patches [D]."""
    region_start: Literal["attention", "random"] = "attention"
    """Start at the patch that a head of the class token attends to most [P], or anywhere."""
    region_anchor: Literal["top_left", "clip", "center"] = "top_left"
    """Where the start patch lies in the region [D]."""
    attention_source: Literal["teacher", "base"] = "teacher"
    """Whose attention: the teacher's [D], or the base's (adapters off, one more pass)."""
    min_region_patches: int = Field(1, ge=1)
    """Usable patches that a region needs to count [D]."""
    region_target: Literal["within", "eq6", "query_R"] = "within"
    """Reading of eq. 6 [D]: within: teacher's matched patches read the partner region; eq6: they read the region itself;
    query_R: the region's own patches read the partner region."""
    region_source: Literal["teacher", "student"] = "teacher"
    """Whose tokens of the student's view eq6 and query_R use; `student` encodes its large views once more."""
    attention_temperature: float | None = Field(None, gt=0)
    """Scale of the cross-attention's scores; None: 1 / sqrt(D) [D]."""
    attention_init: Literal["identity_value", "meanshift"] = "identity_value"
    """Start of the cross-attention: values pass unchanged [D], or all three maps identity with a tenth of the scale."""
    attention_residual: bool = False
    """Add a skip and a layer norm to the cross-attention [D: no]."""
    attention_prefix: bool = False
    """Let the student's queries also read the class and register tokens [D: patches only]."""

    @model_validator(mode="after")
    def _consistent(self) -> GlareOptions:
        if self.region_min_patches > self.region_max_patches:
            raise ValueError(
                f"region_min_patches = {self.region_min_patches} is larger than region_max_patches = "
                f"{self.region_max_patches}; lower the first or raise the second"
            )
        try:
            checked_threshold(self.correspondence, self.correspondence_threshold)
        except ValueError as error:
            raise ValueError(f"correspondence_threshold = {self.correspondence_threshold}: {error}") from error
        if self.blur_sigma_max_px is not None and self.blur_sigma_max_px < self.blur_sigma_px:
            raise ValueError(
                f"blur_sigma_max_px = {self.blur_sigma_max_px} is smaller than blur_sigma_px = {self.blur_sigma_px}; "
                "raise it, or leave it out for a constant blur"
            )
        if not (self.global_weight or self.regional_weight or self.local_weight):
            raise ValueError("all weights are 0, so there is no loss; give one of them a value above 0")
        return self
