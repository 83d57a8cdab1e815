# SPDX-License-Identifier: Apache-2.0
"""Correspondences of LOCA: the queries, and which patch of the reference shows what each of theirs shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.tracking import relative_box, track_patches


@dataclass(frozen=True)
class Queries:
    """The queries of one size, queries first.

    Attributes:
        tokens: [V * B, Q, D] of the student.
        cls: [V * B, D] class tokens, None for a backbone without.
        index: [V * B, Q] reference patch of each; valid: [V * B, Q], whether there is one.
        central: place of the central patch among the Q.
        box: [V * B, 4] in fractions of the reference; has_box: [V * B].
    """

    tokens: Tensor
    cls: Tensor | None
    index: Tensor
    valid: Tensor
    central: int
    box: Tensor
    has_box: Tensor

    @staticmethod
    def tracked(
        batch: ViewBatch,
        views: Views,
        tokens: Tensor,
        cls: Tensor | None,
        *,
        grids: tuple[int, tuple[int, int]],
        keep: Tensor | None,
        central: int,
    ) -> Queries:
        """Put beside the tokens of query views where they lie in the reference of their image, the first large view.

        Args: tokens and cls of the views; grids: patches per side of the reference, and of a query; keep: [V * B, Q] patches
        of a query that the tokens are, None: all of them; central.
        """
        side, grid = grids
        num = views.crops.top.shape[0]
        reference = batch.global_views.crops[:1]
        reference = Crops(*(getattr(reference, n).expand(num, -1).flatten() for n in Crops.__dataclass_fields__))
        own = views.crops.flatten()
        found = track_patches(
            reference,
            own,
            reference_grid=(side, side),
            query_size_px=int(views.pixels.shape[-1]),
            query_grid=grid,
        )
        index, valid = found.index.to(tokens.device), found.valid.to(tokens.device)
        if keep is not None:
            index, valid = index.gather(1, keep), valid.gather(1, keep)
        box, has_box = (t.to(tokens.device) for t in relative_box(reference, own))
        return Queries(tokens, cls, index, valid, central, box, has_box)


def kept_with(keep: Tensor, patch: int) -> Tensor:
    """Kept patches [N, L] with `patch` in the first place; it takes the place of the last one where it was not among them."""
    leaves = keep == patch
    leaves[~leaves.any(dim=1), -1] = True
    return torch.cat([torch.full((len(keep), 1), patch), keep[~leaves].view(len(keep), -1)], dim=1)
