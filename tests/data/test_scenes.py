# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes: valid, repeatable, the same classes in both domains, and not to be told apart by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.data.scenes import CLASSES, COLORS, DOMAINS, draw_scene, write_scenes


@pytest.mark.parametrize("domain", DOMAINS)
def test_written_scenes_pass_the_check_of_segmentation_folders(domain: str, tmp_path: Path) -> None:
    write_scenes(tmp_path, domain, {"train": 3, "val": 2}, size_px=48)
    for split, count in (("train", 3), ("val", 2)):
        folder = SegmentationFolder(tmp_path, split)
        folder.check()
        assert len(folder) == count and folder.names == list(CLASSES) and folder.colors == [list(c) for c in COLORS]
        image, mask = folder.read(0)
        assert image.shape == (3, 48, 48) and mask.shape == (48, 48)


def test_without_masks_only_images_are_written(tmp_path: Path) -> None:
    write_scenes(tmp_path, "field", {"all": 2}, size_px=32, with_masks=False)
    assert sorted(p.suffix for p in tmp_path.rglob("*.*")) == [".jpg", ".jpg"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_appears_in_both_domains(domain: str) -> None:
    masks = np.stack([draw_scene(domain, index=i, size_px=48)[1] for i in range(40)])
    share = np.bincount(masks.ravel(), minlength=len(CLASSES)) / masks.size
    assert len(share) == len(CLASSES) and share.min() > 0.01


def test_a_scene_depends_on_seed_domain_split_and_number_alone() -> None:
    image, mask = draw_scene("field", split="val", index=3, size_px=48, seed=5)
    again, mask_again = draw_scene("field", split="val", index=3, size_px=48, seed=5)
    assert (image == again).all() and (mask == mask_again).all()
    others = [
        draw_scene("studio", split="val", index=3, size_px=48, seed=5)[0],
        draw_scene("field", split="train", index=3, size_px=48, seed=5)[0],
        draw_scene("field", split="val", index=4, size_px=48, seed=5)[0],
        draw_scene("field", split="val", index=3, size_px=48, seed=6)[0],
    ]
    assert all((image != other).any() for other in others)


@pytest.mark.parametrize("domain", DOMAINS)
def test_colour_alone_does_not_give_the_class(domain: str) -> None:
    """A forest on a pixel's colour stays near the share of the largest class, on scenes it has not seen."""
    colours, classes = _pixels(domain, range(30))
    new_colours, new_classes = _pixels(domain, range(30, 45))
    forest = RandomForestClassifier(n_estimators=20, min_samples_leaf=20, random_state=0, n_jobs=1)
    accuracy = forest.fit(colours, classes).score(new_colours, new_classes)
    largest = np.bincount(new_classes).max() / len(new_classes)
    assert accuracy < largest + 0.1 < 0.6


def test_the_domains_differ_in_contrast_and_saturation() -> None:
    def saturation(domain: str) -> float:
        pictures = np.stack([draw_scene(domain, index=i, size_px=48)[0] for i in range(10)]).astype(float)
        return float((pictures.max(axis=-1) - pictures.min(axis=-1)).mean())

    assert saturation("field") < 0.6 * saturation("studio")


def test_unknown_domains_and_empty_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'studio'"):
        write_scenes(tmp_path, "studios", {"train": 1})
    with pytest.raises(RequestError, match="one image a split"):
        write_scenes(tmp_path, "studio", {"train": 0})
    assert not list(tmp_path.iterdir())


def _pixels(domain: str, indices: range) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    drawn = [draw_scene(domain, index=i, size_px=48) for i in indices]
    colours = np.concatenate([image[::2, ::2].reshape(-1, 3) for image, _ in drawn])
    return colours, np.concatenate([mask[::2, ::2].ravel() for _, mask in drawn])
