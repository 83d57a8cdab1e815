# SPDX-License-Identifier: Apache-2.0
"""The views of images that are decoded already, as uint8: two global and some local ones, the whole photometric chain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rekindle.bench.stage import case_device, device_facts, settle, taken
from rekindle.bench.synthetic import jpeg
from rekindle.core.rng import generator
from rekindle.data.decoding import read_image
from rekindle.data.images import find_images
from rekindle.views.multicrop import MultiCrop, PlanCrop
from rekindle.views.on_device import DeviceExecutor
from rekindle.views.options import ViewsOptions


def decoded(case: Mapping[str, object]) -> list[Tensor]:
    """The case's images, uint8 [3, H, W] with [H, W, 3] in memory: the first of its source, or made from its seed."""
    count, where = taken(case, "num_images", int), taken(case, "images", str)
    if where:
        source = find_images(where)
        return [source.read(index, draft_px=None, max_pixels=1 << 28) for index in range(min(count, len(source)))]
    height, width, seed = (taken(case, name, int) for name in ("height", "width", "seed"))
    return [read_image(jpeg(height, width, seed, number)) for number in range(count)]


def views_of(case: Mapping[str, object]) -> ViewsOptions:
    """The case's views."""
    return ViewsOptions.model_validate(case["views"])


class Ours:
    """Views as a data worker makes them."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._images = decoded(case)
        self._crop = MultiCrop(views_of(case))
        self._generator = generator(taken(case, "seed", int), "bench views")

    def run(self) -> int:
        """Make the views of every image once."""
        for image in self._images:
            self._crop(image, self._generator)
        return len(self._images)

    def facts(self) -> dict[str, object]:
        """What the figures depend on."""
        return {"torch": torch.__version__, "executor": "worker"}


class OursDevice:
    """Views of all images as one batch, made on the case's device; decoded images are moved there each time."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._images = decoded(case)
        options = views_of(case)
        self._plan, self._execute = PlanCrop(options), DeviceExecutor(options)
        self._generator = generator(taken(case, "seed", int), "bench views")
        self._device = case_device(case)

    def run(self) -> int:
        """Draw, move and make."""
        planned = [(index, (), self._plan(image, self._generator)) for index, image in enumerate(self._images)]
        self._execute(self._plan.collate(planned).to(self._device))
        settle(self._device)
        return len(self._images)

    def facts(self) -> dict[str, object]:
        """What the figures depend on."""
        return {"torch": torch.__version__, "executor": "device"} | device_facts(self._device)
