# SPDX-License-Identifier: Apache-2.0
"""Known data sets where they are used: under protocols, in the data doctor, and in the list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.data.published.named import DATASETS
from rekindle.measuring.measurement import LabelledData
from tests.data.published.made import put_image, put_mask, written


def test_protocols_are_given_the_splits_of_a_named_set(tmp_path: Path) -> None:
    data = LabelledData(written("loveda", tmp_path), "train", "val", ["linear-seg", "clustering", "variance"])
    assert data.test("linear-seg").items == ["Rural/0", "Urban/1366"]
    train = data.train("linear-seg")
    assert train is not None and len(train.items) == 2
    assert data.test("clustering").items == data.test("variance").items == data.test("linear-seg").items


def test_labels_of_another_kind_are_refused_with_the_protocols_that_fit(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        LabelledData(written("pets", tmp_path), "train", "test", ["linear-seg"])
    assert "pets is classification data, and the protocol reads segmentation; protocols for it: " in str(error.value)
    assert "knn" in str(error.value) and "fpn" not in str(error.value)


def test_splits_with_other_classes_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    data = written("imagenet", tmp_path)
    put_image(tmp_path / "ILSVRC/Data/CLS-LOC/train/n09999999/a.JPEG")
    with pytest.raises(RequestError, match=r"'train' and 'val' have not the same classes \(only in 'train': n09999999"):
        LabelledData(data, "train", "val", ["knn"])


def test_a_class_of_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    hundred, whole = written("imagenet100", tmp_path / "a"), written("imagenet21k", tmp_path / "b")
    (tmp_path / "a/val/n01558993").rename(tmp_path / "a/val/robin")
    with pytest.raises(RequestError, match=r"a/val: no folder n01558993\. Expected of imagenet100: as imagenet"):
        LabelledData(hundred, "train", "val", ["knn"])
    (tmp_path / "b/imagenet21k_val/n00004475/n00004475_7.JPEG").unlink()
    with pytest.raises(
        RequestError, match=r"imagenet21k_val/n00004475: there is no image in it\. Expected of imagenet21k"
    ):
        LabelledData(whole, "train", "val", ["knn"])
    few = written("miniimagenet", tmp_path / "c")
    assert LabelledData(few, "train", "test", ["one-shot"]).test("one-shot").items[0] == "n0193011200000001"
    (tmp_path / "c/test.csv").write_text("file,class\na.jpg,n01930112\n")
    with pytest.raises(RequestError, match=r"test\.csv: a table with the columns filename, label was expected"):
        LabelledData(few, "train", "test", ["one-shot"])


def test_the_doctor_reads_a_named_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written("loveda", tmp_path)
    assert main(["check", "--data", data, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(source["name"], source["images"]) for source in report["sources"]] == [("data/train", 2), ("data/val", 2)]
    assert report["leaks"] and not report["faults"] and not report["absent"]
    put_mask(tmp_path / "Val/Rural/masks_png/0.png", [9])
    (tmp_path / "Train").rename(tmp_path / "Elsewhere")
    assert main(["check", "--data", data]) == 1
    shown = capsys.readouterr().out
    assert "values that stand for no class" in shown and "Rural/0 (9)" in shown
    assert "not read: " in shown and "Train/Rural/images_png: the folder does not exist" in shown


def test_the_doctor_refuses_what_it_cannot_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", written("davis2017", tmp_path / "davis")]) == 2
    assert "check reads segmentation and classification data, and davis2017 is video data" in capsys.readouterr().err
    assert main(["check", "--data", f"loveda:{tmp_path / 'absent'}"]) == 2
    assert "the folder does not exist. Expected of loveda" in capsys.readouterr().err


def test_arrays_have_labels_but_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", written("cifar10", tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "mosaic.png").exists()
    capsys.readouterr()


def test_the_list_tells_layout_and_terms_of_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    shown = capsys.readouterr().out
    assert all(
        f"{name}:ROOT" in shown and data.layout in shown and data.terms in shown for name, data in DATASETS.items()
    )
