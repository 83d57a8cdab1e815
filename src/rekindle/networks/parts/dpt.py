# SPDX-License-Identifier: Apache-2.0
"""Dense prediction transformer decoder (Ranftl et al., 2021): four maps of a plain ViT to one map at full size.

As LOCA's depth evaluation has it (specification 15.4). Deviation: no readout of the class token, whether there is one or not,
so that networks with and without are measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def quarters(depth: int) -> tuple[int, ...]:
    """Return the indices (from 0) of the blocks after each quarter: 3, 6, 9, 12 of twelve, counted from 1."""
    return tuple(max(1, round(depth * k / 4)) - 1 for k in (1, 2, 3, 4))


class ResidualUnit(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        y: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + y


class Fusion(nn.Module):
    """Add a finer map (after a residual unit), refine, double the size, mix the channels."""

    def __init__(self, channels: int, *, has_coarser: bool) -> None:
        super().__init__()
        self.lateral = ResidualUnit(channels) if has_coarser else None
        self.refine = ResidualUnit(channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, lateral: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Return the fused map at `size`."""
        x = lateral
        if coarser is not None:
            assert self.lateral is not None
            x = coarser + self.lateral(lateral)
        x = functional.interpolate(self.refine(x), size=size, mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(x)
        return mixed


class DptDecoder(nn.Module):
    """Maps of four blocks [B, D, gh, gw] -> one map [B, out, 8 gh, 8 gw] or thereabouts, twice the finest stride.

    Args:
        width: D.
        projections: channels of the four levels, fine to coarse.
        channels: of the fusion.
        out: channels of the result.

    """

    def __init__(self, width: int, *, projections: Sequence[int], channels: int, out: int = 1) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, p, 1) for p in projections)
        fine, medium, _, coarse = projections
        self.resample = nn.ModuleList(
            [
                nn.ConvTranspose2d(fine, fine, 4, stride=4),
                nn.ConvTranspose2d(medium, medium, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, stride=2, padding=1),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(p, channels, 3, padding=1, bias=False) for p in projections)
        self.fuse = nn.ModuleList(Fusion(channels, has_coarser=level < 3) for level in range(4))
        self.head_first = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.head_second = nn.Conv2d(channels // 2, max(1, channels // 8), 3, padding=1)
        self.head_last = nn.Conv2d(max(1, channels // 8), out, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map; see the class."""
        levels = [
            reduce(resample(project(x)))
            for x, project, resample, reduce in zip(maps, self.project, self.resample, self.reduce, strict=True)
        ]
        fused: Tensor | None = None
        for level in (3, 2, 1, 0):
            finer = levels[level - 1] if level else levels[0].new_empty(0, 0, *(2 * s for s in levels[0].shape[-2:]))
            fused = self.fuse[level](levels[level], fused, (finer.shape[-2], finer.shape[-1]))
        x = self.head_first(fused)
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        result: Tensor = self.head_last(functional.relu(self.head_second(x)))
        return result
