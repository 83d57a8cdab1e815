# SPDX-License-Identifier: Apache-2.0
"""Attention of the class token: which cells hold the top mass, colours of heads, files of the image's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from rekindle.drawing.attention_pictures import head_composite, top_mass, write_attention, write_film
from tests.evaluation.toy import tiny_backbone


def test_worked_cases_of_the_top_mass() -> None:
    """(.5, .3, .15, .05) at 0.6 keeps the first two; of ten equal cells six are kept, the first."""
    assert top_mass([[0.5, 0.3, 0.15, 0.05]], 0.6).tolist() == [[True, True, False, False]]
    assert top_mass([[0.1] * 10], 0.6).tolist() == [[True] * 6 + [False] * 4]
    assert top_mass([[[0.1, 0.4]], [[0.4, 0.1]]], 0.6).tolist() == [[[False, True]], [[True, False]]]
    assert not top_mass([[0.0, 0.0]], 0.6).any()


def test_the_kept_cells_hold_at_least_the_mass_and_without_the_weakest_less() -> None:
    maps = np.random.default_rng(0).random((5, 6, 7))
    for weights, kept in zip(maps, top_mass(maps, 0.6), strict=True):
        assert weights[kept].sum() >= 0.6 * weights.sum() > weights[kept].sum() - weights[kept].min()
        assert weights[kept].min() >= weights[~kept].max()


def test_composite_shows_the_strongest_head_and_black_below_the_floor() -> None:
    maps = np.array([[[1.0, 0.05, 0.05]], [[0.0, 0.0, 0.04]]])
    found = head_composite(maps, floor=0.1)
    assert (found[0, 1] == 0).all() and (head_composite(maps, floor=0.0)[0, 1] > 0).any()
    assert found[0, 2].max() > 0.5  # scaled to its own maximum, a weak head is as bright
    left, right = head_composite([[[1.0, 0.0]], [[0.0, 1.0]]])[0]
    assert not np.array_equal(left, right)
    assert (head_composite(np.zeros((2, 3, 3))) == 0).all()


def test_files_of_a_networks_attention(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    network = tiny_backbone().eval()
    with torch.no_grad():
        maps = network(pixels, cls_attention=True).cls_attention
    assert maps is not None and maps.shape == (1, 2, 3, 4)
    assert ((maps.sum(dim=(2, 3)) < 1) & (maps.sum(dim=(2, 3)) > 0)).all()  # the class token keeps its own share
    for folder in ("a", "b"):
        write_attention(tmp_path / folder, image, maps[0].numpy())
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [
        "attention.npz",
        "composite.png",
        "head-0.png",
        "head-1.png",
        "mass-0.png",
        "mass-1.png",
        "mean.png",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        if name.endswith(".png"):
            with Image.open(tmp_path / "a" / name) as picture:
                assert picture.size == (32, 24)
    with Image.open(tmp_path / "a" / "mass-1.png") as picture:
        changed = (np.asarray(picture) != image).any(axis=2)[4::8, 4::8]
    assert np.array_equal(changed, top_mass(maps[0].numpy(), 0.6)[1])


def test_a_film_has_its_frames_on_one_scale(tmp_path: Path) -> None:
    frames = [np.full((8, 8, 3), 90, np.uint8)] * 2
    write_film(tmp_path / "film.gif", frames, [np.full((2, 2, 2), 0.05), np.full((2, 2, 2), 0.2)], fps=5)
    with Image.open(tmp_path / "film.gif") as film:
        shown = [np.asarray(frame.convert("RGB")).mean() for frame in ImageSequence.Iterator(film)]
        assert film.info["duration"] == 200
    assert len(shown) == 2 and shown[1] > shown[0] + 20


def test_attention_that_is_zero_everywhere_is_drawn(tmp_path: Path) -> None:
    write_attention(tmp_path, np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2, 2)))
    with Image.open(tmp_path / "mean.png") as picture:
        assert np.asarray(picture).max() < 10
    with pytest.raises(ValueError):
        write_film(tmp_path / "f.gif", [np.zeros((8, 8, 3), np.uint8)], [np.zeros((1, 2, 2))] * 2)
