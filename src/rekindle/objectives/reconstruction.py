# SPDX-License-Identifier: Apache-2.0
"""Reconstruction error of hidden patches and corrupted pixels, and what is to be predicted."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rekindle.core.precision import full_precision

TargetNorm = Literal["none", "channel", "patch"]
_EPS = 1e-6


def standardised(values: Float[Tensor, "N P C"], *, dim: int) -> Float[Tensor, "N P C"]:
    """Return (x - mean) / sqrt(variance + 1e-6) along one axis, with the unbiased variance; what is constant becomes 0."""
    mean, variance = values.mean(dim=dim, keepdim=True), values.var(dim=dim, keepdim=True)
    return (values - mean) / (variance + _EPS).sqrt()


@full_precision
def normalised_target(features: Float[Tensor, "N P C"], norm: TargetNorm) -> Float[Tensor, "N P C"]:
    """Return the features that are to be predicted, [N, P, C], of which P are all patches of an image.

    TEC (Gao et al., arXiv:2210.11016), eq. 3: `patch` gives every image and channel mean 0 and deviation 1 over the patches, so
    that what tells patches apart counts and the scale of a channel does not. `channel` does so for every patch over its
    channels, `none` leaves them (its ablation).
    """
    if norm == "none":
        return features
    return standardised(features, dim=1 if norm == "patch" else -1)


def as_patches(pixels: Float[Tensor, "N 3 H W"], patch_size: int) -> Float[Tensor, "N P C"]:
    """Cut images into patches, row by row; C = patch_size * patch_size * 3, colours last as in MAE's code."""
    n, channels, height, width = pixels.shape
    cut = pixels.reshape(n, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch_size * patch_size * channels)


@full_precision
def hidden_patch_error(
    predicted: Float[Tensor, "N P C"],
    patches: Float[Tensor, "N P C"],
    hidden: Bool[Tensor, "N P"],
    *,
    normalise: bool,
) -> Float[Tensor, ""]:
    """Squared error, mean over the numbers of a patch and over hidden patches; 0 if nothing is hidden.

    MAE (He et al., arXiv:2111.06377), section 3; normalise: each patch to mean 0 and (unbiased) variance 1 first.
    """
    if normalise:
        patches = standardised(patches, dim=-1)
    error = (predicted - patches).square().mean(dim=-1)
    return (error * hidden).sum() / hidden.sum().clamp_min(1)


@full_precision
def smooth_feature_error(
    predicted: Float[Tensor, "N T C"], features: Float[Tensor, "N T C"], *, beta: float
) -> Float[Tensor, ""]:
    """Smooth L1 distance to features whose tokens are whitened over their channels, mean over all numbers.

    FD (Wei et al., arXiv:2205.14141), section 3.1: a layer norm without a gain takes the scale of a base model's channels away.

    Args: features, without gradient; beta > 0, the error from which on it is linear.
    """
    whitened = F.layer_norm(features.detach(), features.shape[-1:])
    return F.smooth_l1_loss(predicted, whitened, beta=beta)


@full_precision
def corrupted_pixel_error(
    predicted: Float[Tensor, "R Q 3"], pixels: Float[Tensor, "R Q 3"], corrupted: Bool[Tensor, "R Q"]
) -> Float[Tensor, " R"]:
    """Absolute error of the corrupted pixels of each patch: sum over these, mean over the colours.

    MMC, L_REC: sum(M |x - x^|) / (3 sum(M)), of which this is a patch's share of sum(M |x - x^|) / 3. R patches of Q pixels.
    """
    error: Tensor = (predicted - pixels).abs().mean(dim=-1)
    return (error * corrupted).sum(dim=-1)
