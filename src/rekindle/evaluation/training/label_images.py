# SPDX-License-Identifier: Apache-2.0
"""Inference on whole images: at once, or in windows whose logits are averaged where they overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side: at multiples of the stride, and the last flush with the far edge.

    Example:
        >>> window_starts(700, 512, 341), window_starts(512, 512, 341), window_starts(300, 512, 341)
        ([0, 188], [0], [0])
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def padded(pixels: Tensor, patch: int) -> Tensor:
    """Pad [N, 3, H, W] on the right and below with zeros (the mean colour) to multiples of the patch."""
    height, width = pixels.shape[-2:]
    return functional.pad(pixels, (0, -width % patch, 0, -height % patch))


def whole_logits(network: Callable[[Tensor], Tensor], pixels: Tensor, patch: int) -> Tensor:
    """Return logits [N, C, H, W] of images of any size: padded to whole patches, upsampled, cropped back."""
    full = padded(pixels, patch)
    logits = network(full)
    upsampled = functional.interpolate(logits, size=full.shape[-2:], mode="bilinear", align_corners=False)
    return upsampled[..., : pixels.shape[-2], : pixels.shape[-1]]


def sliding_logits(
    network: Callable[[Tensor], Tensor], pixels: Tensor, patch: int, *, window: int, stride: int
) -> Tensor:
    """Return logits [1, C, H, W] of one image: windows of one size, averaged where they overlap.

    Args:
        network: normalised pixels -> logits on any grid.
        pixels: [1, 3, H, W]; smaller than the window along a side: taken whole there.
        patch: side of a patch.
        window, stride: in pixels.

    """
    height, width = pixels.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    total: Tensor | None = None
    count = pixels.new_zeros(1, 1, height, width)
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = whole_logits(network, pixels[place], patch)
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None
    return total / count


def label_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class ids [H, W] of logits [1, C, h, w] after bilinear upsampling to `size`."""
    upsampled = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    return upsampled.argmax(dim=1)[0].to(torch.int64)
