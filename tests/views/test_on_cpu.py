# SPDX-License-Identifier: Apache-2.0
"""Crops of a data worker: the pixels of torch's antialiased resize, turned as the plan says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rekindle.views.crops import Box
from rekindle.views.on_cpu import CpuExecutor
from rekindle.views.photometric import Photometric
from rekindle.views.plan import ViewPlan


@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
def test_a_crop_without_colours_is_what_interpolate_gives(flip: tuple[bool, bool]) -> None:
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = (Box(3, 5, 80, 100), Box(10, 20, 32, 32), Box(0, 0, 20, 16))  # smaller, the same, larger
    plan = ViewPlan((90, 120), boxes, (flip,) * 3, (Photometric(),) * 3)
    execute = CpuExecutor()
    for _ in range(2):  # its memory holds the last views
        (views,) = execute(image, plan, [(3, 32)])
        for box, view in zip(boxes, views, strict=True):
            crop = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
            expected = F.interpolate(crop, size=(32, 32), mode="bicubic", antialias=True, align_corners=False)[0]
            turned = expected.flip([axis for axis, is_turned in ((2, flip[0]), (1, flip[1])) if is_turned])
            assert (view.int() - turned.int()).abs().max() <= 1  # kernels of other memory layouts round differently
