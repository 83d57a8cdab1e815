# SPDX-License-Identifier: Apache-2.0
"""Objects of both layouts: run lengths, polygons, what overlaps, and what counts for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.data.labelled.coco import polygon_mask, run_length_mask, run_lengths
from rekindle.data.labelled.objects import VOID, CocoObjects, MaskObjects, open_objects
from rekindle.data.labelled.pictures import PictureFolder
from tests.evaluation.toy import write_data, write_item


def rle(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Uncompressed run lengths of a mask, by walking down its columns."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"counts": counts, "size": list(mask.shape)}


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((16, 24), bool)
    mask[top:bottom, left:right] = True
    return mask


def write_coco(root: Path, annotations: list[dict[str, Any]]) -> Path:
    """One image of 16 x 24 with the categories dog (id 18) and cat (id 17)."""
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(root / "val" / "7.png")
    content = {
        "images": [{"id": 7, "file_name": "7.png", "height": 16, "width": 24}],
        "annotations": [{"id": i, "image_id": 7, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def test_run_lengths_go_down_the_columns_from_zero() -> None:
    assert run_length_mask([2, 3, 1], (3, 2)).tolist() == [[False, True], [False, True], [True, False]]
    mask = np.random.default_rng(0).random((9, 13)) < 0.4
    assert np.array_equal(run_length_mask(rle(mask)["counts"], (9, 13)), mask)
    with pytest.raises(ValueError, match="sum to 5, and the image has 3 x 2"):
        run_length_mask([2, 3], (3, 2))


def test_compressed_run_lengths_as_coco_tools_write_them() -> None:
    """The strings are what pycocotools 2.0.11 gives for these masks."""
    first, second = np.zeros((2, 7, 9), bool)
    first[2:5, 3:8] = first[0, 0] = first[6, 5] = True
    second[2:5, 3:8] = second[0, 5] = True
    for text, mask in (("01f02^O000MN12205", first), ("g0340NNO230005", second)):
        assert run_lengths(text) == rle(mask)["counts"]
        assert np.array_equal(run_length_mask(run_lengths(text), (7, 9)), mask)
    with pytest.raises(ValueError, match="ends within a number"):
        run_lengths("01f02^")


def test_run_lengths_equal_those_of_pycocotools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    source = np.random.default_rng(0)
    for _ in range(50):
        mask = source.random(source.integers(1, 60, 2)) < source.random()
        found = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert np.array_equal(run_length_mask(run_lengths(found["counts"].decode()), mask.shape), mask)


def test_polygon_holds_the_pixels_whose_centre_is_inside() -> None:
    size = (12, 15)
    points = [1.2, 2.0, 13.7, 0.6, 9.1, 11.3, 6.0, 5.5]
    corners = np.array(points).reshape(-1, 2)
    expected = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (y0 > y + 0.5) != (y1 > y + 0.5) and x + 0.5 >= x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0):
                    expected[y, x] ^= True
    assert expected.sum() > 30
    assert np.array_equal(polygon_mask(points, size), expected)
    assert np.array_equal(polygon_mask([3, 2, 8, 2, 8, 6, 3, 6], size), np.pad(np.ones((4, 5), bool), ((2, 6), (3, 7))))
    assert polygon_mask([-5, -5, 40, -5, 40, 40, -5, 40], size).all()


def test_coco_objects_overlap_and_crowds_are_void(tmp_path: Path) -> None:
    cat, other, dog, crowd = box(0, 0, 8, 8), box(0, 12, 4, 16), box(2, 2, 4, 4), box(0, 6, 16, 10)
    annotations = [
        {"category_id": 18, "segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]]},
        {"category_id": 17, "segmentation": rle(cat)},
        {"category_id": 17, "segmentation": rle(other), "iscrowd": 0},
        {"category_id": 17, "segmentation": rle(crowd), "iscrowd": 1},
    ]
    data = open_objects(write_coco(tmp_path, annotations), "val")
    assert isinstance(data, CocoObjects)
    data.check()
    assert data.names == ["background", "cat", "dog"]
    assert data.items == ["7"]
    assert data.image(0).shape == (3, 16, 24)
    whole = data.objects(0, "category")
    assert whole.class_ids == [1, 2]
    assert np.array_equal(whole.masks.numpy(), np.stack([cat | other, dog]))
    assert np.array_equal(whole.void.numpy(), crowd & ~cat)
    assert data.objects(0, "instance").class_ids == [2, 1, 1]
    ids = data.class_map(0).numpy()
    assert (ids[dog] == 2).all() and (ids[cat & ~dog] == 1).all() and (ids[crowd & ~cat] == VOID).all()
    assert (ids[~(cat | other | crowd)] == 0).all()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 5, "segmentation": []}, "annotation 0 of 7 cannot be read"),
        ({"category_id": 17, "segmentation": {"counts": [5], "size": [16, 24]}}, "run lengths sum to 5"),
        ({"category_id": 17, "segmentation": {"counts": [5], "size": [24, 16]}}, r"run lengths of \[24, 16\]"),
    ],
)
def test_annotations_that_cannot_be_read_are_named(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    data = open_objects(write_coco(tmp_path, [annotation]), "val")
    with pytest.raises(RequestError, match=message):
        data.class_map(0)


def test_coco_images_are_checked(tmp_path: Path) -> None:
    data = open_objects(write_coco(tmp_path, []), "val")
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(tmp_path / "val" / "7.png")
    with pytest.raises(RequestError, match=r"another size than annotated.*16 x 20, not 16 x 24"):
        data.check()
    (tmp_path / "val" / "7.png").unlink()
    with pytest.raises(RequestError, match="images that are not in"):
        data.check()
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(RequestError, match="images, annotations or categories are missing"):
        open_objects(tmp_path, "val")
    with pytest.raises(RequestError, match=r"neither classes.json nor annotations/instances_test.json"):
        open_objects(tmp_path, "test")


def test_instances_of_masks_are_connected_components(tmp_path: Path) -> None:
    root = write_data(tmp_path, num_test=0)
    mask = np.zeros((16, 48), np.uint8)
    mask[0:4, 0:4] = mask[8:12, 8:12] = 1
    mask[:, 40:] = 255
    write_item(root, "val", "a", mask)
    data = open_objects(root, "val")
    assert isinstance(data, MaskObjects)
    data.check()
    single, whole = data.objects(0, "instance"), data.objects(0, "category")
    assert single.class_ids == [0, 1, 1] and whole.class_ids == [0, 1]
    assert torch.equal(single.masks[1] | single.masks[2], whole.masks[1])
    assert [int(m.sum()) for m in single.masks] == [640 - 32, 16, 16]
    assert int(whole.void.sum()) == 128 and (data.class_map(0)[:, 40:] == VOID).all()


def test_pictures_of_either_layout(tmp_path: Path) -> None:
    root = write_data(tmp_path / "labelled")
    assert PictureFolder(root, "val").items == ["val0", "val1", "val2"]
    plain = PictureFolder(root / "images", "val")
    plain.check()
    assert len(plain) == 3 and plain.image(0).shape == (3, 16, 48)
    (root / "images" / "val" / "val1.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"unreadable files.*val1"):
        plain.check()
    with pytest.raises(RequestError, match="no folder 'photos' of images"):
        PictureFolder(root, "photos")
    (root / "empty").mkdir()
    with pytest.raises(RequestError, match="there is no image in it"):
        PictureFolder(root, "empty")
