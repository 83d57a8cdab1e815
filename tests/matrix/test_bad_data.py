# SPDX-License-Identifier: Apache-2.0
"""Labelled data that cannot be used are found before anything is trained or measured, and the files are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rekindle
from rekindle.cli import main
from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import check_same_classes
from rekindle.data.labelled.segmentation import Listing, Pair, SegmentationFolder
from rekindle.matrix.run import compare_grid
from tests.evaluation.toy import NAMES, save_tiny, write_data
from tests.matrix.making import tree


def _save(root: Path, split: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(root / "masks" / split / f"{split}0.png")


def _out_of_range(root: Path, split: str) -> None:
    _save(root, split, np.full((16, 48), 7, np.uint8))


def _coloured(root: Path, split: str) -> None:
    _save(root, split, np.zeros((16, 48, 3), np.uint8))


def _smaller(root: Path, split: str) -> None:
    _save(root, split, np.zeros((8, 24), np.uint8))


def _missing(root: Path, split: str) -> None:
    (root / "masks" / split / f"{split}0.png").unlink()


def _empty(root: Path, split: str) -> None:
    for path in (root / "images" / split).iterdir():
        path.unlink()


def _all_ignored(root: Path, split: str) -> None:
    for path in (root / "masks" / split).iterdir():
        Image.fromarray(np.full((16, 48), 255, np.uint8)).save(path)


FAULTS: dict[str, tuple[Callable[[Path, str], None], list[str]]] = {
    "ids beyond the class list": (_out_of_range, ["class ids out of range (allowed: 0 to 2 and 255", "{item} (ids 7)"]),
    "colours": (_coloured, ['give "colors" and "palette": true in classes.json', "{item} (mode RGB)"]),
    "another size": (_smaller, ["masks of another size than their image", "{item} (mask 8 x 24, image 16 x 48)"]),
    "no mask": (_missing, ["images without a mask", "{item} (masks/{split}/{item}.png)"]),
    "an empty split": (_empty, ["images/{split}: the split is empty"]),
    "nothing labelled": (_all_ignored, ["split '{split}': every pixel of every mask is ignored"]),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_matrix_does_not_start(tmp_path: Path, fault: str, split: str) -> None:
    asked = tree(tmp_path)
    spoil, told = FAULTS[fault]
    spoil(tmp_path / "data", split)
    with pytest.raises(RequestError) as error:
        compare_grid(asked)
    for part in told:
        assert part.format(split=split, item=f"{split}0") in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_comparison_names_the_files_before_any_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = write_data(tmp_path / "data"), save_tiny(tmp_path / "base")
    _out_of_range(data, "train")
    (model / "model.safetensors").write_bytes(b"never read")
    assert main(["compare", str(model), str(model), "--data", str(data), "--out", str(tmp_path / "o")]) == 2
    assert "train0 (ids 7)" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_splits_with_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    """Our own layout has one list for all splits; the lists of published data may differ."""
    write_data(tmp_path)

    def listed(root: Path, split: str) -> Listing:
        names = NAMES if split == "train" else [*NAMES[:2], "purple"]
        image = root / "images" / split / f"{split}0.png"
        return Listing(names, [Pair("a", image, root / "masks" / split / f"{split}0.png")], "layout")

    folders = [SegmentationFolder(tmp_path, split, listed) for split in ("train", "val")]
    with pytest.raises(RequestError, match="only in 'train': blue; only in 'val': purple"):
        check_same_classes(*folders)


def test_data_that_are_fine_are_measured(tmp_path: Path) -> None:
    data, model = write_data(tmp_path / "data"), save_tiny(tmp_path / "base")
    found = rekindle.compare(
        model, [model], data, out=str(tmp_path / "o"), protocol=["dense-retrieval"], seeds=1, resamples=100,
        worst_images=0, dense_retrieval={"size_px": 32},
    )  # fmt: skip
    assert found.overall[0].overall.verdict == "cannot judge"  # of four images
