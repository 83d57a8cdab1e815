# SPDX-License-Identifier: Apache-2.0
"""Retrieval of images that show the same place, by the rules of revisited Oxford and Paris (E6; arXiv:1803.11285).

Every query ranks the database by cosine. Junk images, which are neither right nor wrong, are taken out of the ranking before
positions are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.data.labelled.retrieval import Query, RetrievalFolder
from rekindle.evaluation.classification.options import ImageRetrievalOptions
from rekindle.evaluation.features.dense_features import extract_each, resize_image
from rekindle.evaluation.features.descriptors import check_descriptor, describe
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import DefinedMeans

LEVELS = ("easy", "medium", "hard")
NEWS_EVERY = 200


def average_precision(ranks: Sequence[int], num_positives: int) -> float:
    """Area under the curve of precision over recall, by trapezoids.

    Args:
        ranks: of the positives that are ranked, from 0, rising.
        num_positives: all of them, above 0.

    """
    total = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        total += (before + (found + 1) / (rank + 1)) / (2 * num_positives)
    return total


def precision_at(ranks: Sequence[int], k: int) -> float:
    """Share of positives among the first k, or among those up to the last positive where it comes earlier."""
    reach = min(max(ranks) + 1, k)
    return sum(rank < reach for rank in ranks) / reach


def positives_and_junk(query: Query, level: str) -> tuple[set[int], set[int]]:
    """Return what counts as right, and what is taken out of the ranking, at a level."""
    easy, hard, junk = set(query.easy), set(query.hard), set(query.junk)
    return {"easy": (easy, junk | hard), "medium": (easy | hard, junk), "hard": (hard, junk | easy)}[level]


def cleaned_ranks(ranking: NDArray[np.int64], positives: set[int], junk: set[int]) -> list[int]:
    """Return the ranks of the positives, from 0, in a ranking of positions without the junk."""
    kept = ranking[~np.isin(ranking, list(junk))]
    found: list[int] = np.isin(kept, list(positives)).nonzero()[0].tolist()
    return found


class ImageRetrieval(Protocol[ImageRetrievalOptions, RetrievalFolder]):
    """The protocol; see the module. Nothing is drawn: every seed gives the same."""

    Config = ImageRetrievalOptions
    DATA = "retrieval"
    USES_TRAIN = False

    _queries: Tensor
    _database: Tensor

    def check(self) -> None:
        """Refuse a descriptor that the model has not, scales that are none, and queries without a box to cut."""
        config = self.config
        check_descriptor("image_retrieval.descriptor", config.descriptor, self.extractor)
        if min(config.scales) <= 0 or min(config.ranks, default=1) < 1:
            raise RequestError(
                f"image_retrieval.scales = {config.scales} and ranks = {config.ranks} must be above 0, for example "
                "(1.0, 0.7071, 0.5) and (1, 5, 10)"
            )
        if config.crop_query and any(query.box is None for query in self.test.truth):
            raise RequestError("image_retrieval.crop_query = true, but not every query has a box (bbx) in the data")
        if not any(positives_and_junk(query, config.level)[0] for query in self.test.truth):
            raise RequestError(
                f"no query has a positive at image_retrieval.level = {config.level}; choose another level"
            )

    def prepare(self) -> None:
        """Compute the descriptors of queries and database."""
        self._queries = self._descriptors(len(self.test), self._query)
        self._database = self._descriptors(len(self.test.database), self.test.database_image)

    def run(self, seed: int) -> Outcome:
        """Rank the database for every query."""
        config = self.config
        rankings = (self._queries @ self._database.T).sort(dim=1, descending=True, stable=True).indices.numpy()
        names = [f"{metric} {level}" for level in LEVELS for metric in ("mAP", *(f"mP@{k}" for k in config.ranks))]
        values, weights = np.zeros((len(self.test), len(names))), np.zeros((len(self.test), len(names)))
        for number, (query, ranking) in enumerate(zip(self.test.truth, rankings, strict=True)):
            for level_number, level in enumerate(LEVELS):
                positives, junk = positives_and_junk(query, level)
                if not positives:
                    continue  # such a query does not count at this level
                ranks = cleaned_ranks(ranking, positives, junk)
                first, width = level_number * (1 + len(config.ranks)), 1 + len(config.ranks)
                precisions = [precision_at(ranks, k) for k in config.ranks]
                values[number, first : first + width] = [average_precision(ranks, len(positives)), *precisions]
                weights[number, first : first + width] = 1.0
        score = DefinedMeans(headline=f"mAP {config.level}", names=names)
        counts = {"queries": len(self.test), "images": len(self.test.database)}
        return Outcome(self.test.items, np.concatenate([values, weights], axis=1), score, counts)

    def _query(self, index: int) -> Tensor:
        image, box = self.test.image(index), self.test.truth[index].box
        if not self.config.crop_query or box is None:
            return image
        left, top, right, bottom = (int(v) for v in box)
        return image[:, top : max(bottom, top + 1), left : max(right, left + 1)]

    def _descriptors(self, count: int, image: Callable[[int], Tensor]) -> Tensor:
        """Descriptors of unit length [count, D]: the mean over the scales, each of unit length."""
        scales = self.config.scales

        def sized() -> Iterator[Tensor]:
            for index in range(count):
                whole = _thumbnail(image(index), self.config.size_px)
                yield from (self._fitted(whole, scale) for scale in scales)

        found: list[Tensor] = []
        for number, tokens in enumerate(extract_each(self.extractor, sized())):
            found.append(describe(tokens[0]).unit(self.config.descriptor).cpu())
            if (number + 1) % (NEWS_EVERY * len(scales)) == 0:
                self.message(f"descriptors of {(number + 1) // len(scales)} of {count} images")
        mean = torch.cat(found).reshape(count, len(scales), -1).mean(dim=1)
        return functional.normalize(mean, dim=1)

    def _fitted(self, image: Tensor, scale: float) -> Tensor:
        """Resize by a factor and cut both sides to multiples of the patch; at least one patch."""
        patch = self.extractor.patch_size
        height, width = (max(patch, round(side * scale)) for side in image.shape[1:])
        return resize_image(image, (height, width))[:, : height // patch * patch, : width // patch * patch]


def _thumbnail(image: Tensor, longest_px: int) -> Tensor:
    """Reduce the longest side to `longest_px`, keeping the shape; smaller images stay."""
    height, width = image.shape[1:]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return image
    return resize_image(image, (max(1, round(height * scale)), max(1, round(width * scale))))
