# SPDX-License-Identifier: Apache-2.0
"""Contributions of the parts of a sum to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision


@dataclass(frozen=True)
class Contributions:
    """Shares of G parts, each of which sums to 1.

    Attributes:
        norm: [G], mean over tokens of |Z_n| / sum_m |Z_m|; never negative.
        signed: [G], <Z_n, S> / |S|^2 with the sum S of all parts, over all tokens at once; negative for a part that the others
            outweigh.
    """

    norm: Tensor
    signed: Tensor


@full_precision
def contributions(parts: Float[Tensor, "G N T D"]) -> Contributions:
    """Return the share of each part in the sum over the first axis (TEC, figure 5: groups of blocks in the fused features).

    The paper does not define its shares; these are ours. Raises: ValueError where all parts of a token, or their sum over all
    tokens, are 0: nothing has a share in nothing.
    """
    together, total = parts.norm(dim=-1).sum(dim=0), parts.sum(dim=0)
    length = total.square().sum()
    if bool((together == 0).any()) or bool(length == 0):
        raise ValueError("the parts add up to 0, so that none has a share in their sum")
    return Contributions(
        norm=norm_shares(parts),
        signed=torch.einsum("gntd,ntd->g", parts, total) / length,
    )


@full_precision
def norm_shares(parts: Float[Tensor, "G N T D"]) -> Float[Tensor, " G"]:
    """Return the mean over tokens of |Z_n| / sum_m |Z_m|; tokens of which all parts are 0 count as 0."""
    norms = parts.norm(dim=-1)
    shares: Tensor = (norms / norms.sum(dim=0).clamp_min(torch.finfo(norms.dtype).tiny)).mean(dim=(1, 2))
    return shares
