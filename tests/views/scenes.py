# SPDX-License-Identifier: Apache-2.0
"""Pictures that the tests of views share, and what torchvision makes of them in floating point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from rekindle.views.photometric import Photometric


def scene(height: int = 96, width: int = 96, seed: int = 0) -> Tensor:
    """Soft blobs of colour at three scales, with black, white and grey places: uint8 [3, height, width]."""
    draw = torch.Generator().manual_seed(seed)
    levels = torch.full((1, 3, height, width), 0.5)
    for cells, strength in ((3, 0.35), (9, 0.2), (24, 0.1)):
        blobs = strength * torch.randn(1, 3, cells, cells, generator=draw)
        levels += F.interpolate(blobs, (height, width), mode="bicubic", align_corners=False)
    levels[..., : height // 8, :] = levels[:, :1, : height // 8]
    return (255 * levels[0]).round().clamp(0, 255).to(torch.uint8)


def noise(height: int = 96, width: int = 96, seed: int = 0) -> Tensor:
    """Independent levels: uint8 [3, height, width]."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def reference(pixels: Tensor, chain: Photometric) -> Tensor:
    """The chain by torchvision's functions in float64, rounded nowhere: levels [3, S, S]."""
    x = pixels.double() / 255
    operations = {
        "brightness": TF.adjust_brightness,
        "contrast": TF.adjust_contrast,
        "saturation": TF.adjust_saturation,
        "hue": TF.adjust_hue,
    }
    for name, value in chain.jitter:
        x = operations[name](x, value)
    if chain.is_grey:
        x = TF.rgb_to_grayscale(x, 3)
    if chain.blur_sigma > 0:
        x = gaussian_blur(x, chain.blur_sigma)
    levels: Tensor = 255 * x
    return torch.where(levels >= 127.5, 255 - levels, levels) if chain.is_solarized else levels


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur [3, H, W], cut off at three sigma, or at the far border where that is nearer."""
    radii = [min(math.ceil(3 * sigma), size - 1) for size in (pixels.shape[-1], pixels.shape[-2])]
    blurred: Tensor = TF.gaussian_blur(pixels, [2 * radius + 1 for radius in radii], [sigma, sigma])
    return blurred
