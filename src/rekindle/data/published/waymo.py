# SPDX-License-Identifier: Apache-2.0
"""Waymo Open (perception, version 2) as images with depth: the front camera, and the top laser's points that it sees.

Every split is a folder of components, and a component a Parquet file per segment. The publisher gives the pixel of each laser
point (`lidar_camera_projection`) and its range; its depth, along the camera's axis, follows from the calibrations. LOCA measures
depth on this data (section 4) and names neither camera nor laser. Deviation: the vehicle's motion within one turn of the laser,
a tenth of a second (`lidar_pose`), is left out.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.published.named import expected, published_split

Floats = NDArray[np.float64]
FRONT = TOP = 1  # the publisher's numbers of the camera and of the laser
COMPONENTS = ("camera_image", "lidar", "lidar_camera_projection", "lidar_calibration", "camera_calibration")
_NAME, _TIME = "waymo", "key.frame_timestamp_micros"
_IMAGE = "[CameraImageComponent].image"
_RANGES = "[LiDARComponent].range_image_return1"
_PLACES = "[LiDARCameraProjectionComponent].range_image_return1"
_LASER, _CAMERA = "[LiDARCalibrationComponent].", "[CameraCalibrationComponent]."
_MOVE = "extrinsic.transform"


class WaymoDepth:
    """Frames of one split with the depth of the pixels that the laser met, 0 elsewhere.

    Attributes:
        items: <segment>/<time in microseconds>, sorted.

    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self._folder = root / published_split(_NAME, root, split)
        images = self._folder / "camera_image"
        segments = sorted(images.glob("*.parquet"))
        if not segments:
            state = "there is no .parquet file in it" if images.is_dir() else "the folder does not exist"
            raise RequestError(f"{images}: {state}. {expected(_NAME)}")
        self._frames = [(path.name, time) for path in segments for time in self._times(path.name)]
        self.items: list[str] = [f"{Path(file).stem}/{time}" for file, time in self._frames]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 [3, H, W], and the depth in metres, float32 [H, W]."""
        file, time = self._frames[index]
        row = self._row("camera_image", file, [_IMAGE], camera=FRONT, time=time)
        with Image.open(io.BytesIO(row[_IMAGE])) as picture:
            image = np.array(picture.convert("RGB"))
        ranges = _array(
            self._row("lidar", file, [f"{_RANGES}.values", f"{_RANGES}.shape"], laser=TOP, time=time), _RANGES
        )
        places = self._row(
            "lidar_camera_projection", file, [f"{_PLACES}.values", f"{_PLACES}.shape"], laser=TOP, time=time
        )
        laser = self._row(
            "lidar_calibration",
            file,
            [_LASER + _MOVE, *(f"{_LASER}beam_inclination.{end}" for end in ("min", "max", "values"))],
            laser=TOP,
        )
        camera = self._row("camera_calibration", file, [_CAMERA + _MOVE], camera=FRONT)
        points = laser_points(ranges[..., 0], _matrix(laser[_LASER + _MOVE]), _inclinations(laser, len(ranges)))
        seen = np.linalg.inv(_matrix(camera[_CAMERA + _MOVE])) @ points
        depth = depth_map(seen[0], ranges[..., 0] > 0, _array(places, _PLACES), image.shape[:2])
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(depth)

    def check(self) -> None:
        """Look for the components of every segment. Raises: RequestError that lists those that are missing."""
        files = dict.fromkeys(file for file, _ in self._frames)
        missing = [
            f"{component}/{file}"
            for file in files
            for component in COMPONENTS
            if not (self._folder / component / file).is_file()
        ]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise RequestError(f"{self._folder}: there is no {', '.join(missing[:5])}{more}. {expected(_NAME)}")

    def _times(self, file: str) -> list[int]:
        table = self._table("camera_image", file, [_TIME], camera=FRONT)
        return sorted(table.column(_TIME).to_pylist())

    def _row(self, component: str, file: str, columns: list[str], **keys: int) -> dict[str, Any]:
        rows = self._table(component, file, columns, **keys).to_pylist()
        if len(rows) != 1:
            asked = ", ".join(f"{name} {value}" for name, value in keys.items())
            raise RequestError(
                f"{self._folder / component / file}: {len(rows)} rows of {asked}, and one was expected. {expected(_NAME)}"
            )
        found: dict[str, Any] = rows[0]
        return found

    def _table(
        self, component: str, file: str, columns: list[str], *, camera: int = 0, laser: int = 0, time: int = 0
    ) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise RequestError(
                "waymo: reading parquet needs pyarrow; install it with: pip install 'rekindle[readers]'"
            ) from error
        keys = {"key.camera_name": camera, "key.laser_name": laser, _TIME: time}
        path = self._folder / component / file
        try:
            return parquet.read_table(path, columns=columns, filters=[(k, "==", v) for k, v in keys.items() if v])
        except (OSError, pyarrow.ArrowException) as error:
            raise RequestError(f"{path} cannot be read ({str(error).splitlines()[0]}). {expected(_NAME)}") from error


def laser_points(ranges: Floats, laser: Floats, inclinations: Floats) -> Floats:
    """Return the points of a range image in the vehicle's frame (x ahead, y to the left, z up), [4, H * W], the last row 1.

    Args:
        ranges: metres [H, W]; a row is a beam, the highest first, and the columns go round from behind, clockwise.
        laser: its place in the vehicle, 4 x 4.
        inclinations: of the rows, radians.
    """
    height, width = ranges.shape
    ahead = np.arctan2(laser[1, 0], laser[0, 0])  # columns are counted from the vehicle's back, not from the laser's
    angles = np.pi * (1 - (2 * np.arange(width) + 1) / width) - ahead
    flat = ranges * np.cos(inclinations)[:, None]
    own = [
        flat * np.cos(angles),
        flat * np.sin(angles),
        ranges * np.sin(inclinations)[:, None],
        np.ones((height, width)),
    ]
    found: Floats = laser @ np.stack(own).reshape(4, -1)
    return found


def depth_map(depth: Floats, is_met: NDArray[np.bool_], places: Floats, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the depth of each pixel of the front camera, [H, W]: the nearest of the points that fall on it, 0 without any.

    Args:
        depth: of the points [n].
        is_met: whether a point is there at all, n in all.
        places: camera, x and y of a point's pixel, twice, for a point may be seen by two cameras; n x 6 in all.
        size: height and width of the image.
    """
    nearest = np.full(size, np.inf)
    for camera, x, y in (places.reshape(-1, 6)[:, :3].T, places.reshape(-1, 6)[:, 3:].T):
        rows, columns = y.astype(int), x.astype(int)
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        seen = is_met.reshape(-1) & (camera == FRONT) & (depth > 0) & inside
        np.minimum.at(nearest, (rows[seen], columns[seen]), depth[seen])
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32)


def _array(row: dict[str, Any], name: str) -> Floats:
    return np.asarray(row[f"{name}.values"], np.float64).reshape(row[f"{name}.shape"])


def _matrix(values: object) -> Floats:
    return np.asarray(values, np.float64).reshape(4, 4)


def _inclinations(row: dict[str, Any], height: int) -> Floats:
    """Of the rows, from the highest beam down; the publisher lists them from the lowest up, or gives their range alone."""
    values = row[f"{_LASER}beam_inclination.values"]
    if values:
        return np.asarray(values, np.float64)[::-1]
    low, high = (float(row[f"{_LASER}beam_inclination.{end}"]) for end in ("min", "max"))
    return high - (np.arange(height) + 0.5) / height * (high - low)
