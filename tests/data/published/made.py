# SPDX-License-Identifier: Apache-2.0
"""Miniatures of published data sets, written in their publishers' layouts."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from PIL import Image
from scipy.io import savemat

from rekindle.data.published.class_lists import class_names
from rekindle.data.published.named import DATASETS

SIZE = (6, 4)  # width, height


def put_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    """A grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 91, 92)).save(path)


def put_mask(path: Path, values: Sequence[object], *, palette: bool = False) -> None:
    """A mask of the first row's values (numbers or colours), filled up with the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.array([*values, *[values[-1]] * (SIZE[0] - len(values))], np.uint8)
    picture = Image.fromarray(np.repeat(row[None], SIZE[1], axis=0))
    if palette:
        picture = picture.convert("P")
        picture.putpalette([200, 10, 30] * 256)
    picture.save(path)


def put_text(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def put_pair(image: Path, mask: Path, values: Sequence[object], *, palette: bool = False) -> None:
    """An image and its mask."""
    put_image(image)
    put_mask(mask, values, palette=palette)


def ade20k(root: Path) -> None:
    for part, split in (("training", "train"), ("validation", "val")):
        stem = f"ADE_{split}_00000001"
        base = root / "ADEChallengeData2016"
        put_pair(base / f"images/{part}/{stem}.jpg", base / f"annotations/{part}/{stem}.png", [0, 1, 150])


def cityscapes(root: Path) -> None:
    for split in ("train", "val"):
        stem = f"{split}/bonn/bonn_000000_000019"
        put_pair(
            root / f"leftImg8bit/{stem}_leftImg8bit.png", root / f"gtFine/{stem}_gtFine_labelIds.png", [0, 7, 33, 14]
        )
        put_image(root / f"gtFine/{stem}_gtFine_color.png")
        put_mask(root / f"gtFine/{stem}_gtFine_instanceIds.png", [1])


def idd(root: Path) -> None:
    for split in ("train", "val"):
        stem = f"IDD_Segmentation/{{}}/{split}/201/frame0029"
        put_pair(
            root / (stem.format("leftImg8bit") + "_leftImg8bit.jpg"),
            root / (stem.format("gtFine") + "_gtFine_labellevel3Ids.png"),
            [0, 25, 255],
        )


def kitti(root: Path) -> None:
    for i in range(10):
        put_pair(root / f"training/image_2/{i:06}_10.png", root / f"training/semantic/{i:06}_10.png", [0, 7, 33, 14])


def loveda(root: Path) -> None:
    for part in ("Train", "Val"):
        for scene, stem in (("Rural", "0"), ("Urban", "1366")):
            folder = root / part / scene
            put_pair(folder / f"images_png/{stem}.png", folder / f"masks_png/{stem}.png", [0, 1, 7])


def coco_stuff(root: Path) -> None:
    for part in ("train2017", "val2017"):
        put_pair(
            root / f"{part}/000000000139.jpg", root / f"stuffthingmaps/{part}/000000000139.png", [0, 89, 91, 181, 255]
        )


def coco(root: Path) -> None:
    for part in ("train2017", "val2017"):
        put_image(root / f"{part}/000000000139.jpg")
        put_text(
            root / f"annotations/instances_{part}.json",
            '{"images": [{"id": 139, "file_name": "000000000139.jpg", "height": 4, "width": 6}],',
            '"annotations": [{"id": 1, "image_id": 139, "category_id": 90, "iscrowd": 0,',
            '"segmentation": [[0, 0, 3, 0, 3, 4, 0, 4]]}],',
            '"categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]}',
        )


def bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        base = root / "bdd100k"
        put_pair(base / f"images/10k/{split}/a1-b2.jpg", base / f"labels/sem_seg/masks/{split}/a1-b2.png", [0, 18, 255])


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        put_pair(
            root / f"CamVid/{split}/0001TP_006690.png", root / f"CamVid/{split}annot/0001TP_006690.png", [0, 10, 11]
        )


def sun_rgbd(root: Path) -> None:
    for number in (1, 2):
        labels = root / "sunrgbd_train_test_labels"
        put_pair(
            root / f"SUNRGBD-train_images/img-{number:06}.jpg", labels / f"img-{number + 5050:06}.png", [0, number, 37]
        )
        put_pair(
            root / f"SUNRGBD-test_images/img-{number:06}.jpg", labels / f"img-{number:06}.png", [0, number + 10, 37]
        )


ISPRS_COLOURS = [(255, 255, 255), (0, 0, 255), (255, 0, 0), (0, 0, 0)]
POTSDAM_TRAIN = (
    "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
)
POTSDAM_TEST = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"


def potsdam(root: Path) -> None:
    for tile in f"{POTSDAM_TRAIN} {POTSDAM_TEST}".split():
        stem = f"top_potsdam_{tile}"
        put_pair(root / f"2_Ortho_RGB/{stem}_RGB.tif", root / f"5_Labels_all/{stem}_label.tif", ISPRS_COLOURS)


def vaihingen(root: Path) -> None:
    masks = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
    for area in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37):
        put_pair(root / f"top/top_mosaic_09cm_area{area}.tif", masks / f"top_mosaic_09cm_area{area}.tif", ISPRS_COLOURS)
    for area in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38):
        put_pair(root / f"top/top_mosaic_09cm_area{area}.tif", masks / f"top_mosaic_09cm_area{area}.tif", ISPRS_COLOURS)


def suim(root: Path) -> None:
    for part in ("train_val", "TEST"):
        colours = [(0, 0, 0), (2, 1, 250), (255, 255, 255)]
        put_pair(root / part / "images/d_r_1_.jpg", root / part / "masks/d_r_1_.bmp", colours)


def imagenet_s(root: Path) -> None:
    for part in ("train-semi", "validation"):
        for i, wnid in enumerate(("n01440764", "n02123045", "n15075141"), start=1):
            stem = f"{wnid}/{wnid}_9"
            ids = [(0, 0, 0), (i, 0, 0), (1000 % 256, 1000 // 256, 0)]
            put_pair(root / part / f"{stem}.JPEG", root / f"{part}-segmentation" / f"{stem}.png", ids)


def voc2012(root: Path) -> None:
    base = root / "VOCdevkit/VOC2012"
    stems = {"train": "2007_000032", "val": "2007_000033"}
    for split, stem in stems.items():
        put_text(base / f"ImageSets/Segmentation/{split}.txt", stem)
        put_pair(base / f"JPEGImages/{stem}.jpg", base / f"SegmentationClass/{stem}.png", [0, 20, 255], palette=True)
    put_text(base / "ImageSets/Segmentation/trainval.txt", *stems.values())
    put_text(
        base / "ImageSets/Segmentation/trainaug.txt",
        "/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png",
    )
    put_pair(base / "JPEGImages/2008_000002.jpg", base / "SegmentationClassAug/2008_000002.png", [0, 1, 255])


def pascal_context(root: Path) -> None:
    from rekindle.data.published.class_lists import class_names

    base = root / "VOCdevkit/VOC2010"
    labels = sorted({*class_names("pascal_context"), "accordion", "zebra crossing"})
    put_text(base / "labels.txt", *(f"{i}: {name}" for i, name in enumerate(labels, start=1)))
    for split, stem in (("train", "2008_000002"), ("val", "2008_000003")):
        put_text(base / f"ImageSets/Main/{split}.txt", stem)
        put_image(base / f"JPEGImages/{stem}.jpg")
        row = [labels.index(name) + 1 for name in ("aeroplane", "accordion", "wood", "bag", "bag", "bag")]
        (base / "trainval").mkdir(exist_ok=True)
        savemat(base / f"trainval/{stem}.mat", {"LabelMap": np.array([row] * SIZE[1], np.uint16)})


def davis2017(root: Path) -> None:
    for split, name in (("train", "bear"), ("val", "bike-packing")):
        put_text(root / f"DAVIS/ImageSets/2017/{split}.txt", name)
        for frame in range(3):
            stem = f"480p/{name}/{frame:05}"
            put_pair(
                root / f"DAVIS/JPEGImages/{stem}.jpg", root / f"DAVIS/Annotations/{stem}.png", [0, 1, 2], palette=True
            )


def _revisited(root: Path, name: str) -> None:
    for stem in ("all_souls_000013", "all_souls_000026", "oxford_000001"):
        put_image(root / f"{name}/jpg/{stem}.jpg")
    truth = [{"bbx": [0.0, 0.0, 4.0, 3.0], "easy": [0], "hard": [1], "junk": []}]
    content = {"imlist": ["all_souls_000026", "oxford_000001"], "qimlist": ["all_souls_000013"], "gnd": truth}
    (root / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))


def imagenet(root: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n02123045", "n01440764"):
            put_image(root / f"ILSVRC/Data/CLS-LOC/{split}/{wnid}/{wnid}_1.JPEG")


def imagenet100(root: Path) -> None:
    for wnid in class_names("imagenet100"):
        for split in ("train", "val"):
            put_image(root / f"{split}/{wnid}/{wnid}_1.JPEG")
    put_image(root / "train/n01440764/n01440764_1.JPEG")  # of ImageNet, not of these 100


def imagenet21k(root: Path) -> None:
    for part in ("imagenet21k_train/", "imagenet21k_val/", ""):
        for wnid in ("n00004475", "n00006024"):
            put_image(root / f"{part}{wnid}/{wnid}_7.JPEG")


def miniimagenet(root: Path) -> None:
    for part, wnids in (
        ("train", ["n01532829", "n02747177"]),
        ("val", ["n01855672"]),
        ("test", ["n01930112", "n02110063"]),
    ):
        files = [f"{wnid}0000000{i}.jpg" for wnid in wnids for i in (1, 2)]
        put_text(root / f"{part}.csv", "filename,label", *(f"{file},{file[:9]}" for file in files))
        for file in files:
            put_image(root / "images" / file)


WAYMO_RANGES = [[10.0, 10.0, 20.0, -1.0], [5.0, 4.0, 4.0, 4.0]]
"""Metres of two beams in four directions; -1: nothing was met."""
WAYMO_PIXELS = [
    [(0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0), (2, 3, 3, 1, 1, 0), (1, 2, 0, 0, 0, 0)],
    [(0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0), (2, 3, 3, 0, 0, 0), (0, 0, 0, 0, 0, 0)],
]
"""Camera, x and y that each is seen at, twice."""


def waymo(root: Path, *, yaw: float = 0.0, inclinations: Sequence[float] | None = (-0.2, 0.0)) -> None:
    """One segment in each split; its laser is turned by `yaw` at (1, 0, 2), and the camera is at (0.5, 0, 2)."""
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    turned[:3, 3], camera = (1, 0, 2), np.eye(4)
    camera[:3, 3] = (0.5, 0, 2)
    picture = io.BytesIO()
    Image.new("RGB", SIZE, (90, 91, 92)).save(picture, "PNG")
    picture_of, laser, seen = (
        "[CameraImageComponent].",
        "[LiDARCalibrationComponent].",
        "[LiDARCameraProjectionComponent].",
    )
    ranges = np.stack([np.array(WAYMO_RANGES), *np.zeros((3, 2, 4))], axis=-1)
    every = {"key.segment_context_name": "10"}
    rows: dict[str, list[dict[str, object]]] = {
        "camera_image": [
            {"key.frame_timestamp_micros": time, "key.camera_name": number, f"{picture_of}image": picture.getvalue()}
            for time in (17, 18)
            for number in (1, 2)
        ],
        "lidar": [
            {
                "key.frame_timestamp_micros": time,
                "key.laser_name": number,
                "[LiDARComponent].range_image_return1.values": (ranges + 50 * (number - 1)).ravel().tolist(),
                "[LiDARComponent].range_image_return1.shape": [2, 4, 4],
            }
            for time in (17, 18)
            for number in (1, 2)
        ],
        "lidar_camera_projection": [
            {
                "key.frame_timestamp_micros": time,
                "key.laser_name": 1,
                f"{seen}range_image_return1.values": np.ravel(WAYMO_PIXELS).tolist(),
                f"{seen}range_image_return1.shape": [2, 4, 6],
            }
            for time in (17, 18)
        ],
        "lidar_calibration": [
            {
                "key.laser_name": 1,
                f"{laser}extrinsic.transform": turned.ravel().tolist(),
                f"{laser}beam_inclination.min": -0.3,
                f"{laser}beam_inclination.max": 0.1,
                f"{laser}beam_inclination.values": None if inclinations is None else list(inclinations),
            }
        ],
        "camera_calibration": [
            {"key.camera_name": 1, "[CameraCalibrationComponent].extrinsic.transform": camera.ravel().tolist()}
        ],
    }
    for split in ("training", "validation"):
        for component, told in rows.items():
            path = root / split / component / "10.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist([every | row for row in told]), path)


def _pickled(content: object) -> bytes:
    """Pickle text as Python 2 wrote its strings, and arrays under NumPy 1's names, as the published files hold them."""
    data = pickle.dumps(content, protocol=2)
    found = list(pickletools.genops(data))
    ends = [place for _, _, place in found[1:]] + [len(data)]
    old = []
    for (code, argument, start), end in zip(found, ends, strict=True):
        assert start is not None and end is not None
        if code.name == "BINUNICODE":
            text = str(argument).encode("latin1")
            old.append(b"T" + struct.pack("<i", len(text)) + text)
        else:
            old.append(data[start:end])
    return b"".join(old).replace(b"numpy._core.", b"numpy.core.")


def _batch(labels: list[int], key: str, first: int) -> bytes:
    values = np.stack([np.arange(3072, dtype=np.int64) // 1024 * 50 + first + i for i in range(len(labels))]).astype(
        np.uint8
    )
    names = [f"img_{first + i}.png" for i in range(len(labels))]
    return _pickled({"data": values, key: labels, "filenames": names})


def cifar10(root: Path) -> None:
    base = root / "cifar-10-batches-py"
    base.mkdir()
    for i in range(1, 6):
        (base / f"data_batch_{i}").write_bytes(_batch([i, 9], "labels", 10 * i))
    (base / "test_batch").write_bytes(_batch([3], "labels", 60))
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (base / "batches.meta").write_bytes(_pickled({"label_names": names}))


def cifar100(root: Path) -> None:
    base = root / "cifar-100-python"
    base.mkdir()
    (base / "train").write_bytes(_batch([99, 0], "fine_labels", 0))
    (base / "test").write_bytes(_batch([42], "fine_labels", 7))
    names = [f"class{i}" for i in range(100)]
    (base / "meta").write_bytes(_pickled({"fine_label_names": names, "coarse_label_names": []}))


def pets(root: Path) -> None:
    for part, number in (("trainval", 100), ("test", 201)):
        breeds = ["Abyssinian", "american_bulldog", "yorkshire_terrier"]
        put_text(root / f"annotations/{part}.txt", *(f"{b}_{number} {i} 1 1" for i, b in enumerate(breeds, start=1)))
        for breed in breeds:
            put_image(root / f"images/{breed}_{number}.jpg")


def flowers102(root: Path) -> None:
    for number in range(1, 7):
        put_image(root / f"jpg/image_{number:05}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[102, 1, 77, 5, 5, 2]], np.uint8)})
    splits = {"trnid": [[1, 4]], "valid": [[3]], "tstid": [[2, 6, 5]]}
    savemat(root / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in splits.items()})


def cars(root: Path) -> None:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
    (root / "devkit").mkdir()
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    for path, part, classes in (
        ("devkit/cars_train_annos.mat", "train", [3, 1]),
        ("cars_test_annos_withlabels.mat", "test", [2]),
    ):
        fields = [("bbox_x1", object), ("bbox_y1", object), ("bbox_x2", object), ("bbox_y2", object), ("class", object)]
        rows = np.zeros((1, len(classes)), dtype=[*fields, ("fname", object)])
        for i, number in enumerate(classes):
            rows[0, i] = (1, 1, 4, 4, number, f"{i + 1:05}.jpg")
            put_image(root / f"cars_{part}/{i + 1:05}.jpg")
        savemat(root / path, {"annotations": rows})


def derm7pt(root: Path) -> None:
    base = root / "release_v0"
    rows = [("NEL/Nel026.jpg", "basal cell carcinoma"), ("NEL/Nel028.jpg", "reed or spitz nevus")]
    rows += [("Aal/Aal001.jpg", "melanoma (0.76 to 1.5 mm)"), ("Aal/Aal002.jpg", "lentigo")]
    lines = [f'{i},"{name}",1,absent,{file.replace(".jpg", "c.jpg")},{file}' for i, (file, name) in enumerate(rows)]
    put_text(base / "meta/meta.csv", "case_num,diagnosis,seven_point_score,pigment_network,clinic,derm", *lines)
    for part, indices in (("train", "03"), ("valid", "1"), ("test", "2")):
        put_text(base / f"meta/{part}_indexes.csv", "indexes", *indices)
    for file, _ in rows:
        put_image(base / "images" / file)


def covidx(root: Path) -> None:
    put_text(root / "train.txt", "1 a.png positive ricord", "23 SARS 10 b.png negative cohen")
    put_text(root / "val_COVIDx9B.txt", "4 d.png positive rsna")
    put_text(root / "test.txt", "3 c.png negative")
    for file in ("train/a.png", "train/SARS 10 b.png", "val/d.png", "test/c.png"):
        put_image(root / file)


WRITERS: dict[str, Callable[[Path], None]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "idd": idd,
    "kitti": kitti,
    "loveda": loveda,
    "coco-stuff": coco_stuff,
    "coco-things": coco_stuff,
    "coco": coco,
    "bdd100k": bdd100k,
    "camvid": camvid,
    "sun-rgbd": sun_rgbd,
    "potsdam": potsdam,
    "vaihingen": vaihingen,
    "suim": suim,
    "imagenet-s": imagenet_s,
    "voc2012": voc2012,
    "pascal-context": pascal_context,
    "pascal-context-60": pascal_context,
    "davis2017": davis2017,
    "roxford5k": lambda root: _revisited(root, "roxford5k"),
    "rparis6k": lambda root: _revisited(root, "rparis6k"),
    "imagenet": imagenet,
    "imagenet100": imagenet100,
    "imagenet21k": imagenet21k,
    "miniimagenet": miniimagenet,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "pets": pets,
    "flowers102": flowers102,
    "cars": cars,
    "derm7pt": derm7pt,
    "covidx": covidx,
    "waymo": waymo,
}
"""Name of a data set -> what writes its miniature below a root."""


def written(name: str, root: Path) -> str:
    """Write a miniature; return NAME:ROOT."""
    assert name in DATASETS
    WRITERS[name](root)
    return f"{name}:{root}"
