# SPDX-License-Identifier: Apache-2.0
"""DINO's views from albumentations' transforms on arrays: the same chain and the same ranges, with its own operations.

Its bicubic resize is not antialiased. PIL's, torchvision's and ours are, so the side to compare with averages over areas where
a crop shrinks, which is albumentations' way not to alias; the other side leaves that work out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network for a newer version

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2

from rekindle.bench.stage import taken
from rekindle.bench.views import decoded, views_of
from rekindle.views.options import ViewsOptions


class _Views:
    """Two global and some local views of every image. Overlap rules of ours have no counterpart and are left out."""

    def __init__(self, case: Mapping[str, object], area: Literal["image"] | None) -> None:
        cv2.setNumThreads(taken(case, "threads", int))
        options, seed = views_of(case), taken(case, "seed", int)
        self._images = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in decoded(case)]
        self._area = area
        kinds = [_pipeline(options, kind, seed, area) for kind in range(3)]
        self._pipelines = [kinds[min(index, 2)] for index in range(2 + options.num_local)]

    def run(self) -> int:
        """Make the views of every image once."""
        for image in self._images:
            for make in self._pipelines:
                make(image=image)
        return len(self._images)

    def facts(self) -> dict[str, object]:
        """Versions, and whether the resize aliases."""
        return {"albumentations": A.__version__, "opencv": cv2.__version__, "antialias": self._area is not None}


class AlbumentationsViews(_Views):
    """With areas averaged where a crop shrinks."""

    def __init__(self, case: Mapping[str, object]) -> None:
        super().__init__(case, "image")


class AliasedViews(_Views):
    """With a plain bicubic resize, which aliases."""

    def __init__(self, case: Mapping[str, object]) -> None:
        super().__init__(case, None)


def _pipeline(options: ViewsOptions, kind: int, seed: int, area: Literal["image"] | None) -> Any:
    side, scale = options.global_size_px, options.global_scale
    if kind == 2:
        side, scale = options.local_size_px, options.local_scale

    def around(strength: float) -> tuple[float, float]:
        return max(0.0, 1 - strength), 1 + strength

    return A.Compose(
        [
            A.RandomResizedCrop(
                (side, side), scale, options.aspect_ratio, interpolation=cv2.INTER_CUBIC, area_for_downscale=area
            ),
            A.HorizontalFlip(p=options.hflip_p),
            A.VerticalFlip(p=options.vflip_p),
            A.ColorJitter(
                brightness=around(options.brightness),
                contrast=around(options.contrast),
                saturation=around(options.saturation),
                hue=(-options.hue, options.hue),
                p=options.jitter_p,
            ),
            A.ToGray(p=options.grey_p),
            A.GaussianBlur(blur_limit=0, sigma_limit=options.blur_sigma, p=options.blur_p[kind]),
            A.Solarize(threshold_range=(0.5, 0.5), p=options.solarize_p[kind]),
            ToTensorV2(),
        ],
        seed=seed,
    )
