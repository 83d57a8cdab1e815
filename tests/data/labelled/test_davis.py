# SPDX-License-Identifier: Apache-2.0
"""Video folders in DAVIS's layout, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.davis import DavisVideos


def write_video(
    root: Path, name: str, frames: list[np.ndarray], masks: list[np.ndarray], *, split: str = "val"
) -> None:
    """A sequence, added to the list of its split."""
    images, objects = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    for folder in (images, objects, root / "ImageSets" / "2017"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(frame).save(images / f"{number:05}.jpg", quality=95)
        Image.fromarray(mask.astype(np.uint8)).save(objects / f"{number:05}.png")
    with (root / "ImageSets" / "2017" / f"{split}.txt").open("a") as stream:
        stream.write(f"{name}\n")


def plain(root: Path) -> Path:
    mask = np.zeros((16, 24), np.uint8)
    mask[4:8, 4:8], mask[8:12, 8:12] = 1, 2
    write_video(root, "ball", [np.full((16, 24, 3), 10 * i, np.uint8) for i in range(4)], [mask] * 4)
    return root


def test_a_sequence_is_read_in_order(tmp_path: Path) -> None:
    videos = DavisVideos(plain(tmp_path), "val")
    videos.check()
    assert videos.items == ["ball"]
    assert [frame.stem for frame in videos.frames(0)] == ["00000", "00001", "00002", "00003"]
    assert sorted({*videos.mask(0, videos.frames(0)[2]).flatten().tolist()}) == [0, 1, 2]
    assert abs(float(videos.image(videos.frames(0)[3]).float().mean()) - 30) < 2


def test_void_is_background(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[0], mask[1] = 255, 1
    write_video(tmp_path, "a", [np.zeros((8, 8, 3), np.uint8)] * 3, [mask] * 3)
    videos = DavisVideos(tmp_path, "val")
    assert sorted({*videos.mask(0, videos.frames(0)[0]).flatten().tolist()}) == [0, 1]


def _gap(root: Path) -> None:
    (root / "JPEGImages/480p/ball/00002.jpg").unlink()


def _no_mask(root: Path) -> None:
    (root / "Annotations/480p/ball/00003.png").unlink()


def _too_short(root: Path) -> None:
    for number in (2, 3):
        (root / f"JPEGImages/480p/ball/{number:05}.jpg").unlink()


def _other_size(root: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.uint8)).save(root / "Annotations/480p/ball/00001.png")


def _no_object(root: Path) -> None:
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(root / "Annotations/480p/ball/00000.png")


def _damaged(root: Path) -> None:
    (root / "JPEGImages/480p/ball/00001.jpg").write_bytes(b"x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_gap, r"sequences with missing frames: ball \(1, the first is number 2\)"),
        (_no_mask, r"frames without a mask: ball \(1, the first is 00003\)"),
        (_too_short, r"fewer than three frames: ball \(2\)"),
        (_other_size, "frames or masks differ in size: ball"),
        (_no_object, "without an object in the first frame: ball"),
        (_damaged, "unreadable files .*: ball"),
    ],
)
def test_faults_are_named(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(plain(tmp_path))
    with pytest.raises(RequestError, match=message):
        DavisVideos(tmp_path, "val").check()


def test_an_unknown_split_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no list of the split 'train'; lists here: val"):
        DavisVideos(plain(tmp_path), "train")
