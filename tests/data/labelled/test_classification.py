# SPDX-License-Identifier: Apache-2.0
"""Images with one class each."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder, check_same_classes, splits
from tests.evaluation.pictures import COLOURS, write_classes


def test_classes_are_numbered_by_their_sorted_names(tmp_path: Path) -> None:
    data = ClassFolder(write_classes(tmp_path, num_train=2), "train")
    assert data.names == sorted(COLOURS)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.items[:3] == ["amber/amber0", "amber/amber1", "blue/blue0"]
    red, _, blue = data.image(2).float().mean(dim=(1, 2)).tolist()
    assert abs(red - 20) < 4 and abs(blue - 220) < 4
    data.check()


def test_images_lie_at_any_depth_and_hidden_files_do_not_count(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_train=1, classes=["amber", "blue"])
    deep = root / "train" / "amber" / "deep"
    deep.mkdir()
    (root / "train" / "amber" / "amber0.png").rename(deep / "a.png")
    (root / "train" / "blue" / ".hidden.png").write_bytes(b"x")
    (root / "train" / "blue" / "notes.txt").write_text("x")
    assert ClassFolder(root, "train").items == ["amber/deep/a", "blue/blue0"]


@pytest.mark.parametrize("column", ["class", "label"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_a_table_says_the_same_as_folders(tmp_path: Path, column: str, below: str) -> None:
    root = write_classes(tmp_path, num_train=2, classes=["blue", "amber"])
    expected = ClassFolder(root, "train")
    table = "\n".join([f"filename,{column}", *(f"train/{i}.png,{i.split('/')[0]}" for i in reversed(expected.items))])
    (root / "listed.csv").write_text(table)
    if below:
        (root / "images").mkdir()
        (root / "train").rename(root / "images" / "train")
    listed = ClassFolder(root, "listed")
    assert listed.names == ["amber", "blue"]
    assert listed.items == [f"train/{i}" for i in expected.items]
    assert listed.labels.tolist() == [0, 0, 1, 1]
    listed.check()


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_train=2)
    for name in ("amber/amber1", "dark/dark0"):
        (root / "train" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"unreadable files .*amber/amber1 .*dark/dark0"):
        ClassFolder(root, "train").check()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    with pytest.raises(RequestError, match=r"no split 'test'; splits here: train, val\. Expected: <split>/<class>"):
        ClassFolder(root, "test")
    (root / "train" / "empty").mkdir()
    with pytest.raises(RequestError, match=r"empty: the class has no image"):
        ClassFolder(root, "train")
    (root / "none").mkdir()
    with pytest.raises(RequestError, match="there is no class in this split"):
        ClassFolder(root, "none")
    assert splits(root / "nowhere") == []


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path, num_train=1)
    (root / "train" / "blue" / "blue0.bmp").write_bytes(b"x")
    with pytest.raises(RequestError, match="two images are called 'blue/blue0'"):
        ClassFolder(root, "train")


@pytest.mark.parametrize("text", ["", "file,kind\na.png,x\n", "file,class\n"])
def test_a_table_without_its_columns_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RequestError, match=r"t\.csv: a table of images needs rows with the columns file and class"):
        ClassFolder(tmp_path, "t")


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    (root / "val" / "amber").rename(root / "val" / "azure")
    train, test = ClassFolder(root, "train"), ClassFolder(root, "val")
    with pytest.raises(RequestError, match=r"only in 'train': amber; only in 'val': azure"):
        check_same_classes(train, test)
    check_same_classes(train, train)
