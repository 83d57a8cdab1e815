# SPDX-License-Identifier: Apache-2.0
"""Multi-crop: what a data worker makes of one image, its views or its plan for the device, and the collation into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from rekindle.views.batch import Crops, ViewBatch, Views
from rekindle.views.on_cpu import CpuExecutor
from rekindle.views.options import ViewsOptions
from rekindle.views.plan import PlannedBatch, ViewPlan, collate_plans, draw_plan


@dataclass(frozen=True)
class SingleViews:
    """The views of one image: pixels uint8 [V, 3, S, S], no local views is None; crops of all, global ones first."""

    global_pixels: Tensor
    local_pixels: Tensor | None
    crops: Crops

    @property
    def global_crops(self) -> Crops:
        """Where the global views were cut, fields [2]."""
        return self.crops[:2]

    @property
    def local_crops(self) -> Crops:
        """Where the local views were cut, fields [V], V may be 0."""
        return self.crops[2:]


class MultiCrop:
    """Image to views: crop and resize, flip, jitter, grey, blur, solarise (in DINO's order), as bytes.

    Every random number comes from the generator that the call receives. One thread at a time.
    """

    def __init__(self, options: ViewsOptions) -> None:
        self.options = options
        self._execute = CpuExecutor()

    def __reduce__(self) -> tuple[type[MultiCrop], tuple[ViewsOptions]]:
        return MultiCrop, (self.options,)  # the memory of the executor stays behind

    def __call__(self, image: UInt8[Tensor, "3 H W"], generator: torch.Generator) -> SingleViews:
        """Return two global and `num_local` local views of an image, which stays as it is."""
        options = self.options
        plan = draw_plan((image.shape[1], image.shape[2]), options, generator)
        crops = plan.crops()
        if options.num_local == 0:
            (large,) = self._execute(image, plan, [(2, options.global_size_px)])
            return SingleViews(large, None, crops)
        groups = [(2, options.global_size_px), (options.num_local, options.local_size_px)]
        large, small = self._execute(image, plan, groups)
        return SingleViews(large, small, crops)

    def collate(self, samples: Sequence[tuple[int, tuple[int, ...], SingleViews]]) -> ViewBatch:
        """Make one batch, `collate_views`."""
        return collate_views(samples)


class PlanCrop:
    """Image to image and plan, for `DeviceExecutor`: the same draws as `MultiCrop`, carried out elsewhere."""

    def __init__(self, options: ViewsOptions) -> None:
        self.options = options

    def __call__(self, image: UInt8[Tensor, "3 H W"], generator: torch.Generator) -> tuple[Tensor, ViewPlan]:
        """Return the image itself and the plan of its views."""
        return image, draw_plan((image.shape[1], image.shape[2]), self.options, generator)

    def collate(self, samples: Sequence[tuple[int, tuple[int, ...], tuple[Tensor, ViewPlan]]]) -> PlannedBatch:
        """Make one batch, `collate_plans`."""
        return collate_plans(samples)


def view_maker(options: ViewsOptions, *, on_gpu: bool) -> MultiCrop | PlanCrop:
    """What the data workers do, as `options.executor` says; "auto" leaves the views to a GPU where there is one."""
    executor = options.executor if options.executor != "auto" else ("device" if on_gpu else "worker")
    return MultiCrop(options) if executor == "worker" else PlanCrop(options)


def collate_views(samples: Sequence[tuple[int, tuple[int, ...], SingleViews]]) -> ViewBatch:
    """Make one batch of B samples (image index, indices skipped on the way to it, views)."""
    indices, skipped, views = zip(*samples, strict=True)
    crops = Crops.stack([v.crops for v in views], dim=1)
    local = [v.local_pixels for v in views if v.local_pixels is not None]
    return ViewBatch(
        global_views=Views(torch.stack([v.global_pixels for v in views], dim=1), crops[:2]),
        local_views=Views(torch.stack(local, dim=1), crops[2:]) if local else None,
        image_index=torch.tensor(indices, dtype=torch.int64),
        skipped=tuple(index for some in skipped for index in some),
    )
