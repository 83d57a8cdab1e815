# SPDX-License-Identifier: Apache-2.0
"""Tokens that a vision transformer returns, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rekindle.core.errors import RequestError


@dataclass(frozen=True)
class Tokens:
    """The tokens of N images after one block (normally the last, after the final norm).

    Attributes:
        cls: [N, D], or None for a network without a class token.
        registers: [N, R, D]; R may be 0.
        patches: [N, gh, gw, D]; the grid is kept, so nobody takes a square root.
        cls_attention: [N, heads, gh, gw], the last block's attention of the class token to the patches (the row sums to
            less than 1: the prefix columns are left out), or None where it was not asked for.
    """

    cls: Tensor | None
    registers: Tensor
    patches: Tensor
    cls_attention: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(gh, gw)."""
        return self.patches.shape[-3], self.patches.shape[-2]

    @property
    def class_token(self) -> Tensor:
        """The class token [N, D]. Raises RequestError for a network without one."""
        if self.cls is None:
            raise RequestError(
                "this backbone has no class token, and the loss or protocol asked for needs one; "
                "choose a backbone with a class token, or a method that works on patches alone"
            )
        return self.cls

    @property
    def sequence(self) -> Tensor:
        """All tokens [N, T, D] in the order class, registers, patches."""
        parts = [] if self.cls is None else [self.cls[:, None]]
        return torch.cat([*parts, self.registers, self.patches.flatten(1, 2)], dim=1)

    def chunk(self, chunks: int) -> list[Tokens]:
        """Split along the images into equal parts."""
        cls = [None] * chunks if self.cls is None else list(self.cls.chunk(chunks))
        attention = [None] * chunks if self.cls_attention is None else list(self.cls_attention.chunk(chunks))
        parts = zip(cls, self.registers.chunk(chunks), self.patches.chunk(chunks), attention, strict=True)
        return [Tokens(c, r, p, a) for c, r, p, a in parts]


@dataclass(frozen=True)
class Stem:
    """Tokens of images after a backbone's stem: the first blocks, as far as nothing trains in them or before them.

    Student and teacher share these blocks, so what one computed of an image, the other need not.

    Attributes:
        tokens: [N, T, D], after `Backbone.stem_depth` blocks.
        ropes: a rotary table for each of all blocks, None without.
        grid: of the patches.

    """

    tokens: Tensor
    ropes: Sequence[Tensor | None]
    grid: tuple[int, int]

    def __getitem__(self, images: slice | Tensor) -> Stem:
        """The same of some of the images."""
        return replace(self, tokens=self.tokens[images])
