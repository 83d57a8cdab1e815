# SPDX-License-Identifier: Apache-2.0
"""Features that several protocols read: computed once per model, data and size, and kept while the model is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rekindle.evaluation.features.dense_features import centre_crop, extract_each, fitted_size, resize_image
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.networks.tokens import Tokens


@runtime_checkable
class ImageSplit(Protocol):
    """Images of one split, whatever else it holds."""

    items: list[str]

    def image(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]."""


@dataclass(frozen=True)
class Sizing:
    """How an image is resized before it enters the network.

    Attributes:
        kind: `square` to side x side; `short` to that short side with its shape kept, both rounded to multiples of the patch;
            `centre` to a short side of 256 / 224 of the side, bicubically, and then the square in the middle.
        px: the side, or the short side.

    """

    kind: Literal["square", "short", "centre"]
    px: int

    def of(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """Return the size (height, width) in pixels."""
        return fitted_size(height, width, self.px, patch) if self.kind == "short" else (self.px, self.px)

    def apply(self, image: Tensor, patch: int) -> Tensor:
        """Return the image, uint8 [3, H, W], as the network gets it."""
        if self.kind == "centre":
            return centre_crop(image, self.px)
        return resize_image(image, self.of(image.shape[1], image.shape[2], patch))


class SharedFeatures:
    """The features of one model; `of` computes what it does not have yet.

    Args:
        extractor: the network.
        limit_bytes: what is kept at most; features beyond it are computed anew each time.

    """

    def __init__(self, extractor: FeatureExtractor, limit_bytes: float = 4 * 2**30) -> None:
        self.extractor = extractor
        self._room = limit_bytes
        self._kept: dict[tuple[int, Sizing, tuple[int, ...]], list[list[Tokens]]] = {}
        self._splits: list[ImageSplit] = []  # keeps them alive, so that their ids stay theirs

    def of(
        self,
        data: ImageSplit,
        sizing: Sizing,
        blocks: Sequence[int] = (-1,),
        message: Callable[[str], None] = lambda text: None,
    ) -> Iterator[list[Tokens]]:
        """Yield the tokens of every image in order, one entry per block, of one image each.

        Args:
            data: the images.
            sizing: how they are resized.
            blocks: which blocks' tokens, after the final norm.
            message: takes a line of progress.

        Yields: tokens on the CPU: patches as float16, class tokens and registers as float32.
        """
        key = id(data), sizing, tuple(blocks)
        if key in self._kept:
            yield from self._kept[key]
            return
        kept: list[list[Tokens]] | None = []
        for number, found in enumerate(extract_each(self.extractor, self._images(data, sizing), blocks)):
            tokens = [_stored(t) for t in found]
            if kept is not None:
                self._room -= sum(_bytes(t) for t in tokens)
                kept.append(tokens)
                if self._room < 0:
                    self._room += sum(_bytes(t) for per_image in kept for t in per_image)
                    kept = None
            if (number + 1) % 100 == 0:
                message(f"features of {number + 1} of {len(data.items)} images")
            yield tokens
        if kept is not None:
            self._kept[key] = kept
            self._splits.append(data)

    def forget(self) -> None:
        """Let go of everything that is kept."""
        self._room += sum(_bytes(t) for kept in self._kept.values() for per_image in kept for t in per_image)
        self._kept.clear()
        self._splits.clear()

    def _images(self, data: ImageSplit, sizing: Sizing) -> Iterator[Tensor]:
        for index in range(len(data.items)):
            yield sizing.apply(data.image(index), self.extractor.patch_size)


def _stored(tokens: Tokens) -> Tokens:
    cls = None if tokens.cls is None else tokens.cls.cpu()
    return Tokens(cls, tokens.registers.cpu(), tokens.patches.to("cpu", torch.float16))


def _bytes(tokens: Tokens) -> int:
    return tokens.patches.nbytes + tokens.registers.nbytes + (0 if tokens.cls is None else tokens.cls.nbytes)
