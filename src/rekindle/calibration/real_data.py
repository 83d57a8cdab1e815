# SPDX-License-Identifier: Apache-2.0
"""Small labelled data for every protocol: crops of drawn scenes, several of some scenes, so that items stand in groups.

A crop's class is that of its middle; its mask and depth are exact; a short film moves the crop over the scene. Names of items
begin with the number of the scene. Besides the plain data there are two spoilt versions: the training labels of a share of
the crops are wrong, or one class is blurred wherever it is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from rekindle.data.scenes import CLASSES, COLORS, GROUNDS, draw_scene

SIDE, SCENE = 48, 120
FRAMES, STEP = 4, 4
FLIPPED = 0.4
BLURRED = 1
"""Index of the class that is blurred: brick, a ground that half of the crops show."""
Version = Literal["plain", "labels flipped", "class blurred"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """How much is drawn.

    Attributes:
        train: scenes that protocols learn from, a crop of each.
        single: scenes of which one crop is measured.
        grouped: the first so many of them, of which `members` crops are measured.
        members: items of a group.

    """

    train: int = 64
    single: int = 200
    grouped: int = 60
    members: int = 4


@dataclass(frozen=True)
class Crop:
    """A square cut out of a scene.

    Attributes:
        name: scene and number.
        frames: the pixels [SIDE, SIDE, 3], then those of the film.
        masks: class ids of each.
        depths: metres of the first.

    """

    name: str
    frames: list[Pixels]
    masks: list[Pixels]
    depths: NDArray[np.float64]

    @property
    def label(self) -> int:
        """Class of the middle."""
        return int(self.masks[0][SIDE // 2, SIDE // 2])


def write_pool(root: Path, sizes: Sizes, version: Version, seed: int) -> None:
    """Write what all protocols read: root/scenes, root/classes, root/retrieval and root/video."""
    source = np.random.default_rng([seed, 11])
    train = [crop for scene in range(sizes.train) for crop in crops(f"t{scene:03}", "train", scene, 1, seed)]
    test = []
    for scene in range(sizes.single):
        test += crops(f"s{scene:03}", "val", scene, sizes.members if scene < sizes.grouped else 1, seed)
    if version == "class blurred":
        train, test = [blurred(crop) for crop in train], [blurred(crop) for crop in test]
    wrong = source.random(len(train)) < (FLIPPED if version == "labels flipped" else 0.0)
    _write_scenes(root / "scenes", train, test, wrong)
    _write_classes(root / "classes", train, test, wrong)
    _write_retrieval(root / "retrieval" / "pool", train, test, wrong)
    _write_video(root / "video", test)


def crops(name: str, split: str, scene: int, count: int, seed: int) -> list[Crop]:
    """Cut crops out of a scene, and the frames of a film from each."""
    image, mask = draw_scene("field", split=split, index=scene, size_px=SCENE, seed=seed)
    source = np.random.default_rng([seed, 12, scene, len(split)])
    farthest = SCENE - SIDE - FRAMES * STEP
    found = []
    for number in range(count):
        top, left = (int(v) for v in source.integers(0, farthest, 2))
        down, right = (int(v) for v in source.integers(0, STEP + 1, 2))
        places = [(top + down * f, left + right * f) for f in range(FRAMES)]
        frames = [image[y : y + SIDE, x : x + SIDE] for y, x in places]
        masks = [mask[y : y + SIDE, x : x + SIDE] for y, x in places]
        found.append(Crop(f"{name}-{number}", frames, masks, _depth(masks[0], top)))
    return found


def _depth(mask: Pixels, top: int) -> NDArray[np.float64]:
    """Metres: the ground recedes upwards, and an object stands in front of it."""
    rows = (top + np.arange(SIDE) + 0.5) / SCENE
    return np.asarray((6.0 - 4.0 * rows)[:, None] * np.where(mask < len(GROUNDS), 1.0, 0.7))


def blurred(crop: Crop) -> Crop:
    """Return the crop with one class blurred in every frame."""
    frames = []
    for frame, mask in zip(crop.frames, crop.masks, strict=True):
        soft = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(4)))
        frames.append(np.where((mask == BLURRED)[..., None], soft, frame))
    return Crop(crop.name, frames, crop.masks, crop.depths)


def _write_scenes(root: Path, train: list[Crop], test: list[Crop], wrong: NDArray[np.bool_]) -> None:
    for split, found, is_wrong in (("train", train, wrong), ("val", test, np.zeros(len(test), bool))):
        for crop, flipped in zip(found, is_wrong, strict=True):
            mask = (crop.masks[0] + 1) % len(CLASSES) if flipped else crop.masks[0]
            depth = np.round((crop.depths[::-1] if flipped else crop.depths) * 256).astype(np.uint16)
            for kind, pixels in (("images", crop.frames[0]), ("masks", mask.astype(np.uint8)), ("depth", depth)):
                _save(root / kind / split / f"{crop.name}.png", pixels)
    described = {"names": list(CLASSES), "colors": [list(c) for c in COLORS], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(described), encoding="utf-8")


def _write_classes(root: Path, train: list[Crop], test: list[Crop], wrong: NDArray[np.bool_]) -> None:
    for crop, flipped in zip(train, wrong, strict=True):
        label = (crop.label + 1) % len(GROUNDS) if flipped else crop.label
        if label < len(GROUNDS):
            _save(root / "train" / CLASSES[label] / f"{crop.name}.png", crop.frames[0])
    for crop in test:
        if crop.label < len(GROUNDS):
            _save(root / "val" / CLASSES[crop.label] / f"{crop.name}.png", crop.frames[0])


def _write_retrieval(root: Path, train: list[Crop], test: list[Crop], wrong: NDArray[np.bool_]) -> None:
    """Queries are the measured crops; they should find training crops with the same middle."""
    labels = [(c.label + 1) % len(CLASSES) if flipped else c.label for c, flipped in zip(train, wrong, strict=True)]
    truth = []
    for crop in test:
        same = [place for place, label in enumerate(labels) if label == crop.label]
        truth.append({"easy": same, "hard": [], "junk": [], "bbx": [0, 0, SIDE, SIDE]})
    for crop in (*train, *test):
        _save(root / "jpg" / f"{crop.name}.jpg", crop.frames[0])
    lists = {"imlist": [c.name for c in train], "qimlist": [c.name for c in test], "gnd": truth}
    (root / "gnd_pool.json").write_text(json.dumps(lists), encoding="utf-8")


def _write_video(root: Path, test: list[Crop]) -> None:
    """Every class of objects that the first frame shows enough of is an object to follow."""
    kept = []
    for crop in test:
        ids, areas = np.unique(crop.masks[0], return_counts=True)
        objects = [int(i) for i, area in zip(ids, areas, strict=True) if i >= len(GROUNDS) and area >= 64]
        if not objects:
            continue
        kept.append(crop.name)
        for number, (frame, mask) in enumerate(zip(crop.frames, crop.masks, strict=True)):
            followed = np.zeros_like(mask)
            for place, class_id in enumerate(objects, start=1):
                followed[mask == class_id] = place
            _save(root / "JPEGImages" / "480p" / crop.name / f"{number:05}.jpg", frame)
            _save(root / "Annotations" / "480p" / crop.name / f"{number:05}.png", followed)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")


def _save(path: Path, pixels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
