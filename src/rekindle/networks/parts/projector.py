# SPDX-License-Identifier: Apache-2.0
"""The multi-layer projector of contrastive methods."""

from __future__ import annotations

import itertools

from torch import nn


class Projector(nn.Sequential):
    """Linear maps without bias, each followed by batch normalisation; ReLU in between, no affine map at the end.

    MoCo v3 (arXiv:2104.02057), section 4.3 and its code. The statistics are always the batch's own, also in the teacher, as
    when that code trains; so at least two rows are needed.

    Args: widths, of the input, of each hidden layer, and of the output.
    """

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(itertools.pairwise(widths)):
            is_last = place == len(widths) - 2
            layers.append(nn.Linear(before, after, bias=False))
            layers.append(nn.BatchNorm1d(after, affine=not is_last, track_running_stats=False))
            if not is_last:
                layers.append(nn.ReLU())
        super().__init__(*layers)
