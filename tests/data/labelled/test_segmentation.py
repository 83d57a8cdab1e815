# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.segmentation import SegmentationFolder, splits


def write(
    root: Path, stem: str, mask: Image.Image | None, size: tuple[int, int] = (4, 3), suffix: str = ".png"
) -> None:
    """An image of (width, height) and its mask in the split 'train'."""
    for kind, picture in (("images", Image.new("RGB", size, (9, 8, 7))), ("masks", mask)):
        if picture is not None:
            path = root / kind / "train" / f"{stem}{suffix if kind == 'images' else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def ids(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint8))


GOOD = ids([0, 1, 1, 255], [0, 0, 0, 0], [1, 1, 1, 1])


def folder(root: Path, **classes: object) -> Path:
    write(root, "a", GOOD)
    (root / "classes.json").write_text(json.dumps({"names": ["sky", "road"], **classes}))
    return root


def test_items_are_read_with_their_ids(tmp_path: Path) -> None:
    write(folder(tmp_path), "deep/b", GOOD, suffix=".bmp")
    data = SegmentationFolder(tmp_path, "train")
    assert data.items == ["a", "deep/b"]
    assert len(data) == 2
    assert (data.names, data.num_classes, data.ignore_index, data.colors) == (["sky", "road"], 2, 255, None)
    image, mask = data.read(1)
    assert image.shape == (3, 3, 4)
    assert image[:, 0, 0].tolist() == [9, 8, 7]
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[0, 1, 1, 255], [0, 0, 0, 0], [1, 1, 1, 1]]
    data.check()


def test_the_value_of_a_palette_mask_is_the_id_not_the_colour(tmp_path: Path) -> None:
    palette = ids([0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]).convert("P")
    palette.putpalette([50, 60, 70, 200, 210, 220])
    write(folder(tmp_path), "a", palette)
    data = SegmentationFolder(tmp_path, "train")
    assert data.read(0)[1][0].tolist() == [0, 1, 1, 1]
    data.check()


def test_splits_are_listed_and_an_unknown_one_is_refused_with_them(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "images" / "val").mkdir()
    assert splits(tmp_path) == ["train", "val"]
    with pytest.raises(RequestError, match="no split 'test'; splits here: train, val"):
        SegmentationFolder(tmp_path, "test")
    with pytest.raises(RequestError, match="the split is empty; put images there"):
        SegmentationFolder(tmp_path, "val")


def test_a_folder_without_the_layout_is_told_the_layout(tmp_path: Path) -> None:
    layout = r"Expected: images/<split>/\*\*, masks/<split>/\*\*\.png"
    with pytest.raises(RequestError, match=f"the folder does not exist.*{layout}"):
        splits(tmp_path / "absent")
    with pytest.raises(RequestError, match=f"no folder 'images'.*{layout}"):
        splits(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(RequestError, match=f"there is no split.*{layout}"):
        splits(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file is missing; it names the classes, for example"),
        ("{", "not readable as JSON"),
        ('{"names": []}', "'names' must be a list of class names"),
        ("[1]", "'names' must be a list of class names"),
        ('{"names": ["a"], "colors": []}', r"one \[r, g, b\] for each of the 1 names"),
        ('{"names": ["a", "b"], "ignore_index": 1}', "no class id .0 to 1 are taken.; use 255"),
    ],
)
def test_a_wrong_classes_file_is_refused_with_an_example_or_the_rule(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = folder(tmp_path) / "classes.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=message) as error:
        SegmentationFolder(tmp_path, "train")
    assert str(path) in str(error.value)


def test_check_names_every_kind_of_fault_with_its_files(tmp_path: Path) -> None:
    folder(tmp_path)
    write(tmp_path, "no_mask", None)
    write(tmp_path, "colour", Image.new("RGB", (4, 3)))
    write(tmp_path, "small", ids([0, 1]))
    write(tmp_path, "wild", ids([0, 7, 9, 1], [0, 0, 0, 0], [0, 0, 0, 0]))
    write(tmp_path, "cut", GOOD)
    (tmp_path / "images" / "train" / "cut.png").write_bytes(b"")
    with pytest.raises(RequestError) as error:
        SegmentationFolder(tmp_path, "train").check()
    text = str(error.value)
    for part in (
        "images without a mask (add it, or remove the image): no_mask (masks/train/no_mask.png)",
        "masks with several channels (save one channel of class ids; or, if they hold the colours of classes, "
        'give "colors" and "palette": true in classes.json): colour (mode RGB)',
        "small (mask 1 x 2, image 3 x 4)",
        "class ids out of range (allowed: 0 to 1 and 255; mend the masks, or the names",
        "in classes.json): wild (ids 7, 9)",
        "unreadable files (replace or remove them): cut",
    ):
        assert part in text


def test_long_lists_of_faulty_files_are_shortened(tmp_path: Path) -> None:
    folder(tmp_path)
    for number in range(8):
        write(tmp_path, f"m{number}", None)
    with pytest.raises(RequestError, match=r"m0 \(\S+\), .*m4 \(masks/train/m4.png\) and 3 more"):
        SegmentationFolder(tmp_path, "train").check()


def test_two_images_of_one_stem_are_refused(tmp_path: Path) -> None:
    write(folder(tmp_path), "a", None, suffix=".bmp")
    with pytest.raises(RequestError, match="have the same stem and thus the same mask; rename one"):
        SegmentationFolder(tmp_path, "train")


def test_reading_a_missing_or_coloured_mask_says_so(tmp_path: Path) -> None:
    write(folder(tmp_path), "b", None)
    write(tmp_path, "c", Image.new("RGB", (4, 3)))
    data = SegmentationFolder(tmp_path, "train")
    with pytest.raises(RequestError, match="the mask is missing; every image needs one"):
        data.read(1)
    with pytest.raises(RequestError, match="one channel of class ids; this one has mode RGB"):
        data.read(2)


RED, BLUE, BLACK = [255, 0, 0], [0, 0, 255], [0, 0, 0]


def colours(*row: list[int]) -> Image.Image:
    return Image.fromarray(np.array([row] * 3, np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colours_become_ids_by_the_palette(tmp_path: Path, mode: str) -> None:
    folder(tmp_path, colors=[RED, BLUE], palette=True, ignored_colors=[BLACK])
    write(tmp_path, "a", colours(RED, BLUE, BLUE, BLACK).convert(mode))
    data = SegmentationFolder(tmp_path, "train")
    data.check()
    assert data.mask(0)[2].tolist() == [0, 1, 1, 255]


def test_a_colour_that_no_class_has_is_named(tmp_path: Path) -> None:
    write(folder(tmp_path, colors=[RED, BLUE], palette=True), "a", colours(RED, BLUE, BLUE, [1, 2, 3]))
    write(tmp_path, "b", GOOD)
    with pytest.raises(RequestError) as error:
        SegmentationFolder(tmp_path, "train").check()
    assert "colours that stand for no class (mend the masks, or the list of classes): a ((1, 2, 3))" in str(error.value)
    assert "masks without colours (save red, green and blue): b (mode L)" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"palette": True}, "'palette' says that masks hold colours; name them in 'colors'"),
        ({"colors": [RED, [0, 0]]}, r"\[0, 0\] is no colour; expected \[r, g, b\]"),
        ({"colors": [RED, [0, 0, 256]]}, r"\[0, 0, 256\] is no colour"),
    ],
)
def test_a_wrong_palette_is_refused(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SegmentationFolder(folder(tmp_path, **content), "train")


def test_images_that_are_ignored_as_a_whole_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = ids(*[[255] * 4] * 3)
    write(folder(tmp_path), "b", blank)
    SegmentationFolder(tmp_path, "train").check()
    assert "every pixel is ignored in 1 of 2 images: b" in caplog.text
    write(tmp_path, "a", blank)
    with pytest.raises(
        RequestError, match="every pixel of every mask is ignored, so nothing can be learnt or measured"
    ):
        SegmentationFolder(tmp_path, "train").check()


def test_a_real_pack_passes_the_check(real_data: Path) -> None:
    data = SegmentationFolder(real_data / "camvid", "val")
    assert splits(real_data / "camvid") == ["clip", "train", "val"]
    assert (len(data), data.num_classes, data.ignore_index) == (124, 11, 255)
    data.check()
    image, mask = data.read(0)
    assert image.shape[1:] == mask.shape
