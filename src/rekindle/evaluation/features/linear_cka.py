# SPDX-License-Identifier: Apache-2.0
"""Linear centred kernel alignment (Kornblith et al., arXiv:1905.00414)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision


@full_precision
def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Float[Tensor, ""]:
    """Return |Y'X|^2 / (|X'X| |Y'Y|) of centred columns, Frobenius norms, in float64: in [0, 1], and 0 where one is constant.

    Kornblith et al., arXiv:1905.00414, eq. 3. Rows belong together. The smaller of n x n and p x q matrices are computed.
    """
    a, b = (z.double() - z.double().mean(dim=0) for z in (x, y))
    if len(a) < max(a.shape[1], b.shape[1]):
        rows_a, rows_b = a @ a.T, b @ b.T
        shared, own = (rows_a * rows_b).sum(), rows_a.norm() * rows_b.norm()
    else:
        shared, own = (b.T @ a).square().sum(), (a.T @ a).norm() * (b.T @ b).norm()
    return torch.where(own > 0, shared / own.clamp(min=torch.finfo(own.dtype).tiny), 0.0)
