# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rekindle.views.batch import Crops
from rekindle.views.geometry import (
    MatchMode,
    bilinear_rows,
    match_patches,
    patch_centres,
    places_in,
    region_partner,
    shared_region,
)
from rekindle.views.multicrop import MultiCrop
from rekindle.views.options import ViewsOptions

Grid = tuple[int, int]
MODES: tuple[MatchMode, ...] = get_args(MatchMode)


def crop(
    top: float = 0.0,
    left: float = 0.0,
    height: float = 1.0,
    width: float = 1.0,
    flipped: bool = False,
    flipped_vertically: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Crops:
    y, x, h, w = (torch.tensor([value], dtype=dtype) for value in (top, left, height, width))
    side = torch.full((1,), 480.0)
    return Crops(y, x, h, w, torch.tensor([flipped]), torch.tensor([flipped_vertically]), side, side)


def random_crops(seed: int, count: int) -> Crops:
    source = torch.Generator().manual_seed(seed)
    height, width = (0.2 + 0.8 * torch.rand(count, generator=source) for _ in range(2))
    top, left = (torch.rand(count, generator=source) * (1 - extent) for extent in (height, width))
    flips = torch.rand(2, count, generator=source) < 0.5
    side = torch.full((count,), 480.0)
    return Crops(top, left, height, width, flips[0], flips[1], side, side)


def half_extent(crops: Crops, grid: Grid) -> Tensor:
    """Half height and half width of a patch, as fractions of the image."""
    return torch.stack([crops.height / (2 * grid[0]), crops.width / (2 * grid[1])], dim=-1)


def column_mirror(grid: Grid) -> Tensor:
    return torch.arange(grid[0] * grid[1]).view(grid).flip(1).flatten()


def slow_match(
    student: Crops, teacher: Crops, grids: tuple[Grid, Grid], mode: MatchMode, threshold: float
) -> list[list[list[bool]]]:
    """The definitions, patch by patch, in double precision with Python numbers."""

    def patches(crops: Crops, b: int, grid: Grid) -> list[tuple[float, float, float, float]]:
        top, left, height, width = (float(v[b]) for v in (crops.top, crops.left, crops.height, crops.width))
        ph, pw = height / grid[0], width / grid[1]
        found = []
        for i in range(grid[0]):
            for j in range(grid[1]):
                row = grid[0] - 1 - i if crops.flipped_vertically[b] else i
                column = grid[1] - 1 - j if crops.flipped[b] else j
                found.append((top + (row + 0.5) * ph, left + (column + 0.5) * pw, ph, pw))
        return found

    eps = 1e-6
    result = []
    for b in range(len(student.top)):
        teachers = patches(teacher, b, grids[1])
        table = []
        for ys, xs, hs, ws in patches(student, b, grids[0]):
            row: list[bool] = []
            for yt, xt, ht, wt in teachers:
                dy, dx = abs(ys - yt), abs(xs - xt)
                s_in_t = dy <= ht / 2 + eps and dx <= wt / 2 + eps
                t_in_s = dy <= hs / 2 + eps and dx <= ws / 2 + eps
                shared_y = min(ys + hs / 2, yt + ht / 2) - max(ys - hs / 2, yt - ht / 2)
                shared_x = min(xs + ws / 2, xt + wt / 2) - max(xs - ws / 2, xt - wt / 2)
                share = max(0.0, shared_y) * max(0.0, shared_x) / min(hs * ws, ht * wt)
                row.append(
                    {
                        "containment": s_in_t or t_in_s,
                        "center": s_in_t and not any(row),
                        "overlap": share >= threshold,
                        "nearest": (dy / ht) ** 2 + (dx / wt) ** 2 < threshold**2,
                    }[mode]
                )
            if mode == "nearest":
                places = [(ys - yt) ** 2 / ht**2 + (xs - xt) ** 2 / wt**2 for yt, xt, ht, wt in teachers]
                row = [hit and places[t] == min(places) for t, hit in enumerate(row)]
            table.append(row)
        result.append(table)
    return result


@pytest.mark.parametrize(
    ("mode", "threshold"), [("containment", None), ("center", None), ("overlap", 0.3), ("nearest", 0.6)]
)
def test_relation_equals_the_patch_by_patch_definition(mode: MatchMode, threshold: float | None) -> None:
    student, teacher = random_crops(1, 6), random_crops(2, 6)
    grids = ((4, 3), (3, 5))
    match = match_patches(student, teacher, *grids, mode=mode, threshold=threshold)
    expected = torch.tensor(slow_match(student, teacher, grids, mode, threshold or 0.0))
    assert torch.equal(match.relation, expected)
    assert torch.equal(match.valid, expected.any(-1))
    assert expected.any()
    assert not expected.all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(MODES))
def test_the_nearest_patch_is_a_partner_wherever_there_is_one(seed: int, mode: MatchMode) -> None:
    match = match_patches(random_crops(seed, 4), random_crops(seed + 1, 4), (5, 4), (3, 6), mode=mode)
    is_partner = match.relation.gather(2, match.nearest[..., None])[..., 0]
    assert torch.equal(is_partner & match.valid, match.valid)


def test_nearest_has_the_least_distance_in_units_of_the_teacher_patch() -> None:
    student, teacher = random_crops(3, 5), random_crops(4, 5)
    s, t = patch_centres(student, (4, 4)), patch_centres(teacher, (4, 4))
    half = half_extent(teacher, (4, 4))
    distance = (((s[:, :, None] - t[:, None]) / half[:, None, None]) ** 2).sum(-1)
    match = match_patches(student, teacher, (4, 4), (4, 4))
    chosen = distance.gather(2, match.nearest[..., None])[..., 0]
    torch.testing.assert_close(chosen, distance.amin(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_identical_crops_match_each_patch_with_itself(mode: MatchMode) -> None:
    box = crop(0.1, 0.2, 0.33, 0.57, flipped=True)
    match = match_patches(box, box, (14, 14), (14, 14), mode=mode)
    assert torch.equal(match.relation[0], torch.eye(196, dtype=torch.bool))
    assert torch.equal(match.nearest[0], torch.arange(196))
    assert match.valid.all()


def test_opposite_flips_of_one_box_give_the_mirror_permutation() -> None:
    match = match_patches(crop(0.1, 0.2, 0.5, 0.6), crop(0.1, 0.2, 0.5, 0.6, flipped=True), (6, 5), (6, 5))
    assert torch.equal(match.relation[0], torch.eye(30, dtype=torch.bool)[column_mirror((6, 5))])
    assert torch.equal(match.nearest[0], column_mirror((6, 5)))


@pytest.mark.parametrize("mode", MODES)
def test_disjoint_boxes_have_no_partner(mode: MatchMode) -> None:
    match = match_patches(crop(height=0.2), crop(top=0.7, height=0.2), (4, 4), (4, 4), mode=mode)
    assert not match.relation.any()
    assert not match.valid.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["containment", "overlap"]))
def test_containment_and_overlap_are_symmetric(seed: int, mode: Literal["containment", "overlap"]) -> None:
    a, b = random_crops(seed, 3), random_crops(seed + 1, 3)
    forward = match_patches(a, b, (4, 5), (6, 3), mode=mode).relation
    assert torch.equal(forward, match_patches(b, a, (6, 3), (4, 5), mode=mode).relation.transpose(1, 2))


@pytest.mark.parametrize("mode", MODES)
def test_flipping_a_crop_permutes_its_side_of_the_relation(mode: MatchMode) -> None:
    student, teacher = random_crops(5, 4), random_crops(6, 4)
    plain = match_patches(student, teacher, (4, 5), (3, 4), mode=mode).relation

    def mirrored(c: Crops) -> Crops:
        return replace(c, flipped=~c.flipped)

    rows = match_patches(mirrored(student), teacher, (4, 5), (3, 4), mode=mode).relation
    columns = match_patches(student, mirrored(teacher), (4, 5), (3, 4), mode=mode).relation
    assert torch.equal(rows, plain[:, column_mirror((4, 5))])
    assert torch.equal(columns, plain[:, :, column_mirror((3, 4))])


def test_vertical_flip_reverses_the_rows_of_patches() -> None:
    plain, turned = (patch_centres(crop(0.1, 0.2, 0.4, 0.6, flipped_vertically=v), (3, 4)) for v in (False, True))
    torch.testing.assert_close(turned.view(3, 4, 2), plain.view(3, 4, 2).flip(0))


def test_centres_of_a_box_worked_by_hand() -> None:
    box = crop(0.5, 0.0, 0.5, 0.4, flipped=True)
    expected = torch.tensor([[0.625, 0.3], [0.625, 0.1], [0.875, 0.3], [0.875, 0.1]])
    torch.testing.assert_close(patch_centres(box, (2, 2))[0], expected)


def test_a_quadrant_is_matched_four_to_one() -> None:
    whole, quadrant = crop(), crop(height=0.5, width=0.5)
    coarse = match_patches(whole, quadrant, (14, 14), (14, 14))
    assert int(coarse.valid.sum()) == 49
    assert torch.equal(coarse.relation.sum(-1)[coarse.valid], torch.full((49,), 4))
    fine = match_patches(quadrant, whole, (14, 14), (14, 14))
    assert torch.equal(fine.relation.sum(-1)[0], torch.ones(196, dtype=torch.int64))


def test_center_takes_the_lowest_index_where_a_centre_lies_on_a_shared_edge() -> None:
    match = match_patches(crop(), crop(), (1, 1), (2, 2), mode="center")
    assert match.relation.flatten().tolist() == [True, False, False, False]
    assert match.nearest.item() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0), st.floats(0.0, 0.3))
def test_moving_and_scaling_both_boxes_leaves_the_relation(seed: int, scale: float, shift: float) -> None:
    def moved(c: Crops) -> Crops:
        top, left = c.top.double() * scale + shift, c.left.double() * scale + shift / 2
        return replace(c, top=top, left=left, height=c.height.double() * scale, width=c.width.double() * scale)

    a, b = random_crops(seed, 2), random_crops(seed + 1, 2)
    plain = match_patches(moved(a), moved(b), (4, 4), (5, 5), eps=1e-9 * scale).relation
    unmoved = Crops(*(v.double() if v.is_floating_point() else v for v in vars(a).values()))
    unmoved_b = Crops(*(v.double() if v.is_floating_point() else v for v in vars(b).values()))
    assert torch.equal(plain, match_patches(unmoved, unmoved_b, (4, 4), (5, 5), eps=1e-9).relation)


def test_pixel_space_and_normalised_space_agree() -> None:
    a, b = random_crops(7, 5), random_crops(8, 5)

    def in_pixels(c: Crops) -> Crops:
        return replace(c, top=c.top * 360, left=c.left * 480, height=c.height * 360, width=c.width * 480)

    pixels = match_patches(in_pixels(a), in_pixels(b), (5, 5), (5, 5), eps=1e-4)
    assert torch.equal(pixels.relation, match_patches(a, b, (5, 5), (5, 5)).relation)


def test_half_precision_boxes_are_widened() -> None:
    box = crop(dtype=torch.bfloat16)
    assert patch_centres(box, (14, 14)).dtype == torch.float32
    assert torch.equal(match_patches(box, box, (14, 14), (14, 14)).nearest[0], torch.arange(196))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_matched_patches_show_the_same_place_of_a_painted_image(seed: int) -> None:
    height, width, grid = 96, 128, (4, 4)
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    painted = torch.stack(
        [(y * 2)[:, None].expand(height, width), (x * 1.9).expand(height, width), torch.zeros(height, width)]
    )
    options = ViewsOptions(
        global_size_px=64,
        local_size_px=32,
        num_local=2,
        vflip_p=0.5,
        jitter_p=0,
        grey_p=0,
        blur_p=(0, 0, 0),
        solarize_p=(0, 0, 0),
    )
    transform = MultiCrop(options)
    views = transform(painted.round().to(torch.uint8), torch.Generator().manual_seed(seed))
    assert views.local_pixels is not None
    assert views.local_crops is not None
    pairs = [
        (views.global_pixels[0], views.global_crops[:1], views.global_pixels[1], views.global_crops[1:]),
        (views.local_pixels[0], views.local_crops[:1], views.global_pixels[1], views.global_crops[1:]),
    ]
    for student, student_crop, teacher, teacher_crop in pairs:
        places = []
        for pixels, box in ((student, student_crop), (teacher, teacher_crop)):
            patches = torch.nn.functional.adaptive_avg_pool2d(pixels[None, :2].float(), grid)[0].flatten(1).T
            seen = patches / torch.tensor([2 * height, 1.9 * width])
            # The painted place is the geometry's, up to about a pixel of resampling at the border.
            torch.testing.assert_close(seen, patch_centres(box, grid)[0], atol=0.012, rtol=0)
            places.append(seen)
        match = match_patches(student_crop, teacher_crop, grid, grid)
        halves = torch.maximum(half_extent(student_crop, grid)[0], half_extent(teacher_crop, grid)[0])
        s, t = match.relation[0].nonzero().unbind(1)
        assert ((places[0][s] - places[1][t]).abs() <= halves + 0.024).all()


def test_region_partner_is_the_union_of_partners() -> None:
    student, teacher = random_crops(9, 3), random_crops(10, 3)
    relation = match_patches(student, teacher, (4, 4), (4, 4)).relation
    regions = torch.rand(3, 2, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    found = region_partner(regions, relation)
    for b in range(3):
        for m in range(2):
            union = [any(bool(regions[b, m, s] and relation[b, s, t]) for s in range(16)) for t in range(16)]
            assert found[b, m].tolist() == union


def test_region_partner_of_identical_and_mirrored_crops() -> None:
    region = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    region[0, 0, 1:3, 0:2] = True
    box, mirror = crop(0.1, 0.1, 0.5, 0.5), crop(0.1, 0.1, 0.5, 0.5, flipped=True)
    same = match_patches(box, box, (4, 5), (4, 5)).relation
    turned = match_patches(box, mirror, (4, 5), (4, 5)).relation
    assert torch.equal(region_partner(region.flatten(2), same), region.flatten(2))
    assert torch.equal(region_partner(region.flatten(2), turned), region.flip(3).flatten(2))


def test_a_threshold_out_of_range_is_refused_with_the_allowed_one() -> None:
    with pytest.raises(ValueError, match=r"mode 'overlap' must be in \(0, 1\]; got 1\.5"):
        match_patches(crop(), crop(), (2, 2), (2, 2), mode="overlap", threshold=1.5)
    with pytest.raises(ValueError, match="'center' has no threshold; leave it out"):
        match_patches(crop(), crop(), (2, 2), (2, 2), mode="center", threshold=0.5)


def test_patch_centres_of_a_view_lie_at_their_own_places_in_it_mirrored_or_not() -> None:
    crops, grid = random_crops(3, 20), (3, 5)
    places = places_in(crops, patch_centres(crops, grid))
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    expected = torch.stack([y, x], dim=-1).flatten(0, 1).expand(20, -1, -1)
    torch.testing.assert_close(places, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(bilinear_rows(places, grid), torch.eye(15).expand(20, -1, -1), atol=1e-4, rtol=0)


def test_bilinear_rows_interpolate_as_grid_sample_does_and_vanish_outside() -> None:
    """S32: rows sum to 1 inside and to 0 outside."""
    torch.manual_seed(0)
    places, tokens = 1.6 * torch.rand(4, 30, 2) - 0.3, torch.randn(4, 7, 3, 5)
    rows = bilinear_rows(places, (3, 5))
    inside = ((places >= 0) & (places <= 1)).all(dim=-1)
    torch.testing.assert_close(rows.sum(dim=-1), inside.float())
    sampled = torch.nn.functional.grid_sample(
        tokens, (2 * places.flip(-1) - 1)[:, :, None], align_corners=False, padding_mode="border"
    )
    ours = rows @ tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours[inside], sampled[..., 0].transpose(1, 2)[inside], atol=1e-5, rtol=1e-5)


def test_shared_region_is_the_rectangle_that_both_hold() -> None:
    region, area = shared_region(crop(0.0, 0.2, 0.5, 0.5), crop(0.25, 0.0, 0.75, 0.4))
    torch.testing.assert_close(region, torch.tensor([[0.25, 0.2, 0.25, 0.2]]))
    torch.testing.assert_close(area, torch.tensor([0.05]))
    assert float(shared_region(crop(0, 0, 0.2, 0.2), crop(0.1, 0.5, 0.2, 0.2))[1]) == 0.0
