# SPDX-License-Identifier: Apache-2.0
"""Pictures: joint colours, fixed scales, no NaN, the same file for the same arrays."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA

from rekindle.drawing.pictures import (
    enlarged,
    heat_colours,
    joint_colours,
    overlay,
    running_mean,
    write_curves,
    write_grid,
)
from rekindle.drawing.principal import principal_components


def test_equal_tokens_get_equal_colours_in_every_group() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(2, 3, 3, 8))
    after = rng.normal(size=(2, 3, 3, 8)) + 3.0
    after[1, 2, 0] = before[0, 1, 1]
    first, second = joint_colours([before, after])
    assert np.array_equal(second[1, 2, 0], first[0, 1, 1])
    assert not np.array_equal(first, joint_colours([before])[0])  # alone, the same tokens are stretched differently


def test_components_are_those_of_scikit_learn_with_the_largest_loading_positive() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 6)) * [5.0, 4.0, 3.0, 1.0, 1.0, 1.0]
    found, expected = principal_components(rows, count=3), PCA(3).fit(rows).components_
    assert np.allclose(np.abs((found * expected).sum(axis=1)), 1.0)
    assert (found[np.arange(3), np.abs(found).argmax(axis=1)] > 0).all()


def test_rank_one_tokens_vary_in_the_first_colour_alone() -> None:
    tokens = np.outer(np.linspace(-1, 1, 50), np.ones(5))
    colours = joint_colours([tokens])[0]
    assert np.ptp(colours[:, 0]) == 1.0 and (colours[:, 1:] == 0.5).all()


@pytest.mark.parametrize("tokens", [np.full((1, 2, 2, 4), 7.0), np.zeros((1, 2, 2, 2))])
def test_constant_tokens_give_a_flat_colour_and_no_nan(tokens: NDArray[np.float64]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (joint_colours([tokens])[0] == 0.5).all()
        assert np.isfinite(heat_colours(tokens, low=0.0, high=0.0)).all()


def test_one_scale_serves_both_overlays() -> None:
    images = np.full((1, 8, 8, 3), 128, np.uint8)
    weak, strong = np.full((1, 2, 2), 0.1), np.full((1, 2, 2), 0.2)
    first = overlay(images, weak, low=0.0, high=0.2)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert (overlay(images, strong, low=0.0, high=0.2).mean() > first.mean()).all()
    assert (overlay(images, strong, low=0.0, high=0.4) == first).all()


def test_enlarging_repeats_each_value() -> None:
    grid = np.arange(4.0).reshape(1, 2, 2, 1)
    assert np.array_equal(enlarged(grid, (4, 6))[0, :, :, 0], np.kron(grid[0, :, :, 0], np.ones((2, 3))))


def test_running_mean_uses_what_is_there() -> None:
    assert running_mean([2.0, 4.0, 6.0, 8.0], 2).tolist() == [2.0, 3.0, 5.0, 7.0]


def test_files_are_the_same_for_the_same_arrays(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).random((2, 16, 16, 3))
    for name in ("a", "b"):
        write_grid(tmp_path / f"{name}-grid.png", {"scene": pictures, "base": pictures}, zoom=2)
        write_curves(
            tmp_path / f"{name}-curves.png",
            [1, 2, 3],
            {"total": [3.0, 2.0, 1.0], "glob": [1.0] * 3},
            smooth=2,
        )
    for kind in ("grid", "curves"):
        assert (tmp_path / f"a-{kind}.png").read_bytes() == (tmp_path / f"b-{kind}.png").read_bytes()


def test_a_grid_shows_the_pixels_unblurred(tmp_path: Path) -> None:
    picture = np.zeros((1, 10, 10, 3), np.uint8)
    picture[0, :, 5:] = (255, 0, 0)
    write_grid(tmp_path / "grid.png", {"": picture}, zoom=4)
    with Image.open(tmp_path / "grid.png") as drawn:
        pixels = np.asarray(drawn).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(axis=1).sum() == (pixels == (0, 0, 0)).all(axis=1).sum() == 800
