# SPDX-License-Identifier: Apache-2.0
"""Photometric distortion of training crops as the public segmentation toolkits do it (mmseg's `PhotoMetricDistortion`).

Every operation works on bytes: levels are shifted or multiplied, cut to 0 to 255 and rounded down; saturation and hue change in
an HSV of bytes, whose hue has 180 steps of two degrees. So contrast is a multiplication and no blend with the mean grey, and a
hue of 18 is 36 degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS = 32.0  # levels, either way
CONTRAST = SATURATION = 0.5  # factors lie in 1 +- this
HUE = 18  # steps either way; the greatest is not drawn
HUE_STEPS = 180


def distort_colours(image: Tensor, source: torch.Generator) -> Tensor:
    """Change brightness, contrast (before or after the colours), saturation and hue, each with probability 0.5.

    Args:
        image: uint8 [3, H, W].
        source: of nine uniform numbers.
    """
    uniform = torch.rand(9, generator=source).tolist()
    chance, amount = uniform[:4], [2 * u - 1 for u in uniform[4:8]]
    contrast = 1 + CONTRAST * amount[1] if chance[1] < 0.5 else None
    contrast_first = uniform[8] < 0.5
    if chance[0] < 0.5:
        image = scaled(image, shift=BRIGHTNESS * amount[0])
    if contrast_first and contrast is not None:
        image = scaled(image, contrast)
    if chance[2] < 0.5:
        image = saturated(image, 1 + SATURATION * amount[2])
    if chance[3] < 0.5:
        image = turned(image, int(uniform[7] * 2 * HUE) - HUE)
    if not contrast_first and contrast is not None:
        image = scaled(image, contrast)
    return image


def scaled(levels: Tensor, factor: float = 1.0, *, shift: float = 0.0) -> Tensor:
    """Return levels times `factor` plus `shift`, cut to a byte and rounded down."""
    return (levels.float() * factor + shift).clamp(0, 255).to(torch.uint8)


def saturated(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of an image [3, H, W]."""
    hue, saturation, value = to_hsv(image)
    return to_rgb(hue, scaled(saturation, factor), value)


def turned(image: Tensor, steps: int) -> Tensor:
    """Turn the hue of an image [3, H, W] by so many steps of two degrees."""
    hue, saturation, value = to_hsv(image)
    return to_rgb((hue + steps) % HUE_STEPS, saturation, value)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue (0 to 179), saturation and value (0 to 255) of an image of bytes [3, H, W], rounded, as whole numbers."""
    red, green, blue = image.float()
    value, spread = image.amax(dim=0).float(), (image.amax(dim=0) - image.amin(dim=0)).float()
    divisor = spread.clamp(min=1.0)
    degrees = torch.where(
        value == red,
        60 * (green - blue) / divisor,
        torch.where(value == green, 120 + 60 * (blue - red) / divisor, 240 + 60 * (red - green) / divisor),
    )
    hue = (degrees / 2).round().to(torch.int16) % HUE_STEPS
    return hue, (255 * spread / value.clamp(min=1.0)).round().to(torch.uint8), value.to(torch.uint8)


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return the image of bytes [3, H, W] of hue, saturation and value as `to_hsv` gives them."""
    share, level = saturation.float() / 255, value.float()
    channels = []
    for offset in (5, 3, 1):  # red, green, blue: where on the circle a channel falls and rises
        place = (offset + hue.float() * 6 / HUE_STEPS) % 6
        channels.append(level * (1 - share * torch.minimum(place, 4 - place).clamp(0, 1)))
    return torch.stack(channels).round().to(torch.uint8)
