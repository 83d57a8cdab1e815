# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekindle.drawing.confusion import row_shares, write_confusion_picture
from rekindle.drawing.worst_images import (
    UNLABELLED,
    LabelledPicture,
    class_colours,
    write_labelled_pictures,
    wrong_pixels,
)


def test_rows_sum_to_one_or_are_not_defined() -> None:
    shares = row_shares(np.array([[1, 3], [0, 0]]))
    assert shares[0].tolist() == [0.25, 0.75]
    assert np.isnan(shares[1]).all()


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def _grey_pixels(path: Path) -> int:
    return int((_pixels(path) == 217).all(axis=-1).sum())


@pytest.mark.parametrize("count", [1, 30])
def test_what_nothing_holds_is_left_out_and_rows_without_a_label_are_grey(tmp_path: Path, count: int) -> None:
    matrix = np.diag(np.arange(1, count + 2))
    names = [f"class {i}" for i in range(count + 1)]
    write_confusion_picture(tmp_path / "all.png", matrix, names)
    write_confusion_picture(tmp_path / "wider.png", np.pad(matrix, (0, 40)), names + ["absent"] * 40)
    sizes = [_pixels(tmp_path / f"{name}.png").shape for name in ("all", "wider")]
    assert sizes[0] == sizes[1]
    assert _grey_pixels(tmp_path / "all.png") < 100  # a few at the edges of letters
    matrix[0] = 0
    matrix[1, 0] = 1
    write_confusion_picture(tmp_path / "empty_row.png", matrix, names)
    assert _grey_pixels(tmp_path / "empty_row.png") > 1000


def test_errors_are_labelled_pixels_of_another_class() -> None:
    label, prediction = np.array([[0, 1, 255]]), np.array([[0, 0, 0]])
    assert wrong_pixels(label, prediction, 255).tolist() == [[False, True, False]]


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len(set(class_colours(150))) == 150


def test_pictures_have_four_panels_and_unlabelled_pixels_are_grey(tmp_path: Path) -> None:
    label = np.zeros((100, 200), np.int64)
    label[:50, :100] = 255
    picture = LabelledPicture("a", np.full((100, 200, 3), 200, np.uint8), label, np.zeros_like(label))
    for stem, chosen in (("labelled", 0), ("partly", 255)):
        one = LabelledPicture("a", picture.image, np.where(label == 255, chosen, label), picture.prediction)
        write_labelled_pictures(tmp_path / f"{stem}.png", [one], ["ground"], ignore_index=255, colors=[[255, 0, 0]])
    assert _pixels(tmp_path / "partly.png").shape[1] == 4 * 200 + 5 * 6
    grey = [int((_pixels(tmp_path / f"{s}.png") == UNLABELLED).all(axis=-1).sum()) for s in ("labelled", "partly")]
    assert grey[1] - grey[0] == 3 * 50 * 100
