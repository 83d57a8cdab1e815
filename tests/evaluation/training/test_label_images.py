# SPDX-License-Identifier: Apache-2.0
"""Labelling whole images: windows cover everything, and what a network says of a pixel does not depend on how it is cut."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rekindle.evaluation.training.label_images import label_map, sliding_logits, whole_logits, window_starts


def per_pixel(pixels: Tensor) -> Tensor:
    return torch.cat([pixels, -pixels], dim=1)


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 64))
def test_windows_cover_the_side_and_stay_inside(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    starts = window_starts(length, window, stride)
    covered = {i for start in starts for i in range(start, start + window)}
    assert set(range(length)) <= covered
    assert starts == sorted(set(starts))
    assert length <= window or starts[-1] + window == length


def test_a_network_of_single_pixels_gives_itself() -> None:
    pixels = torch.randn(1, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole_logits(per_pixel, pixels, 8), per_pixel(pixels))
    slid = sliding_logits(per_pixel, pixels, 8, window=16, stride=11)
    torch.testing.assert_close(slid, per_pixel(pixels))


def test_overlapping_windows_are_averaged() -> None:
    calls: list[int] = []

    def numbered(pixels: Tensor) -> Tensor:
        calls.append(len(calls))
        return torch.full_like(pixels[:, :1], float(calls[-1]))

    slid = sliding_logits(numbered, torch.zeros(1, 3, 8, 12), 8, window=8, stride=4)
    assert len(calls) == 2
    assert slid[0, 0, 0].tolist() == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


def test_the_network_sees_whole_patches_padded_with_zeros() -> None:
    seen: list[Tensor] = []

    def look(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels

    assert whole_logits(look, torch.ones(1, 3, 10, 13), 8).shape == (1, 3, 10, 13)
    assert seen[0].shape == (1, 3, 16, 16)
    assert float(seen[0].sum()) == 3 * 10 * 13


def test_labels_are_taken_at_the_size_of_the_image() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, :, 1] = 1.0
    logits[0, 0] = 0.5
    assert label_map(logits, (4, 4))[:, 2:].all()
    assert not label_map(logits, (4, 4))[:, :2].any()
