# SPDX-License-Identifier: Apache-2.0
"""Clusters, principal components and prompts of one image: known cases, the image's size, the same file for the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from rekindle.core.errors import RequestError
from rekindle.drawing.principal import principal_colours
from rekindle.drawing.token_pictures import (
    cluster_tokens,
    cosines_to,
    write_clusters,
    write_principal,
)

FLAT = np.full((4, 6, 5), 0.7)


def three_groups() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Orthogonal groups of 12, 8 and 4 patches of different lengths, and the group of each patch."""
    ordered = np.repeat([1, 0, 2], [8, 12, 4])
    groups = ordered[np.random.default_rng(0).permutation(24)].reshape(4, 6)
    return np.eye(5)[groups] * np.random.default_rng(1).uniform(1, 9, (4, 6, 1)), groups


def test_orthogonal_groups_are_recovered_largest_first() -> None:
    tokens, groups = three_groups()
    found = cluster_tokens(tokens)
    assert np.array_equal(found.labels, groups)
    assert np.allclose(found.centres, np.eye(5)[:3])


def test_clusters_do_not_depend_on_the_order_of_the_tokens() -> None:
    tokens = np.random.default_rng(0).normal(
        size=(6, 6, 8)
    )  # no structure: only the same starts give the same clusters
    order = np.random.default_rng(1).permutation(36)
    first = cluster_tokens(tokens)
    moved = cluster_tokens(tokens.reshape(36, 8)[order].reshape(6, 6, 8))
    assert np.array_equal(moved.labels.ravel(), first.labels.ravel()[order])
    assert np.allclose(moved.centres, first.centres)
    areas = np.bincount(first.labels.ravel())
    assert areas.tolist() == sorted(areas, reverse=True)


def test_the_picture_of_clusters_has_the_images_size_and_the_numbers_beside_it(tmp_path: Path) -> None:
    tokens, groups = three_groups()
    write_clusters(tmp_path / "a.png", cluster_tokens(tokens), (40, 66))
    write_clusters(tmp_path / "b.png", cluster_tokens(tokens), (40, 66))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (40, 66, 3)
    colours = {tuple(pixels[10 * y, 11 * x].tolist()): groups[y, x] for y in range(4) for x in range(6)}
    assert sorted(colours.values()) == [0, 1, 2]
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["labels"].shape == (4, 6) and arrays["centres"].shape == (3, 5)


def test_constant_tokens_make_one_cluster_and_one_colour(tmp_path: Path) -> None:
    found = cluster_tokens(FLAT)
    assert len(np.unique(found.labels)) == 1
    assert np.isfinite(found.centres).all()
    write_clusters(tmp_path / "flat.png", found, (8, 12))
    write_principal(tmp_path, {"pca": FLAT}, {"pca": (8, 12)})
    for name in ("flat", "pca"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) == 1
    with np.load(tmp_path / "components.npz") as arrays:
        assert arrays["ratios"].tolist() == [0, 0, 0]


def test_rank_one_puts_everything_into_the_first_channel() -> None:
    tokens = np.linspace(-1, 1, 24).reshape(4, 6, 1) * np.array([0.6, 0.0, -0.8]) + 3.0
    found = principal_colours([tokens], stretch="range")
    assert found.ratios == pytest.approx([1, 0, 0])
    assert found.colours[0][..., 0].ravel() == pytest.approx(np.linspace(1, 0, 24))  # the largest loading is positive
    assert (found.colours[0][..., 1:] == 0.5).all()


def test_components_and_ratios_are_those_of_scikit_learn() -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 5, 5, 8)) * np.arange(1, 9)
    found, expected = principal_colours([tokens]), PCA(3).fit(tokens.reshape(-1, 8))
    assert found.ratios == pytest.approx(expected.explained_variance_ratio_)
    assert found.mean == pytest.approx(expected.mean_)
    assert np.abs((found.components * expected.components_).sum(axis=1)) == pytest.approx([1, 1, 1])
    assert found.ratios.sum() <= 1


def test_the_foreground_has_its_own_components() -> None:
    """Half of the image is far away in the first direction; within each half another direction varies."""
    source = np.random.default_rng(0)
    tokens = source.normal(size=(4, 6, 4)) * [0.01, 1.0, 0.1, 0.1]
    tokens[:, 3:, 0] += 20.0
    above, below = (principal_colours([tokens], foreground=0.5, is_below=b) for b in (False, True))
    assert above.foreground[0][:, 3:].all() and not above.foreground[0][:, :3].any()
    assert np.array_equal(below.foreground[0], ~above.foreground[0])
    assert (above.colours[0][:, :3] == 0).all()
    assert abs(above.components[0, 1]) > 0.95
    whole = principal_colours([tokens])
    assert abs(whole.components[0, 0]) > 0.95 and whole.foreground[0].all()
    with pytest.raises(ValueError, match="no token is above 1"):
        principal_colours([tokens], foreground=1.0)


def test_joint_pictures_show_equal_tokens_in_equal_colours(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 4, 4, 6))
    tokens[1, 0, 0] = tokens[0, 3, 3]
    write_principal(tmp_path, {"a": tokens[0], "b": tokens[1]}, {"a": (8, 8), "b": (16, 12)})
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("a", "b")]
    assert [p.shape for p in pictures] == [(8, 8, 3), (16, 12, 3)]
    assert np.array_equal(pictures[0][-1, -1], pictures[1][0, 0])


def test_a_prompt_finds_what_is_like_its_place() -> None:
    tokens, groups = three_groups()
    cosines = cosines_to(tokens, (0.3, 0.99))  # patch (1, 5)
    assert np.allclose(cosines, groups == groups[1, 5])


@pytest.mark.parametrize("place", [(1.0, 0.5), (0.5, -0.1)])
def test_a_prompt_outside_the_image_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(RequestError, match="lies outside the image"):
        cosines_to(np.ones((2, 2, 3)), place)
