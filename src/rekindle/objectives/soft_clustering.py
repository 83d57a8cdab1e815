# SPDX-License-Identifier: Apache-2.0
"""Mean shift: clustering of tokens by attention without parameters (FLSL, arXiv:2306.06203), and the volume of clusters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision


@full_precision
def soft_read(
    queries: Float[Tensor, "N M D"], memory: Float[Tensor, "N P D"], *, temperature: float
) -> Float[Tensor, "N M D"]:
    """softmax(temperature / sqrt(D) * q Z^T) Z: where a step of mean shift from q leads, among the tokens Z."""
    scale = temperature / math.sqrt(queries.shape[-1])
    weights: Tensor = (scale * (queries @ memory.transpose(1, 2))).softmax(dim=-1)
    return weights @ memory


@full_precision
def mean_shift_error(tokens: Float[Tensor, "N M D"], shifted: Float[Tensor, "N M D"]) -> Float[Tensor, "N M"]:
    """2 - 2 cos(z, z^), in [0, 4]: FLSL's L_ms of each token."""
    cosine: Tensor = F.cosine_similarity(tokens, shifted, dim=-1)
    return 2 - 2 * cosine


@full_precision
def volume(assigned: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """sum_k p log p + log K of a mean assignment p: 0 if it is uniform, log K if one cluster holds all. FLSL's L_vmr."""
    negative_entropy: Tensor = torch.special.xlogy(assigned, assigned).sum()
    return negative_entropy + math.log(len(assigned))
