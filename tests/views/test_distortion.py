# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rekindle.core.progress import Progress
from rekindle.views.distortion import DistortionKind, MaskShape, Scope, distort, draw_patch_mask
from tests.views.scenes import gaussian_blur

START = Progress(step=0, total=10)
SHAPES: tuple[MaskShape, ...] = get_args(MaskShape)


def pixels(n: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def mask(n: int = 4, grid: int = 4) -> Tensor:
    drawn = torch.rand(n, grid, grid, generator=torch.Generator().manual_seed(1)) < 0.4
    drawn[0] = False
    return drawn


def on_pixels(hit: Tensor, patch: int = 8) -> Tensor:
    return hit.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.3, 0.5, 1.0])
def test_random_mask_has_exactly_the_floor_of_ratio_times_patches(ratio: float) -> None:
    drawn = draw_patch_mask(START, 6, 2, (10, 10), ratio_mode="fixed", fixed_ratio=ratio)
    assert (drawn.flatten(2).sum(-1) == round(ratio * 100)).all()
    odd = draw_patch_mask(START, 6, 2, (14, 14), ratio_mode="fixed", fixed_ratio=0.3)
    assert (odd.flatten(2).sum(-1) == 58).all()


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("grid", [(14, 14), (6, 9), (2, 2), (1, 1)])
def test_block_mask_is_never_larger_than_asked_for(ratio: float, grid: tuple[int, int]) -> None:
    drawn = draw_patch_mask(START, 20, 2, grid, ratio_mode="fixed", fixed_ratio=ratio, shape="block")
    counts = drawn.flatten(2).sum(-1)
    budget = int(ratio * grid[0] * grid[1])
    assert int(counts.max()) <= budget
    if grid == (14, 14):
        assert float(counts.float().mean()) > 0.7 * budget
        neighbours = (drawn[..., 1:, :] & drawn[..., :-1, :]).sum() / drawn.sum()
        assert neighbours > 0.6  # blocks; random cells would have about the ratio


@pytest.mark.parametrize("shape", SHAPES)
def test_ibot_ratio_is_zero_half_of_the_time_and_else_thirty_percent_on_average(shape: MaskShape) -> None:
    share = draw_patch_mask(START, 600, 2, (14, 14), shape=shape).flatten(2).float().mean(-1).flatten()
    assert abs(float((share == 0).float().mean()) - 0.5) < 0.05
    some = share[share > 0]
    assert abs(float(some.mean()) - 0.3) < (0.02 if shape == "random" else 0.05)
    assert float(some.max()) <= 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_two_halves_of_a_batch_are_masked_like_the_whole(shape: MaskShape) -> None:
    whole = draw_patch_mask(Progress(3, 10), 6, 2, (7, 7), shape=shape)
    halves = [draw_patch_mask(Progress(3, 10, slot=s, num_slots=2), 3, 2, (7, 7), shape=shape) for s in (0, 1)]
    assert torch.equal(whole, torch.cat(halves, dim=1))
    assert not torch.equal(whole, draw_patch_mask(Progress(4, 10), 6, 2, (7, 7), shape=shape))


@pytest.mark.parametrize("kind", get_args(DistortionKind))
@pytest.mark.parametrize("scope", ["crop", "patch"])
def test_pixels_outside_masked_patches_keep_their_bits(kind: DistortionKind, scope: Scope) -> None:
    clean, hit = pixels(), mask()
    copy = clean.clone()
    changed = distort(clean, hit, 8, kind=kind, scope=scope, progress=START, num_views=2)
    assert torch.equal(clean, copy)
    inside = on_pixels(hit)
    assert torch.equal(changed[~inside], clean[~inside])
    if kind in ("mask", "none"):
        assert torch.equal(changed, clean)
    else:
        assert (changed[inside] != clean[inside]).float().mean() > 0.95


@pytest.mark.parametrize("scope", ["crop", "patch"])
def test_blur_keeps_a_constant_image_and_lowers_the_variance_of_noise(scope: Scope) -> None:
    hit = torch.ones(2, 4, 4, dtype=torch.bool)
    flat = torch.full((2, 3, 32, 32), 1.7)
    torch.testing.assert_close(distort(flat, hit, 8, kind="blur", scope=scope), flat, atol=1e-5, rtol=0)
    noise = pixels(2)
    assert distort(noise, hit, 8, kind="blur", scope=scope).var() < 0.1 * noise.var()


def test_crop_blur_equals_torchvisions_with_a_kernel_of_three_sigma() -> None:
    view = pixels(1, 64)
    hit = torch.ones(1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(
        distort(view, hit, 8, kind="blur", sigma=3.0)[0], gaussian_blur(view[0], 3.0), atol=1e-5, rtol=1e-5
    )


def test_patch_blur_depends_on_no_other_patch() -> None:
    hit = torch.ones(1, 4, 4, dtype=torch.bool)
    view = pixels(1)
    other = view.clone()
    other[..., 8:] += 1
    a, b = (distort(v, hit, 8, kind="blur", scope="patch") for v in (view, other))
    assert torch.equal(a[..., :8], b[..., :8])
    torch.testing.assert_close(a[0, :, 8:16, 8:16], gaussian_blur(view[0, :, 8:16, 8:16], 5.0), atol=1e-5, rtol=1e-5)


def test_an_empty_mask_returns_the_very_pixels() -> None:
    clean = pixels()
    assert distort(clean, torch.zeros(4, 4, 4, dtype=torch.bool), 8, kind="blur") is clean


def test_rotation_turns_each_masked_patch_by_a_quarter_a_half_or_three() -> None:
    view, hit = pixels(16), torch.ones(16, 4, 4, dtype=torch.bool)
    turned = distort(view, hit, 8, kind="rotate", progress=START, num_views=2)
    seen = set()
    for n, i, j in torch.ones(16, 4, 4).nonzero().tolist():
        window = (n, slice(None), slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8))
        quarters = [k for k in (1, 2, 3) if torch.equal(turned[window], torch.rot90(view[window], k, (1, 2)))]
        assert len(quarters) == 1
        seen.update(quarters)
    assert seen == {1, 2, 3}


def test_noise_has_half_a_unit_of_deviation() -> None:
    view, hit = pixels(8), torch.ones(8, 4, 4, dtype=torch.bool)
    added = distort(view, hit, 8, kind="noise", progress=START, num_views=2) - view
    assert abs(float(added.std()) - 0.5) < 0.01


@pytest.mark.parametrize("kind", ["rotate", "noise"])
def test_two_halves_of_a_batch_are_distorted_like_the_whole(kind: DistortionKind) -> None:
    view, hit = pixels(8), torch.ones(8, 4, 4, dtype=torch.bool)
    whole = distort(view, hit, 8, kind=kind, progress=START, num_views=2).view(2, 4, 3, 32, 32)
    for slot in (0, 1):
        part = view.view(2, 4, 3, 32, 32)[:, 2 * slot : 2 * slot + 2].flatten(0, 1)
        share = Progress(0, 10, slot=slot, num_slots=2)
        half = distort(part, hit[:4], 8, kind=kind, progress=share, num_views=2).view(2, 2, 3, 32, 32)
        assert torch.equal(half, whole[:, 2 * slot : 2 * slot + 2])


def test_wrong_requests_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"sigma > 0 pixels; got 0\.0\. For no distortion use kind='none'"):
        distort(pixels(), mask(), 8, kind="blur", sigma=0.0)
    with pytest.raises(ValueError, match="needs `progress`"):
        distort(pixels(), mask(), 8, kind="noise")
    with pytest.raises(ValueError, match="16 px does not cover a view of 32 x 32 px"):
        distort(pixels(), mask(), 16, kind="blur")
    with pytest.raises(ValueError, match="multiple of num_views=3"):
        distort(pixels(), mask(), 8, kind="noise", progress=START, num_views=3)
    with pytest.raises(ValueError, match=r"share of the patches in \[0, 1\]; got 1\.5"):
        draw_patch_mask(START, 1, 1, (2, 2), ratio_mode="fixed", fixed_ratio=1.5)
