# SPDX-License-Identifier: Apache-2.0
"""What a class token attends to, as a mask: the foreground of Leopart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from rekindle.core.precision import full_precision


@full_precision
def attended_patches(
    attention: Float[Tensor, "N H gh gw"], *, mass: float, blur_sigma: float
) -> Bool[Tensor, "N gh gw"]:
    """The fewest patches that hold a share of the attention, without specks.

    Leopart (arXiv:2204.13101), section 3.2, and its code: the mean over the heads, blurred over 7 x 7 patches; the patches with
    the most of it until they hold `mass`; connected pieces (also over corners) of one or two patches are left out. A grid of
    less than four patches a side is too small for the blur and goes without.

    Args: attention of the class token; mass in (0, 1]; blur_sigma in patches, > 0.
    """
    mean = attention.mean(dim=1, keepdim=True)
    smooth = gaussian_blur(mean, [7, 7], [blur_sigma, blur_sigma]) if min(mean.shape[-2:]) > 3 else mean
    share, order = smooth.flatten(1).sort(dim=1)
    kept = (share / share.sum(dim=1, keepdim=True)).cumsum(dim=1) > 1 - mass
    mask = torch.zeros_like(kept).scatter_(1, order, kept).view(mean.shape)
    return _without_specks(mask)[:, 0]


def _without_specks(mask: Bool[Tensor, "N 1 gh gw"]) -> Bool[Tensor, "N 1 gh gw"]:
    """Pieces of three patches and more: those with a patch that has two neighbours, so a patch that has, or is beside one."""
    around = F.avg_pool2d(mask.float(), 3, stride=1, padding=1, divisor_override=1)  # itself counted
    inner = mask & (around > 2.5)
    return mask & (F.max_pool2d(inner.float(), 3, stride=1, padding=1) > 0.5)
