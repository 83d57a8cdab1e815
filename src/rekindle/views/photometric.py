# SPDX-License-Identifier: Apache-2.0
"""Colour jitter, grey, blur and solarisation of one view: what they are, and how their parameters are drawn.

In levels x of 0 .. 255, with the grey g = 0.2989 red + 0.587 green + 0.114 blue, as torchvision defines them:
brightness f: f x. Contrast f: f x + (1 - f) mean(g). Saturation f: f x + (1 - f) g. Each is cut to 0 .. 255.
Hue t: the hue of HSV moves by t turns, saturation and value stay. Blur: Gaussian, cut off at three standard
deviations, reflected at the border. Solarise: 255 - x where x >= 128.

`integer_chain` executes them in a data worker, `on_device` for a whole batch.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from rekindle.views.crops import UniformStream
from rekindle.views.options import ViewsOptions

JitterStep = tuple[Literal["brightness", "contrast", "saturation", "hue"], float]
LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey level: ITU-R 601-2, as in PIL and torchvision."""


class Photometric(NamedTuple):
    """The photometric chain of one view, with every parameter fixed.

    Attributes:
        jitter: colour operations in their order, each with its factor (hue: shift in turns).
        is_grey: make the view grey.
        blur_sigma: standard deviation in pixels, 0 for no blur.
        is_solarized: invert levels from 128 on.

    """

    jitter: tuple[JitterStep, ...] = ()
    is_grey: bool = False
    blur_sigma: float = 0.0
    is_solarized: bool = False

    @property
    def hue_place(self) -> int | None:
        """Which of the colour operations turns the hue; None if none does."""
        for place, (name, _) in enumerate(self.jitter):
            if name == "hue":
                return place
        return None


def draw_photometric(options: ViewsOptions, view_index: int, uniform: UniformStream) -> Photometric:
    """Draw the chain of one view (0 and 1: global, from 2 on: local)."""
    kind = min(view_index, 2)
    steps: list[JitterStep] = []
    if uniform.chance(options.jitter_p):
        if options.brightness > 0:
            steps.append(("brightness", _factor(options.brightness, uniform)))
        if options.contrast > 0:
            steps.append(("contrast", _factor(options.contrast, uniform)))
        if options.saturation > 0:
            steps.append(("saturation", _factor(options.saturation, uniform)))
        if options.hue > 0:
            steps.append(("hue", uniform.between(-options.hue, options.hue)))
        for last in range(len(steps) - 1, 0, -1):  # Fisher-Yates: every order is equally likely
            other = uniform.integer(last + 1)
            steps[last], steps[other] = steps[other], steps[last]
    is_grey = uniform.chance(options.grey_p)
    sigma = uniform.between(*options.blur_sigma) if uniform.chance(options.blur_p[kind]) else 0.0
    return Photometric(tuple(steps), is_grey, sigma, uniform.chance(options.solarize_p[kind]))


def gaussian_weights(sigma: float, radius: int) -> list[float]:
    """Weights of a Gaussian at the offsets -radius .. radius, with sum 1."""
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _factor(strength: float, uniform: UniformStream) -> float:
    return uniform.between(max(0.0, 1.0 - strength), 1.0 + strength)
