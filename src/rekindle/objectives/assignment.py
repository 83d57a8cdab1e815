# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn assignment: from a teacher's logits to balanced distributions that the student has to match."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.distributed import all_max, all_sum
from rekindle.core.precision import full_precision


@full_precision
def sinkhorn(logits: Float[Tensor, "R K"], *, temperature: float, iterations: int = 3) -> Float[Tensor, "R K"]:
    """Balanced assignment: Sinkhorn-Knopp on exp(logits / temperature) over all rows of all processes.

    Caron et al., SwAV (arXiv:2006.09882), section 3.1. Columns are scaled towards equal sums, then rows to sum 1;
    the rows are normalised last, so each row is a distribution whatever the number of iterations.

    Args: logits [R, K] of this process (R may be 0); temperature > 0; iterations >= 1.
    Returns: probabilities without gradient, [R, K].
    """
    rows, num_prototypes = logits.shape
    total_rows = all_sum(logits.new_tensor(float(rows)))
    scaled = logits.detach() / temperature
    largest = all_max(scaled.amax() if rows else scaled.new_tensor(-torch.inf))
    weights = (scaled - largest).exp()  # one constant over everything cancels, and keeps the exponential in range
    for _ in range(iterations):
        column_sum = all_sum(weights.sum(dim=0)).clamp_min(1e-30)
        weights = weights / column_sum * (total_rows / num_prototypes)
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    return weights
