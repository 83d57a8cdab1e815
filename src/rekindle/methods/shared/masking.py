# SPDX-License-Identifier: Apache-2.0
"""Masking of methods that encode the visible patches alone (MAE, TEC): their crops, and the draw of what stays visible."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.core.rng import row_uniform

PLAIN_CROPS: Mapping[str, object] = {
    "views.num_local": 0,
    "views.global_scale": (0.2, 1.0),
    "views.jitter_p": 0.0,
    "views.grey_p": 0.0,
    "views.blur_p": (0.0, 0.0, 0.0),
    "views.solarize_p": (0.0, 0.0, 0.0),
    "network.drop_path": 0.0,
}
"""Large crops and flips, nothing else, and no stochastic depth (MAE, arXiv:2111.06377, appendix A.1)."""


def draw_visible(
    progress: Progress, rows: int, views: int, num_patches: int, mask_ratio: float
) -> tuple[Int64[Tensor, "N L"], Bool[Tensor, "N P"]]:
    """Draw which patches of each view stay visible (ascending), and the mask of the others; at least one of each.

    Returns: on the CPU, N = views * rows with views first.
    """
    noise = row_uniform("visible", progress, rows, views, num_patches).transpose(0, 1).flatten(0, 1)
    count = min(max(1, int(num_patches * (1 - mask_ratio))), num_patches - 1)
    keep = noise.argsort(dim=1)[:, :count].sort(dim=1).values
    hidden = torch.ones(noise.shape, dtype=torch.bool).scatter_(1, keep, False)
    return keep, hidden
