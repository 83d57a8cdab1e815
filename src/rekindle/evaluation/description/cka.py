# SPDX-License-Identifier: Apache-2.0
"""Linear centred kernel alignment: how similar the patch tokens of blocks, or of two models, are (TEC, section 16).

The headline is the mean over the images of the similarity of the last two blocks, each image by itself, so that images can be
resampled; the similarity over a sample of the tokens of all images stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.labelled.pictures import PictureFolder
from rekindle.evaluation.description.options import CkaOptions
from rekindle.evaluation.features.linear_cka import linear_cka
from rekindle.evaluation.features.shared_features import ImageSplit, SharedFeatures, Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means

HEADLINE = "CKA of the last two blocks"
SAMPLE_SEED = 0  # the same tokens for every model and seed


class TokenSample:
    """Patch tokens of all images, as many of each, drawn by a fixed seed: the same places for every model.

    Args:
        num_images: how many will come.
        max_rows: tokens at most.

    Raises: RequestError for more images than rows.
    """

    def __init__(self, num_images: int, max_rows: int) -> None:
        self._share = max_rows // num_images
        if self._share < 1:
            raise RequestError(
                f"cka.max_rows = {max_rows} is less than one token for each of {num_images} images; raise it"
            )
        self._kept: list[list[Tensor]] = []

    def add(self, per_block: Sequence[Float[Tensor, "P _"]]) -> None:
        """Take from the tokens of the next image, one entry per block."""
        source = generator(SAMPLE_SEED, "cka", len(self._kept))
        chosen = torch.randperm(len(per_block[0]), generator=source)[: self._share]
        self._kept.append([tokens[chosen] for tokens in per_block])

    def rows(self) -> list[Tensor]:
        """Return what was taken, [n, D] per block."""
        return [torch.cat(list(block)) for block in zip(*self._kept, strict=True)]


def patch_rows(
    features: SharedFeatures,
    data: ImageSplit,
    size_px: int,
    blocks: Sequence[int],
    message: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Tensor]]:
    """Yield the patch tokens of each image, [P, D] per block."""
    for per_block in features.of(data, Sizing("short", size_px), blocks, message):
        yield [tokens.patches[0].flatten(0, 1).float() for tokens in per_block]


class Cka(Protocol[CkaOptions, PictureFolder]):
    """The protocol; see the module. Nothing is drawn: every seed gives the same."""

    Config = CkaOptions
    DATA = "images"
    USES_TRAIN = False

    _rows: list[list[float]]
    _whole: list[float]

    def check(self) -> None:
        """Refuse a model of one block, and fewer rows than images."""
        if self.extractor.depth < 2:
            raise RequestError("cka compares blocks, and this model has only one")
        TokenSample(len(self.test.items), self.config.max_rows)

    def prepare(self) -> None:
        """Compare every block with the last one: in each image, and over a sample of all tokens."""
        sample = TokenSample(len(self.test.items), self.config.max_rows)
        self._rows = []
        for rows in patch_rows(
            self.features, self.test, self.config.size_px, range(self.extractor.depth), self.message
        ):
            sample.add(rows)
            self._rows.append([float(linear_cka(x, rows[-1])) for x in rows[:-1]])
        *early, last = sample.rows()
        self._whole = [float(linear_cka(x, last)) for x in early]

    def run(self, seed: int) -> Outcome:
        """Return the similarities."""
        numbers = range(1, self.extractor.depth)
        names = [*(f"CKA/block {n}" for n in numbers[:-1]), HEADLINE]
        rows = np.concatenate([np.array(self._rows), np.ones((len(self._rows), 1))], axis=1)
        extras = {f"CKA of all tokens/block {n}": value for n, value in zip(numbers, self._whole, strict=True)}
        return Outcome(
            self.test.items,
            rows,
            Means(headline=HEADLINE, names=names, better="neither"),
            {"images": len(rows)},
            extras,
        )
