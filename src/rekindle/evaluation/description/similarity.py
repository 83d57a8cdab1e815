# SPDX-License-Identifier: Apache-2.0
"""Cosines of patches within a class against those across classes (MMC, table 5).

Of each image all pairs of patches are counted in two histograms: both patches of one class (intra), or of different ones (inter).
The headline is the overlap of the two, each image counting equally: 0 where a threshold tells all pairs apart, 1 where cosines
say nothing. Images without pairs of both kinds are skipped and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.labelled.objects import ObjectSplit
from rekindle.evaluation.description.options import SimilarityOptions
from rekindle.evaluation.features.object_tokens import check_side, class_pixels, nearest, token_classes, unit_tokens
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.threshold_scores import Overlap


@dataclass(frozen=True)
class PairCounts:
    """Unordered pairs of patches of one image.

    Attributes:
        histogram: [num_bins], pairs in each bin of the cosine over [-1, 1].
        total: sum of their cosines.

    """

    histogram: NDArray[np.float64]
    total: float

    @property
    def count(self) -> float:
        """Number of pairs."""
        return float(self.histogram.sum())

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.histogram + other.histogram, self.total + other.total)

    def __sub__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.histogram - other.histogram, self.total - other.total)


def count_pairs(
    tokens: Tensor, classes: Tensor, num_bins: int, background: int | None
) -> tuple[PairCounts, PairCounts]:
    """Count all pairs of patches: of one class, and of different ones.

    Tokens are sorted by class, so that pairs of one class are blocks of the matrix of cosines, and every number of it is read
    once for the whole and once for its block.

    Args:
        tokens: of unit length [P, D].
        classes: [P].
        num_bins: of the histograms.
        background: class whose own pairs are in neither of the two; None for none.

    """
    sizes = torch.bincount(classes).tolist()
    ordered = tokens[classes.argsort(stable=True)]
    cosines = (ordered @ ordered.T).clamp(-1.0, 1.0)
    everything = _block(cosines, num_bins)
    same = within = PairCounts(np.zeros(num_bins), 0.0)
    first = 0
    for class_id, size in enumerate(sizes):
        own = slice(first, first + size)
        found = _block(cosines[own, own], num_bins)
        first += size
        same = same + found
        if class_id != background:
            within = within + found
    return within, everything - same


def _block(cosines: Tensor, num_bins: int) -> PairCounts:
    """Pairs above the diagonal of a symmetric block."""
    diagonal = cosines.diagonal()
    histogram = _histogram(cosines, num_bins) - _histogram(diagonal, num_bins)
    total = cosines.sum(dtype=torch.float64) - diagonal.sum(dtype=torch.float64)
    return PairCounts(histogram / 2, float(total) / 2)


def _histogram(cosines: Tensor, num_bins: int) -> NDArray[np.float64]:
    bins = ((cosines + 1.0) * (num_bins / 2)).to(torch.int32).clamp_(max=num_bins - 1)  # 1 itself is in the last
    return np.asarray(torch.bincount(bins.flatten(), minlength=num_bins).cpu().numpy(), np.float64)


class Similarity(Protocol[SimilarityOptions, ObjectSplit]):
    """The protocol; see the module. Nothing is random: every seed gives the same."""

    Config = SimilarityOptions
    DATA = "objects"
    USES_TRAIN = False

    _measured: Outcome

    def check(self) -> None:
        """Refuse a size that the patch does not divide."""
        check_side(self.config.size_px, self.extractor.patch_size, "similarity.size_px")

    def prepare(self) -> None:
        """Count the pairs of every image."""
        config, names, patch = self.config, self.test.names, self.extractor.patch_size
        named = names.index(config.background_class) if config.background_class in names else None
        items, rows, tokens_of = [], [], np.zeros(len(names))
        found = self.features.of(self.test, Sizing("square", config.size_px), message=self.message)
        for index, tokens in enumerate(found):
            ids = nearest(self.test.class_map(index), config.size_px)
            classes = token_classes(class_pixels(ids, len(names), patch), patch)
            if config.background == "ignore" and named is not None:
                classes = torch.where(classes == named, -1, classes)
            kept = classes >= 0
            tokens_of += np.bincount(classes[kept].numpy(), minlength=len(names))
            own = named if config.background == "inter_only" else None
            patches = unit_tokens(tokens[0].patches[0])[kept].to(self.extractor.device)
            pairs = count_pairs(patches, classes[kept], config.num_bins, own)
            if min(kind.count for kind in pairs) == 0:
                continue
            items.append(self.test.items[index])
            shares = [kind.histogram / kind.count for kind in pairs]
            rows.append(np.concatenate([*shares, [kind.total / kind.count for kind in pairs], [1.0]]))
        if not rows:
            raise RequestError(
                "no image has pairs of patches of one class and pairs of two; look at the masks, at similarity.size_px and at "
                "similarity.background"
            )
        score = Overlap(num_bins=config.num_bins, bandwidth=config.bandwidth if config.overlap == "kde" else None)
        counts = {"images": len(items), "skipped_images": len(self.test.items) - len(items)}
        areas = {f"area/{n}": float(a) for n, a in zip(names, tokens_of / max(1.0, tokens_of.sum()), strict=True)}
        self._measured = Outcome(items, np.stack(rows), score, counts, areas)

    def run(self, seed: int) -> Outcome:
        """Return what was counted."""
        return self._measured
