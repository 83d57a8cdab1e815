# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn assignment: from a teacher's logits to balanced distributions that the student has to match."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

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
    scaled = logits.detach() / temperature
    return (scaled + sinkhorn_shift(lambda: [scaled], scaled.new_zeros(scaled.shape[1]), iterations)).softmax(dim=-1)


@torch.no_grad()
def sinkhorn_shift(
    blocks: Callable[[], Iterable[Float[Tensor, "r K"]]], start: Float[Tensor, " K"], iterations: int
) -> Float[Tensor, " K"]:
    """Logarithm of the columns' scales that Sinkhorn-Knopp ends with: its assignment is softmax(logits + shift), row by row.

    So rows can be balanced over a whole step and computed a block at a time: what a block needs of the others is this. In
    logarithms a prototype that is far from all rows keeps its share, where exp(logits) would be 0.

    Args: blocks, gives the logits of all rows of this process, divided by the temperature, anew at each call; start, zeros [K]
    where the logits are; iterations >= 1.
    """
    shift = start
    rows = 0
    for iteration in range(iterations):
        if iteration == 0:
            logs = [(len(block), block.logsumexp(dim=0)) for block in blocks() if len(block)]
            rows = int(all_sum(shift.new_tensor(float(sum(n for n, _ in logs)), dtype=torch.float64)))
            if rows == 0:
                return shift
            own = torch.stack([v for _, v in logs]).logsumexp(dim=0) if logs else torch.full_like(shift, -math.inf)
            largest = all_max(own)
            column = largest + all_sum((own - largest).exp()).log()
        else:
            sums = torch.stack([shift, *((block + shift).softmax(dim=-1).sum(dim=0) for block in blocks())])[1:].sum(0)
            column = all_sum(sums).log()
        shift = shift + math.log(rows / len(shift)) - column
    return shift
