# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.views.crops import Box, UniformStream, sample_box, sample_boxes, shared_area, shift_towards
from rekindle.views.options import ViewsOptions


def stream(seed: int) -> UniformStream:
    return UniformStream(torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["independent", "reject", "shift"]),
    st.integers(0, 999),
)
def test_every_box_lies_inside_the_image(height: int, width: int, overlap: str, seed: int) -> None:
    options = ViewsOptions.model_validate({"overlap": overlap, "num_local": 3})
    boxes = sample_boxes((height, width), options, stream(seed))
    assert len(boxes) == 5
    for box in boxes:
        assert box.top >= 0
        assert box.left >= 0
        assert 1 <= box.height <= height - box.top
        assert 1 <= box.width <= width - box.left


def test_area_and_aspect_cover_their_ranges_and_stay_inside() -> None:
    uniform = stream(0)
    boxes = [sample_box((1000, 1000), (0.05, 0.25), (0.75, 4 / 3), uniform) for _ in range(2000)]
    areas = torch.tensor([box.height * box.width / 1e6 for box in boxes])
    aspects = torch.tensor([box.width / box.height for box in boxes])
    assert 0.0495 <= float(areas.min()) < 0.055
    assert 0.245 < float(areas.max()) <= 0.2505
    assert 0.745 <= float(aspects.min()) < 0.77
    assert 1.3 < float(aspects.max()) <= 1.34
    assert abs(float(areas.mean()) - 0.15) < 0.005
    assert abs(float(aspects.log().mean())) < 0.01  # log-uniform is symmetric around 1


def test_a_long_image_gets_the_largest_central_crop_of_allowed_aspect() -> None:
    # 0.9 of the area of a 10:1 strip never fits an aspect below 4/3.
    assert sample_box((10, 100), (0.9, 1.0), (0.75, 4 / 3), stream(0)) == Box(0, 43, 10, 13)
    assert sample_box((100, 9), (0.9, 1.0), (0.75, 4 / 3), stream(0)) == Box(44, 0, 12, 9)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.integers(20, 400), st.integers(0, 9999))
def test_shift_makes_each_axis_overlap_by_half_of_the_smaller_side(height: int, width: int, seed: int) -> None:
    options = ViewsOptions(overlap="shift", num_local=0, global_scale=(0.05, 0.3))
    a, b = sample_boxes((height, width), options, stream(seed))
    rows = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    columns = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    assert 2 * rows >= min(a.height, b.height)
    assert 2 * columns >= min(a.width, b.width)


def test_shift_leaves_boxes_that_overlap_enough_and_moves_others_no_further_than_needed() -> None:
    target = Box(0, 0, 10, 10)
    assert shift_towards(Box(4, 5, 10, 10), target) == Box(4, 5, 10, 10)
    assert shift_towards(Box(50, 3, 10, 20), target) == Box(5, 3, 10, 20)
    assert shift_towards(target, Box(50, 3, 10, 20)) == Box(45, 0, 10, 10)


def test_reject_raises_the_overlap_of_wide_images_above_the_minimum() -> None:
    options = ViewsOptions(overlap="reject", min_overlap=0.1, num_local=2)
    plain = ViewsOptions(num_local=2)
    area = 200 * 400
    low = {"reject": 0, "independent": 0}
    for seed in range(80):
        a, b, *small = sample_boxes((200, 400), options, stream(seed))
        low["reject"] += shared_area(a, b) < 0.1 * area
        assert all(
            max(shared_area(s, a), shared_area(s, b)) >= 0.05 * area for s in small if s.height * s.width > 0.08 * area
        )
        a, b, *_ = sample_boxes((200, 400), plain, stream(seed))
        low["independent"] += shared_area(a, b) < 0.1 * area
    assert low["reject"] == 0
    assert low["independent"] > 2


def test_reject_keeps_the_best_pair_where_the_minimum_cannot_be_reached() -> None:
    options = ViewsOptions(overlap="reject", min_overlap=1.0, num_local=1, global_scale=(0.25, 0.3))
    a, b, _ = sample_boxes((100, 100), options, stream(1))
    first, second, *_ = sample_boxes((100, 100), ViewsOptions(num_local=0, global_scale=(0.25, 0.3)), stream(1))
    assert shared_area(a, b) > shared_area(first, second)
