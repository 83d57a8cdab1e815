# SPDX-License-Identifier: Apache-2.0
"""Depth folders: units, and what is wrong with files, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.depth import DepthFolder


def write_depth(root: Path, split: str, stem: str, depth: np.ndarray, *, npz: bool = False) -> None:
    """A depth map and an image that is bright where it is near."""
    for kind in ("images", "depth"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    grey = (255 / (1 + depth)).astype(np.uint8)
    Image.fromarray(np.stack([grey, grey, 255 - grey], axis=-1)).save(root / "images" / split / f"{stem}.png")
    if npz:
        np.savez(root / "depth" / split / f"{stem}.npz", depth=depth.astype(np.float32))
    else:
        levels = np.round(depth * 256).astype(np.uint16)
        Image.fromarray(levels).save(root / "depth" / split / f"{stem}.png")


DEPTH = np.array([[1.0, 2.0, 4.0], [0.0, 0.5, 100.0]])


@pytest.mark.parametrize("npz", [False, True])
def test_depth_is_in_metres_and_zero_where_unknown(tmp_path: Path, npz: bool) -> None:
    write_depth(tmp_path, "val", "a", DEPTH, npz=npz)
    data = DepthFolder(tmp_path, "val")
    data.check()
    image, depth = data.read(0)
    assert np.allclose(depth.numpy(), DEPTH)
    assert image.shape == (3, 2, 3)


def test_another_unit_is_converted(tmp_path: Path) -> None:
    write_depth(tmp_path, "val", "a", 1000 * DEPTH, npz=True)
    (tmp_path / "depth.json").write_text('{"metres_per_unit": 0.001}')
    data = DepthFolder(tmp_path, "val")
    data.check()
    assert np.allclose(data.read(0)[1].numpy(), DEPTH)


def test_what_is_not_finite_is_unknown(tmp_path: Path) -> None:
    write_depth(tmp_path, "val", "a", DEPTH, npz=True)
    bad = np.where(DEPTH == 4.0, np.nan, np.where(DEPTH == 2.0, -1.0, DEPTH))
    np.savez(tmp_path / "depth/val/a.npz", depth=bad)
    assert DepthFolder(tmp_path, "val").read(0)[1].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 100.0]]


def _without_folder(root: Path) -> None:
    (root / "depth/val/a.png").unlink()
    (root / "depth/val").rmdir()


def _without_map(root: Path) -> None:
    (root / "depth/val/a.png").unlink()


def _eight_bits(root: Path) -> None:
    Image.fromarray(np.ones((2, 3), np.uint8)).save(root / "depth/val/a.png")


def _other_size(root: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.uint16)).save(root / "depth/val/a.png")


def _millimetres(root: Path) -> None:
    np.savez(root / "depth/val/a.npz", depth=np.full((2, 3), 4000.0))
    (root / "depth/val/a.png").unlink()


def _damaged(root: Path) -> None:
    (root / "depth/val/a.png").write_bytes(b"no picture")


def _bad_unit(root: Path) -> None:
    (root / "depth.json").write_text('{"metres_per_unit": -1}')


def _no_unit(root: Path) -> None:
    (root / "depth.json").write_text('{"unit": "mm"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_folder, "there are no depth maps of the split 'val'"),
        (_without_map, "images without a depth map .*: a"),
        (_eight_bits, r"not 16-bit PNG \(8 bits cannot hold metres\): a \(mode L\)"),
        (_other_size, r"another size than their image .*: a \(depth 3 x 3, image 2 x 3\)"),
        (_millimetres, r"cannot be metres .*metres_per_unit.*: a \(median 4000 m\)"),
        (_damaged, "unreadable files .*: a"),
        (_bad_unit, "metres_per_unit = -1 must be a number above 0"),
        (_no_unit, "expected, for example"),
    ],
)
def test_faults_are_named(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    write_depth(tmp_path, "val", "a", DEPTH)
    change(tmp_path)
    with pytest.raises(RequestError, match=message):
        DepthFolder(tmp_path, "val").check()


def test_an_unknown_split_names_the_known(tmp_path: Path) -> None:
    write_depth(tmp_path, "val", "a", DEPTH)
    with pytest.raises(RequestError, match="no split 'test'; splits here: val"):
        DepthFolder(tmp_path, "test")
