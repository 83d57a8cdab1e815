# SPDX-License-Identifier: Apache-2.0
"""Waymo's frames with depth: the publisher's pixels, and the geometry of its laser worked out point by point."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.data.published.named import open_data
from rekindle.data.published.waymo import WaymoDepth, depth_map
from tests.data.published.made import WAYMO_PIXELS, WAYMO_RANGES, waymo


def by_hand(inclinations: tuple[float, float]) -> np.ndarray:
    """Depth of each pixel, a point at a time: rows from the highest beam down, columns from behind over the left side.

    Seen from the vehicle a column's direction is what the publisher says, whichever way the laser is turned; the laser is 0.5 m
    ahead of the camera.
    """
    found = np.zeros((4, 6))
    for row, inclination in enumerate(inclinations):
        for column in range(4):
            length, azimuth = WAYMO_RANGES[row][column], math.pi * (1 - 2 * (column + 0.5) / 4)
            depth = length * math.cos(inclination) * math.cos(azimuth) + 0.5
            camera_1, x_1, y_1, camera_2, x_2, y_2 = WAYMO_PIXELS[row][column]
            for camera, x, y in ((camera_1, x_1, y_1), (camera_2, x_2, y_2)):
                if camera == 1 and length > 0 and depth > 0 and (found[y, x] == 0 or depth < found[y, x]):
                    found[y, x] = depth
    return found


@pytest.mark.parametrize("yaw", [0.0, 2.6])
@pytest.mark.parametrize(("listed", "rows"), [((-0.2, 0.0), (0.0, -0.2)), (None, (0.0, -0.2))])
def test_depth_is_that_of_the_points(
    tmp_path: Path, yaw: float, listed: tuple[float, float] | None, rows: tuple[float, float]
) -> None:
    """Beams are listed from the lowest up, or two alone between -0.3 and 0.1, whose middles are -0.2 and 0.0."""
    waymo(tmp_path, yaw=yaw, inclinations=listed)
    data = open_data("depth", f"waymo:{tmp_path}", "val")
    assert data.items == ["10/17", "10/18"]
    data.check()
    image, depth = data.read(1)
    assert image.shape == (3, 4, 6) and image[:, 0, 0].tolist() == [90, 91, 92]
    assert depth.numpy() == pytest.approx(by_hand(rows), abs=1e-5)
    assert sorted(depth[depth > 0].tolist()) == pytest.approx(
        [4 * math.cos(0.2) * math.cos(math.pi / 4) + 0.5, 20 * math.cos(math.pi / 4) + 0.5]
    )


def test_pixels_outside_the_image_are_left_out() -> None:
    places = np.array([[1, 6, 0, 0, 0, 0], [1, 0, -1, 1, 2, 3]], float)
    found = depth_map(np.array([1.0, 2.0]), np.array([True, True]), places, (4, 6))
    assert found[3, 2] == 2.0 and found.sum() == 2.0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    waymo(tmp_path)
    (tmp_path / "training/lidar_calibration/10.parquet").unlink()
    with pytest.raises(RequestError, match=r"there is no lidar_calibration/10\.parquet\. Expected of waymo: version 2"):
        WaymoDepth(tmp_path, "train").check()
    (tmp_path / "training/lidar/10.parquet").write_bytes(b"no parquet")
    with pytest.raises(RequestError, match=r"lidar/10\.parquet cannot be read"):
        WaymoDepth(tmp_path, "train").read(0)
    (tmp_path / "validation/camera_image/10.parquet").unlink()
    with pytest.raises(RequestError, match=r"camera_image: there is no \.parquet file in it\. Expected of waymo"):
        WaymoDepth(tmp_path, "val")


def test_the_depth_protocol_reads_it(tmp_path: Path) -> None:
    waymo(tmp_path / "data")
    words = ["evaluate", "vit:width=16,depth=4,heads=2,patch=8,img=32", "--init", "random", "--protocol", "depth"]
    words += ["--data", f"waymo:{tmp_path / 'data'}", "--out", str(tmp_path / "r.json"), "--depth.size-px", "16"]
    words += ["--depth.steps", "2", "--depth.warmup-steps", "0", "--depth.batch-size", "2", "--depth.channels", "8"]
    assert main([*words, "--depth.projections", "8", "8", "8", "8"]) == 0
