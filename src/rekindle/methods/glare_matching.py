# SPDX-License-Identifier: Apache-2.0
"""Correspondences of GLARE: C(s), the teacher's patches that show what the student's patch s shows, and what counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.methods.glare_options import GlareOptions
from rekindle.networks.tokens import Stem
from rekindle.objectives.pairs import Pairs, matched_patch_pairs, same_patch_pairs
from rekindle.objectives.prototypes import TargetRows
from rekindle.views.batch import ViewBatch, Views
from rekindle.views.geometry import Match, match_patches

Level = Literal["cls", "patch", "region"]


class Matching:
    """C(s) between the views of one batch, by their crops alone.

    Args: config, of GLARE; batch; patch_size of the backbone.
    Attributes: grid, of a large view; partner, [2B] row of the other large view of the same image; large, C(s) of the large
    views' patches in their partners.
    """

    def __init__(self, config: GlareOptions, batch: ViewBatch, patch_size: int) -> None:
        self._config, self._batch, self._patch_size = config, batch, patch_size
        self.grid = self._grid_of(batch.global_views)
        self.partner = torch.arange(2 * len(batch)).roll(len(batch))
        self.large = self._match(batch.global_views, self.partner)

    def directions(self, mask: Tensor) -> Tensor:
        """A mask of 2B rows; where one direction is asked for, without the rows of the second view."""
        if self._config.symmetric:
            return mask
        first = torch.arange(mask.shape[0], device=mask.device) < mask.shape[0] // 2
        return mask & first.view(-1, *[1] * (mask.ndim - 1))

    @property
    def num_views(self) -> int:
        """Large views of the student that count."""
        return len(self._batch) * (2 if self._config.symmetric else 1)

    def distorted_pairs(self, hit: Tensor) -> Pairs:
        """Eq. 8: a distorted patch with the teacher's clean patch at the same place of the same view. Args: hit [2B, gh, gw]."""
        masked = self.directions(hit.flatten(1))
        return same_patch_pairs(masked, num_views=self.num_views, reduction=self._config.reduction)

    def num_matched(self) -> Tensor:
        """Patches that eq. 9 compares."""
        return torch.stack([relation.any(dim=-1).sum() for relation, _ in self._relations]).sum()

    def matched_pairs(self, device: torch.device, count: Tensor) -> list[Pairs]:
        """Eq. 9: a patch with the teacher's patches C(s) of the other view; without any it does not count.

        First of the large views; then, if they take part, of the small ones in each of the teacher's two views.

        Args: count, this micro-batch's share of the step's matched patches.
        """
        config, batch, num_views = self._config, self._batch, self.num_views
        if len(self._relations) > 1:
            num_views += 2 * batch.num_local * len(batch)
        return [
            matched_patch_pairs(
                relation,
                teacher_view.to(device),
                num_views=num_views,
                reduction=config.reduction,
                match_reduction=config.match_reduction,
                count=count,
            )
            for relation, teacher_view in self._relations
        ]

    @cached_property
    def _relations(self) -> list[tuple[Tensor, Tensor]]:
        """C(s) of the student's large views, then of its small ones, and the teacher's view that each lies in."""
        found = [(self.directions(self.large.relation), self.partner)]
        if self._batch.local_views is not None and self._config.local_crops_in_loc2:
            found.extend(self._small(self._batch.local_views))
        return found

    def _small(self, small: Views) -> Iterator[tuple[Tensor, Tensor]]:
        """C(s) of the small crops' patches in each of the teacher's two views, and the rows of those views."""
        images = torch.arange(len(self._batch)).repeat(self._batch.num_local)
        for view in range(2):
            rows = images + view * len(self._batch)
            yield self._match(small, rows).relation, rows.to(small.pixels.device)

    def _grid_of(self, views: Views) -> tuple[int, int]:
        return views.pixels.shape[-2] // self._patch_size, views.pixels.shape[-1] // self._patch_size

    def _match(self, student: Views, rows: Tensor) -> Match:
        """C(s) between the student's views and these rows of the teacher's, [V*B, Ns, Nt]."""
        crops = self._batch.global_views.crops
        return match_patches(
            student.crops.flatten(),
            crops.flatten()[rows.to(crops.top.device)],
            self._grid_of(student),
            self.grid,
            mode=self._config.correspondence,
            threshold=self._config.correspondence_threshold,
        )


@dataclass(frozen=True)
class Regions:
    """Regions of a micro-batch's student views.

    Attributes:
        index: [2B, M, L] patches of each region R within its view.
        usable: [2B, M, L] those of them that count: matched, within the partner region R', of a valid region.
    """

    index: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Seen:
    """What a micro-batch is before any loss, without a graph.

    Attributes:
        batch: its views, and progress.
        clean: [2B, 3, S, S] large views, views first; start, what `Backbone.shared` makes of them.
        grid: of their patches.
        hit: [2B, gh, gw] patches to distort.
        match: C(s).
        rows: the teacher's unit rows before the prototypes, by level: class tokens, all patches, patches of regions.
        regions: where the regional term is on.
        counts: of what means run over, by the names of the terms.
    """

    batch: ViewBatch
    progress: Progress
    clean: Tensor
    start: Tensor | Stem
    grid: tuple[int, int]
    hit: Tensor
    match: Matching
    rows: dict[Level, Tensor]
    regions: Regions | None
    counts: dict[str, Tensor]


@dataclass(frozen=True)
class LocalPairs:
    """What eqs. 8 and 9 compare.

    Attributes:
        targets: the teacher's distributions of the patches that are used.
        image: [T] the image of each of them.
        num_images: B.
        same: pairs of eq. 8, if patches are distorted.
        matched: pairs of eq. 9 between the large views.
        small: pairs of eq. 9 of the small crops, if they take part.
    """

    targets: TargetRows
    image: Tensor
    num_images: int
    same: Pairs | None
    matched: Pairs
    small: Pairs | None


def take_patches(values: Tensor, index: Tensor) -> Tensor:
    """Gather values [N, P, C] at patch indices [N, M, L] -> [N, M, L, C]."""
    rows = torch.arange(values.shape[0], device=values.device).view(-1, 1, 1)
    return values[rows, index]
