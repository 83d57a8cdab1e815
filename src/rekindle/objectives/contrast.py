# SPDX-License-Identifier: Apache-2.0
"""Contrast between images: each query has to find its own key among those of all images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision


@full_precision
def info_nce(
    queries: Float[Tensor, "B C"], keys: Float[Tensor, "G C"], *, temperature: float, first: int = 0
) -> Float[Tensor, ""]:
    """InfoNCE with cosines: -log softmax(q k / temperature) at each query's own key, mean over queries, in nats.

    MoCo v3 (Chen et al., arXiv:2104.02057), eq. 1 and algorithm 1, without its factor 2 * temperature.

    Args: queries; keys of all processes, without gradient; temperature > 0; first, row of the first query's own key.
    Raises: ValueError if temperature <= 0 or the own keys are not among the keys.
    """
    if temperature <= 0 or not 0 <= first <= len(keys) - len(queries):
        raise ValueError(f"need temperature > 0 and own keys among the {len(keys)}; got {temperature}, first={first}")
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys.detach(), dim=-1).T / temperature
    return F.cross_entropy(logits, first + torch.arange(len(queries), device=queries.device))
