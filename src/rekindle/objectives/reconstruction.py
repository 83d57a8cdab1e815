# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of hidden patches."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rekindle.core.precision import full_precision

_EPS = 1e-6


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
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        patches = (patches - mean) / (variance + _EPS).sqrt()
    error = (predicted - patches).square().mean(dim=-1)
    return (error * hidden).sum() / hidden.sum().clamp_min(1)
