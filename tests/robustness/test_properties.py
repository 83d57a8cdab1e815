# SPDX-License-Identifier: Apache-2.0
"""What holds whatever the sizes: loaders, masks, regions, run files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rekindle.core.option_trees import nested
from rekindle.core.progress import Progress
from rekindle.data.training import StepBatches
from rekindle.methods.shared.masking import draw_visible
from rekindle.pretraining.options import read_run_file, resolve
from rekindle.views.distortion import MaskShape, draw_patch_mask
from rekindle.views.group_masks import draw_groups
from rekindle.views.regions import Anchor, sample_regions

SEEDS = st.integers(0, 10**6)
GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 30))
def test_an_epoch_shows_no_image_twice_and_resuming_shows_what_was_left(
    seed: int, images: int, per_slot: int, slots: int, steps: int
) -> None:
    batch = per_slot * slots
    assume(batch <= images)
    every = range(slots)
    whole = list(StepBatches(images, batch, slots, every, steps, 0, seed))
    per_epoch = images // batch
    for start in range(0, steps, per_epoch):
        shown = [index for part in whole[start * slots : (start + per_epoch) * slots] for _, index in part]
        assert len(set(shown)) == len(shown)
    draws = [draw for part in whole for draw, _ in part]
    assert len(set(draws)) == len(draws) == steps * batch
    middle = steps // 2
    assert list(StepBatches(images, batch, slots, every, steps, middle, seed)) == whole[middle * slots :]
    apart = [list(StepBatches(images, batch, slots, [slot], steps, 0, seed)) for slot in every]
    assert [part for parts in zip(*apart, strict=True) for part in parts] == whole


@settings(deadline=None, max_examples=60)
@given(SEEDS, GRIDS, st.floats(0.0, 1.0), st.sampled_from(get_args(MaskShape)))
def test_a_patch_mask_never_takes_more_than_its_share(
    seed: int, grid: tuple[int, int], ratio: float, shape: MaskShape
) -> None:
    mask = draw_patch_mask(
        Progress(1, 10, seed=seed),
        3,
        2,
        grid,
        ratio_mode="fixed",
        fixed_ratio=ratio,
        shape=shape,
    )
    taken = mask.flatten(2).sum(-1)
    most = int(ratio * grid[0] * grid[1] + 1e-9)
    assert mask.shape == (2, 3, *grid)
    assert bool((taken <= most).all())
    if shape == "random":
        assert bool((taken == most).all())


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(2, 300), st.floats(0.0, 0.99))
def test_masking_leaves_and_hides_at_least_one_patch_and_says_which(seed: int, patches: int, ratio: float) -> None:
    visible, hidden = draw_visible(Progress(0, 10, seed=seed), 2, 2, patches, ratio)
    assert bool((hidden.sum(1) + visible.shape[1] == patches).all())
    assert 1 <= visible.shape[1] < patches
    assert not bool(hidden.gather(1, visible).any())
    assert bool((visible.diff(dim=1) > 0).all())


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 8), st.integers(2, 8), st.floats(0.0, 0.5))
def test_groups_cover_the_share_that_was_asked_for(seed: int, rows: int, columns: int, share: float) -> None:
    wanted = torch.full((2, 1), share)
    mask = draw_groups(Progress(0, 10, seed=seed), wanted, (rows * 8, columns * 8), align_px=8, max_block=1.0)
    assert mask.shape == (1, 2, rows, columns)
    assert float(mask.float().mean(dim=(-2, -1)).min()) >= share - 1e-6


@settings(deadline=None, max_examples=60)
@given(SEEDS, GRIDS, st.integers(1, 5), st.integers(0, 5), st.sampled_from(get_args(Anchor)))
def test_regions_are_rectangles_inside_the_grid_of_the_size_they_say(
    seed: int, grid: tuple[int, int], least: int, more: int, anchor: Anchor
) -> None:
    found = sample_regions(
        Progress(3, 10, seed=seed), 2, 2, grid, num_regions=3, min_patches=least, max_patches=least + more,
        start="random", anchor=anchor,
    )  # fmt: skip
    assert bool((found.mask.flatten(2).sum(-1) == found.height * found.width).all())
    for size, start, extent in ((found.height, found.top, grid[0]), (found.width, found.left, grid[1])):
        assert bool((start >= 0).all() and (start + size <= extent).all() and (size >= 1).all())
        if anchor != "clip":
            assert bool((size >= min(least, extent)).all() and (size <= min(least + more, extent)).all())
    for n, m in ((0, 0), (3, 2)):
        top, left = int(found.top[n, m]), int(found.left[n, m])
        inside = found.mask[n, m, top : top + int(found.height[n, m]), left : left + int(found.width[n, m])]
        assert bool(inside.all())


NAMES = {
    "batch_size": st.integers(1, 10**6),
    "seed": st.integers(0, 2**31),
    "train": st.sampled_from(["adapters", "all", "norm"]),
    "images": st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20),
    "optim.lr_per_256": st.floats(1e-12, 1e3),
    "optim.final_weight_decay": st.none() | st.floats(0.0, 10.0),
    "views.hflip_p": st.floats(0.0, 1.0),
    "data.store_gib": st.none() | st.floats(0.0, 100.0),
    "glare.balance": st.sampled_from(["centre", "sinkhorn"]),
    "glare.num_regions": st.none() | st.integers(1, 99),
}


@settings(deadline=None, max_examples=15)
@given(st.fixed_dictionaries({}, optional=NAMES))
def test_a_run_file_says_again_what_was_resolved(flat: dict[str, object]) -> None:
    first = resolve({}, nested({"method": "glare", "backbone": "vit:width=32,depth=2,heads=2,patch=8,img=32", **flat}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(first.to_yaml(), encoding="utf-8")
        again = resolve(read_run_file(path), {})
    assert again.options.model_dump() == first.options.model_dump()
    assert yaml.safe_load(again.to_yaml()) == yaml.safe_load(first.to_yaml())
