# SPDX-License-Identifier: Apache-2.0
"""Image descriptors: the class token (cls), the mean of the patch tokens (pat), or both in a row (hyb)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import ImageSplit, SharedFeatures, Sizing
from rekindle.networks.tokens import Tokens

Descriptor = Literal["cls", "pat", "hyb"]


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of n images, as they come out of the network.

    Attributes:
        cls: class tokens [n, D], or None for a network without.
        pat: means of the patch tokens [n, D].

    """

    cls: Tensor | None
    pat: Tensor

    @property
    def names(self) -> list[Descriptor]:
        """Those that the network has."""
        return ["pat"] if self.cls is None else ["cls", "pat", "hyb"]

    def plain(self, name: Descriptor) -> Tensor:
        """Return [n, D], of hyb [n, 2 D]. Raises RequestError for a network without class token."""
        if name == "pat":
            return self.pat
        if self.cls is None:
            raise _no_class_token("the protocol", name)
        return self.cls if name == "cls" else torch.cat([self.cls, self.pat], dim=1)

    def unit(self, name: Descriptor) -> Tensor:
        """Like `plain`, of unit length; hyb is joined first and normalised then."""
        return functional.normalize(self.plain(name), dim=1)


def image_descriptors(
    features: SharedFeatures, data: ImageSplit, size_px: int, message: Callable[[str], None] = lambda text: None
) -> Descriptors:
    """Return the descriptors of all images: short side 256 / 224 of `size_px`, centre crop (E4)."""
    return joined(
        [describe(tokens[0]) for tokens in features.of(data, Sizing("centre", size_px), message=message)],
    )


def describe(tokens: Tokens) -> Descriptors:
    """Return the descriptors of the images of one pass."""
    return Descriptors(tokens.cls, tokens.patches.float().mean(dim=(1, 2)))


def joined(parts: list[Descriptors]) -> Descriptors:
    """Put the descriptors of several passes together, in order."""
    cls = [p.cls for p in parts if p.cls is not None]
    return Descriptors(torch.cat(cls) if cls else None, torch.cat([p.pat for p in parts]))


def check_descriptor(option: str, name: str, extractor: FeatureExtractor) -> None:
    """Raise RequestError for a descriptor that the network has not; `option` is the option's full name."""
    if "pat" != name and not extractor.has_cls:
        raise _no_class_token(option, name)


def check_image_side(option: str, size_px: int, extractor: FeatureExtractor) -> None:
    """Raise RequestError for a side that the patch does not divide; `option` is the option's full name."""
    patch = extractor.patch_size
    if size_px % patch:
        below, above = size_px // patch * patch, (size_px // patch + 1) * patch
        raise RequestError(
            f"{option} = {size_px} is not a multiple of the model's patch size {patch}; use "
            + (f"{below} or {above}" if below else str(above))
        )


def _no_class_token(option: str, name: str) -> RequestError:
    return RequestError(
        f"{option} = {name} needs a class token, and this model has none; use pat, the mean of the patch tokens"
    )
