# SPDX-License-Identifier: Apache-2.0
"""Known data sets by name: each in a miniature of its publisher's layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rekindle.core.errors import RequestError
from rekindle.data import KINDS
from rekindle.data.published.class_lists import class_names, coco_categories
from rekindle.data.published.named import DATASETS, named_root, open_data
from tests.data.published.made import WRITERS, put_mask, put_text, written

IGNORED = 255
# name -> split, items, the first row of the first mask as ids, some class names by id
SEGMENTATION: dict[str, tuple[str, list[str], list[int], dict[int, str]]] = {
    "ade20k": ("val", ["ADE_val_00000001"], [IGNORED, 0, 149, 149, 149, 149], {0: "wall", 149: "flag"}),
    "cityscapes": (
        "train",
        ["bonn/bonn_000000_000019"],
        [IGNORED, 0, 18, IGNORED, IGNORED, IGNORED],
        {0: "road", 18: "bicycle"},
    ),
    "idd": (
        "val",
        ["201/frame0029"],
        [0, 25, 255, 255, 255, 255],
        {3: "non-drivable fallback", 18: "traffic sign", 25: "sky"},
    ),
    "kitti": ("val", ["000004_10", "000009_10"], [IGNORED, 0, 18, IGNORED, IGNORED, IGNORED], {13: "car"}),
    "loveda": ("val", ["Rural/0", "Urban/1366"], [IGNORED, 0, 6, 6, 6, 6], {0: "background", 6: "agriculture"}),
    "coco-stuff": (
        "val",
        ["000000000139"],
        [0, 79, 80, 170, IGNORED, IGNORED],
        {0: "person", 79: "toothbrush", 170: "wood"},
    ),
    "coco-things": ("val", ["000000000139"], [1, 80, 0, 0, IGNORED, IGNORED], {0: "background", 80: "toothbrush"}),
    "bdd100k": ("val", ["a1-b2"], [0, 18, 255, 255, 255, 255], {18: "bicycle"}),
    "camvid": ("test", ["0001TP_006690"], [0, 10, IGNORED, IGNORED, IGNORED, IGNORED], {10: "bicyclist"}),
    "sun-rgbd": ("test", ["img-000001", "img-000002"], [IGNORED, 10, 36, 36, 36, 36], {0: "wall", 36: "bag"}),
    "potsdam": (
        "test",
        "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split(),
        [0, 1, 5] + [IGNORED] * 3,
        {4: "car"},
    ),
    "vaihingen": (
        "train",
        [f"area{i}" for i in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)],
        [0, 1, 5] + [IGNORED] * 3,
        {5: "clutter"},
    ),
    "suim": ("test", ["d_r_1_"], [0, 1, 7, 7, 7, 7], {1: "human diver", 7: "sea-floor"}),
    "imagenet-s": (
        "val",
        ["n01440764/n01440764_9", "n02123045/n02123045_9", "n15075141/n15075141_9"],
        [0, 1, 1000, 1000, 1000, 1000],
        {0: "other", 3: "n15075141"},
    ),
    "voc2012": (
        "trainval",
        ["2007_000032", "2007_000033"],
        [0, 20, 255, 255, 255, 255],
        {0: "background", 20: "tvmonitor"},
    ),
    "pascal-context": ("val", ["2008_000003"], [0, IGNORED, 58, 20, 20, 20], {0: "aeroplane", 20: "bag", 58: "wood"}),
    "pascal-context-60": ("val", ["2008_000003"], [1, 0, 59, 21, 21, 21], {0: "background", 59: "wood"}),
}
# name -> split, items, class name of each
CLASSIFICATION: dict[str, tuple[str, list[str], list[str]]] = {
    "imagenet": ("val", ["n01440764/n01440764_1", "n02123045/n02123045_1"], ["n01440764", "n02123045"]),
    "imagenet100": ("train", [f"{n}/{n}_1" for n in class_names("imagenet100")], class_names("imagenet100")),
    "imagenet21k": ("all", ["n00004475/n00004475_7", "n00006024/n00006024_7"], ["n00004475", "n00006024"]),
    "miniimagenet": (
        "test",
        ["n0193011200000001", "n0193011200000002", "n0211006300000001", "n0211006300000002"],
        ["n01930112", "n01930112", "n02110063", "n02110063"],
    ),
    "cifar10": (
        "train",
        [f"img_{10 * i + k}" for i in range(1, 6) for k in (0, 1)],
        ["automobile", "truck", "bird", "truck", "cat", "truck", "deer", "truck", "dog", "truck"],
    ),
    "cifar100": ("train", ["img_0", "img_1"], ["class99", "class0"]),
    "pets": (
        "test",
        ["Abyssinian_201", "american_bulldog_201", "yorkshire_terrier_201"],
        ["Abyssinian", "american_bulldog", "yorkshire_terrier"],
    ),
    "flowers102": (
        "test",
        ["image_00002", "image_00006", "image_00005"],
        ["pink primrose", "hard-leaved pocket orchid", "english marigold"],
    ),
    "cars": ("train", ["00001", "00002"], ["smart fortwo Convertible 2012", "AM General Hummer SUV 2000"]),
    "derm7pt": ("train", ["NEL/Nel026", "Aal/Aal002"], ["basal cell carcinoma", "miscellaneous"]),
    "covidx": ("train", ["a", "SARS 10 b"], ["positive", "negative"]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_split_opens_and_passes_its_check(name: str, tmp_path: Path) -> None:
    data = written(name, tmp_path)
    for split in DATASETS[name].splits:
        opened = open_data(DATASETS[name].kind, data, split)
        assert opened.items
        opened.check()
    with pytest.raises(
        RequestError, match=f"{name} has no split 'nowhere'; its splits: {next(iter(DATASETS[name].splits))}"
    ):
        open_data(DATASETS[name].kind, data, "nowhere")
    with pytest.raises(RequestError, match=f"the folder does not exist\\. Expected of {name}"):
        open_data(DATASETS[name].kind, f"{name}:{tmp_path / 'absent'}", next(iter(DATASETS[name].splits)))


def test_the_tables_of_tests_cover_every_data_set() -> None:
    assert set(WRITERS) == set(DATASETS)
    assert set(SEGMENTATION) == {name for name, d in DATASETS.items() if d.kind == "segmentation"}
    assert set(CLASSIFICATION) == {name for name, d in DATASETS.items() if d.kind == "classification"}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_masks_become_class_ids_by_the_publishers_rules(name: str, tmp_path: Path) -> None:
    split, items, row, names = SEGMENTATION[name]
    data = open_data("segmentation", written(name, tmp_path), split)
    assert data.items == items
    image, mask = data.read(0)
    assert image.shape == (3, 4, 6)
    assert mask.tolist() == [row] * 4
    assert {i: data.names[i] for i in names} == names
    assert data.ignore_index == (1000 if name == "imagenet-s" else IGNORED)
    assert DATASETS[name].classes in (None, data.num_classes)
    assert len(set(data.names)) == data.num_classes


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_images_get_the_publishers_classes(name: str, tmp_path: Path) -> None:
    split, items, classes = CLASSIFICATION[name]
    data = open_data("classification", written(name, tmp_path), split)
    assert data.items == items
    assert [data.names[label] for label in data.labels.tolist()] == classes
    assert data.image(1).shape == ((3, 32, 32) if name.startswith("cifar") else (3, 4, 6))


def test_splits_hold_what_the_publisher_put_there(tmp_path: Path) -> None:
    voc = written("voc2012", tmp_path / "voc")
    assert open_data("segmentation", voc, "train_aug").items == ["2008_000002"]
    assert open_data("segmentation", voc, "val").items == ["2007_000033"]
    kitti = written("kitti", tmp_path / "kitti")
    whole, train, val = (open_data("segmentation", kitti, split).items for split in ("all", "train", "val"))
    assert sorted(train + val) == whole and len(whole) == 10 and len(train) == 8
    rooms = open_data("segmentation", written("sun-rgbd", tmp_path / "sun"), "train")
    assert [rooms.mask_path(i).stem for i in range(2)] == ["img-005051", "img-005052"]
    flowers = written("flowers102", tmp_path / "flowers")
    assert [open_data("classification", flowers, s).labels.tolist() for s in ("train", "val")] == [[101, 4], [76]]
    derm = written("derm7pt", tmp_path / "derm")
    assert [open_data("classification", derm, s).labels.tolist() for s in ("val", "test")] == [[1], [2]]


def test_the_classes_of_all_lists_count_where_a_split_shows_fewer(tmp_path: Path) -> None:
    data = open_data("classification", written("covidx", tmp_path), "val")
    assert (data.names, data.labels.tolist()) == (["negative", "positive"], [1])


def test_cifar_pixels_are_planes_of_red_green_and_blue(tmp_path: Path) -> None:
    image = open_data("classification", written("cifar10", tmp_path), "test").image(0)
    assert [image[channel].unique().tolist() for channel in range(3)] == [[60], [110], [160]]


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    data = written("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RequestError, match=r"test_batch cannot be read: it names os\.system"):
        open_data("classification", data, "test")


def test_other_kinds_are_served_where_they_make_sense(tmp_path: Path) -> None:
    loveda = written("loveda", tmp_path / "loveda")
    objects = open_data("objects", loveda, "val")
    assert objects.objects(0, "category").class_ids == [0, 6]
    assert open_data("images", loveda, "val").image(0).shape == (3, 4, 6)
    things = open_data("objects", written("coco", tmp_path / "coco"), "val")
    assert (things.names, things.objects(0, "instance").class_ids) == (["background", "person", "toothbrush"], [2])
    video = open_data("video", written("davis2017", tmp_path / "davis"), "val")
    assert (video.items, len(video.frames(0))) == (["bike-packing"], 3)
    places = open_data("retrieval", written("roxford5k", tmp_path / "places"), "test")
    assert (places.items, places.truth[0].hard) == (["all_souls_000013"], (1,))
    with pytest.raises(RequestError, match="loveda is segmentation data and cannot be read as classification"):
        open_data("classification", loveda, "val")


def test_only_a_known_name_is_taken_for_one(tmp_path: Path) -> None:
    assert named_root("loveda:/data/LoveDA") == ("loveda", "/data/LoveDA")
    assert named_root("loveda:C:\\LoveDA") == ("loveda", "C:\\LoveDA")
    assert named_root("/data/loveda") is None
    assert named_root("C:\\data") is None
    assert named_root("./runs:old/data") is None
    with pytest.raises(RequestError, match="unknown data set 'lovda'; did you mean 'loveda'"):
        named_root("lovda:/data")
    with pytest.raises(RequestError, match="say where it lies, as loveda:/data/loveda"):
        named_root("loveda:")


def test_a_folder_that_is_there_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loveda:x").mkdir()
    assert named_root("loveda:x") is None


def test_what_is_missing_is_listed_with_its_place(tmp_path: Path) -> None:
    data = written("loveda", tmp_path / "a")
    (tmp_path / "a/Val/Urban/masks_png/1366.png").unlink()
    with pytest.raises(
        RequestError, match=r"Urban/1366 \(Val/Urban/masks_png/1366.png\)(.|\n)*Expected of loveda: \{Train,Val\}"
    ):
        open_data("segmentation", data, "val").check()
    with pytest.raises(RequestError, match="images_png: the folder does not exist"):
        (tmp_path / "b").mkdir()
        open_data("segmentation", f"loveda:{tmp_path / 'b'}", "val")
    voc = written("voc2012", tmp_path / "voc")
    (tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(RequestError, match=r"val\.txt: the list of the split is missing"):
        open_data("segmentation", voc, "val")
    context = written("pascal-context", tmp_path / "context")
    put_text(tmp_path / "context/VOCdevkit/VOC2010/labels.txt", "1: bag")
    with pytest.raises(RequestError, match="it does not name aeroplane, bicycle"):
        open_data("segmentation", context, "val")


def test_values_without_a_class_are_told_as_stored(tmp_path: Path) -> None:
    loveda = written("loveda", tmp_path / "loveda")
    put_mask(tmp_path / "loveda/Val/Rural/masks_png/0.png", [1, 8, 200])
    data = open_data("segmentation", loveda, "val")
    with pytest.raises(RequestError, match=r"values that stand for no class.*Rural/0 \(8, 200\)"):
        data.check()
    with pytest.raises(RequestError, match="neither a class nor ignored"):
        data.mask(0)
    potsdam = written("potsdam", tmp_path / "potsdam")
    put_mask(tmp_path / "potsdam/5_Labels_all/top_potsdam_7_13_label.tif", [(255, 255, 255), (252, 255, 0)])
    with pytest.raises(RequestError, match=r"colours that stand for no class.*7_13 \(\(252, 255, 0\)\)"):
        open_data("segmentation", potsdam, "test").check()


def test_converted_editions_are_read_as_well(tmp_path: Path) -> None:
    context = written("pascal-context", tmp_path / "context")
    put_mask(tmp_path / "context/VOCdevkit/VOC2010/SegmentationClassContext/2008_000003.png", [0, 1, 59])
    row = open_data("segmentation", context, "val").mask(0)[0].tolist()
    assert row == [IGNORED, 0, 58, 58, 58, 58]
    sixty = open_data("segmentation", context.replace("context:", "context-60:"), "val").mask(0)[0].tolist()
    assert sixty == [0, 1, 59, 59, 59, 59]
    written("bdd100k", tmp_path / "bdd")
    (tmp_path / "bdd/bdd100k/seg/images").mkdir(parents=True)
    (tmp_path / "bdd/bdd100k/images/10k/val").rename(tmp_path / "bdd/bdd100k/seg/images/val")
    put_mask(tmp_path / "bdd/bdd100k/seg/labels/val/a1-b2_train_id.png", [3])
    assert open_data("segmentation", f"bdd100k:{tmp_path / 'bdd'}", "val").mask(0).unique().tolist() == [3]


def test_class_lists_are_complete() -> None:
    things = [number for number in coco_categories() if number <= 90]
    assert (len(things), len(coco_categories())) == (80, 171)
    lengths = {
        "imagenet100": 100,
        "ade20k": 150,
        "pascal_context": 59,
        "flowers102": 102,
        "cityscapes": 19,
        "idd": 26,
        "sun_rgbd": 37,
    }
    assert {name: len(set(class_names(name))) for name in lengths} == lengths


def test_the_table_needs_no_torch_and_names_real_kinds() -> None:
    assert all(set(data.kinds) <= set(KINDS) for data in DATASETS.values())
    code = "import sys, rekindle.data.published.named; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documents_name_every_data_set() -> None:
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert [name for name in DATASETS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "pets",
            "annotations/trainval.txt",
            None,
            r"annotations/trainval\.txt: the file is missing\. Expected of pets",
        ),
        ("pets", "annotations/trainval.txt", "Abyssinian_1", "'Abyssinian_1' has fewer than 2 columns"),
        ("pets", "annotations/trainval.txt", "Abyssinian_1 one", "'one' is no whole number"),
        ("pets", "annotations/trainval.txt", "beagle_1 2", "class numbers run from 1 without a gap"),
        ("flowers102", "setid.mat", "text", r"setid\.mat: the variable trnid cannot be read"),
        ("cars", "devkit/cars_train_annos.mat", None, r"cars_train_annos\.mat: the file is missing"),
        (
            "derm7pt",
            "release_v0/meta/train_indexes.csv",
            "indexes\n4",
            r"names a row that meta\.csv does not have \(4 rows",
        ),
        ("derm7pt", "release_v0/meta/meta.csv", "a,b\n1,2", "a table with the columns derm, diagnosis was expected"),
        ("derm7pt", "release_v0/meta/meta.csv", "derm,diagnosis\n" + "x.jpg,wart\n" * 4, "unknown diagnosis 'wart'"),
        ("covidx", "train_2.txt", "", "the split 'train' is empty"),
        ("cifar100", "cifar-100-python/meta", b"\x80\x02}.", "meta: it does not hold fine_label_names"),
    ],
)
def test_a_file_that_is_not_the_publishers_is_named(
    name: str, file: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    data = written(name, tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "covidx":
        (tmp_path / "train.txt").unlink()
    with pytest.raises(RequestError, match=message):
        open_data("classification", data, "train")


def test_two_editions_of_a_list_are_refused(tmp_path: Path) -> None:
    data = written("covidx", tmp_path)
    put_text(tmp_path / "val_COVIDx8B.txt", "4 d.png negative rsna")
    with pytest.raises(
        RequestError, match=r"several lists of 'val' \(val_COVIDx8B\.txt, val_COVIDx9B\.txt\); keep that of one"
    ):
        open_data("classification", data, "val")
