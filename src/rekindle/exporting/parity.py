# SPDX-License-Identifier: Apache-2.0
"""Does the exported model give the same tokens? A number, and a refusal if it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rekindle.core.errors import RekindleError
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest token value where that is above 1."""
Forward = Callable[[Tensor], Tokens]


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the original, on random pixels in float32.

    Attributes:
        difference: largest absolute difference over all tokens and checked sizes.
        largest: largest absolute value of the original's tokens.
        sizes: (images, height, width) that were checked.
        elsewhere: (height, width) -> largest difference at a size where the other program follows another rule
            for positions; told, not judged.

    """

    difference: float
    largest: float
    sizes: tuple[tuple[int, int, int], ...]
    elsewhere: dict[tuple[int, int], float] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ", ".join(f"{n} x {h} x {w}" for n, h, w in self.sizes)
        return f"largest difference {self.difference:.1e} (largest value {self.largest:.3g}) at {shown} px"


def check_parity(
    original: Backbone,
    exported: Forward,
    sizes: Sequence[tuple[int, int, int]],
    *,
    elsewhere: Sequence[tuple[int, int]] = (),
) -> Parity:
    """Compare all tokens of two networks on random pixels.

    Args:
        original: float32, in evaluation mode.
        exported: the exported model as another program runs it.
        sizes: (images, height, width), each of which must agree.
        elsewhere: (height, width) at which the difference is only measured.

    Raises:
        RekindleError: if a token set is missing, has another shape, or differs by more than `TOLERANCE`.

    """
    distances, values = [], []
    for size in sizes:
        found, expected = _both(original, exported, size)
        distances.append(_distance(found, expected))
        values += list(expected.values())
    difference, largest = _largest(map(torch.tensor, distances)), _largest(values)
    if not difference <= TOLERANCE * max(1.0, largest):  # written so that a NaN fails
        raise RekindleError(
            f"the exported model does not give the original's features: largest difference {difference:.3g}, "
            f"largest value {largest:.3g}, tolerance {TOLERANCE:g} of it; nothing was kept. Please report it"
        )
    told = {size: _distance(*_both(original, exported, (1, *size))) for size in elsewhere}
    return Parity(difference, largest, tuple(sizes), told)


def native_size(backbone: Backbone) -> int:
    """Side in px of the position table's images; for rotary positions, which have none, the size it was built for."""
    return int(backbone.vit.patch_embed.grid_size[0]) * backbone.patch_size


def native_sides(backbone: Backbone) -> tuple[int, int]:
    """Height and width in px of the position table's images."""
    height, width = backbone.vit.patch_embed.grid_size
    return int(height) * backbone.patch_size, int(width) * backbone.patch_size


def other_size(backbone: Backbone) -> tuple[int, int]:
    """Return a size (height, width) that is not the native one, and not square."""
    side, patch = native_size(backbone), backbone.patch_size
    return side + 2 * patch, side + 3 * patch


@torch.no_grad()
def _both(
    original: Backbone, exported: Forward, size: tuple[int, int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    images, height, width = size
    pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))
    return _parts(exported(pixels)), _parts(original(pixels))


def _parts(tokens: Tokens) -> dict[str, Tensor]:
    parts = {"cls": tokens.cls, "registers": tokens.registers, "patches": tokens.patches}
    return {name: t for name, t in parts.items() if t is not None and t.numel()}


def _distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    for name in {*found, *expected}:
        shapes = [None if name not in part else list(part[name].shape) for part in (found, expected)]
        if shapes[0] != shapes[1]:
            raise RekindleError(
                f"the exported model gives {name} of shape {shapes[0]}, the original {shapes[1]}; nothing was kept. "
                "Please report it"
            )
    return _largest(found[n].float() - expected[n].float() for n in expected)


def _largest(tensors: Iterable[Tensor]) -> float:
    """Largest absolute value; NaN if there is one, which Python's own `max` would skip."""
    return float(torch.stack([t.abs().max() for t in tensors]).max())
