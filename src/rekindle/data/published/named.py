# SPDX-License-Identifier: Apache-2.0
"""Known data sets by name, NAME:ROOT, each read in the layout in which it is published. Nothing is downloaded. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rekindle.core.errors import RequestError, unknown_name
from rekindle.core.tables import imported
from rekindle.data import KINDS

Kind = Literal["segmentation", "classification", "objects", "video", "retrieval", "depth"]

_USES: dict[Kind, tuple[str, ...]] = {
    "segmentation": ("segmentation", "objects", "images"),
    "classification": ("classification", "images"),
    "objects": ("objects",),
    "video": ("video",),
    "retrieval": ("retrieval",),
    "depth": ("depth",),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")  # two letters or more: C:\data is a path


@dataclass(frozen=True)
class NamedData:
    """A published data set.

    Attributes:
        kind: what its labels are.
        reader: "module:function", called as function(root, split).
        splits: our name of a split -> the publisher's.
        classes: how many, where that is fixed.
        layout: what lies below the root.
        terms: what the publisher allows, in short; the publisher's own text decides.
        ignored: which pixels do not count, for segmentation.

    """

    kind: Kind
    reader: str
    splits: Mapping[str, str]
    classes: int | None
    layout: str
    terms: str
    ignored: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of data (keys of `rekindle.data.KINDS`) as which protocols can read it."""
        return _USES[self.kind]

    @property
    def summary(self) -> str:
        """One line: kind, classes, splits, layout."""
        classes = f", {self.classes} classes" if self.classes else ""
        return f"{self.kind}{classes}; splits {', '.join(self.splits)}; {self.layout}"


_TRAIN_VAL = {"train": "train", "val": "val"}
_TRAIN_VAL_TEST = _TRAIN_VAL | {"test": "test"}
_IMAGENET_21K = {"train": "imagenet21k_train", "val": "imagenet21k_val", "all": ""}
_PAIRS, _LISTS, _CLASSES = (f"rekindle.data.published.sets_{part}:" for part in ("pairs", "lists", "classes"))
_RESEARCH = "non-commercial research"

DATASETS: dict[str, NamedData] = {
    "ade20k": NamedData(
        *("segmentation", _PAIRS + "ade20k", {"train": "training", "val": "validation"}, 150),
        layout="ADEChallengeData2016: images/{training,validation}/*.jpg, annotations/{training,validation}/*.png",
        terms="images: non-commercial research and education; annotations BSD-3-Clause",
        ignored="0 (other)",
    ),
    "cityscapes": NamedData(
        *("segmentation", _PAIRS + "cityscapes", _TRAIN_VAL, 19),
        layout="leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png",
        terms=_RESEARCH,
        ignored="the 15 ids without a trainId",
    ),
    "loveda": NamedData(
        *("segmentation", _PAIRS + "loveda", {"train": "Train", "val": "Val"}, 7),
        layout="{Train,Val}/{Urban,Rural}/images_png/*.png and .../masks_png/*.png",
        terms="CC BY-NC-SA 4.0",
        ignored="0 (no data)",
    ),
    "coco-stuff": NamedData(
        *("segmentation", _PAIRS + "coco_stuff", {"train": "train2017", "val": "val2017"}, 171),
        layout="{train,val}2017/*.jpg (or below images/), stuffthingmaps/{train,val}2017/*.png (or annotations/)",
        terms="annotations CC BY 4.0; images: Flickr's terms",
        ignored="255 (unlabelled)",
    ),
    "coco-things": NamedData(
        *("segmentation", _PAIRS + "coco_things", {"train": "train2017", "val": "val2017"}, 81),
        layout="as coco-stuff; the 80 things, and stuff as background",
        terms="annotations CC BY 4.0; images: Flickr's terms",
        ignored="255 (unlabelled)",
    ),
    "coco": NamedData(
        *("objects", _LISTS + "coco", {"train": "train2017", "val": "val2017"}, 80),
        layout="annotations/instances_{train,val}2017.json, {train,val}2017/*.jpg (or below images/)",
        terms="annotations CC BY 4.0; images: Flickr's terms",
        ignored="what only crowds cover",
    ),
    "bdd100k": NamedData(
        *("segmentation", _PAIRS + "bdd100k", _TRAIN_VAL, 19),
        layout="images/10k/<split>/*.jpg, labels/sem_seg/masks/<split>/*.png (or seg/images, seg/labels/<split>/*_train_id.png)",
        terms="images: research and personal use; see the BDD100K licence",
        ignored="255",
    ),
    "camvid": NamedData(
        *("segmentation", _PAIRS + "camvid", _TRAIN_VAL_TEST, 11),
        layout="SegNet's edition: <split>/*.png, <split>annot/*.png",
        terms="research; no licence is stated",
        ignored="11 (void)",
    ),
    "idd": NamedData(
        *("segmentation", _PAIRS + "idd", _TRAIN_VAL, 26),
        layout="leftImg8bit/<split>/<drive>/*_leftImg8bit.png or .jpg, gtFine/<split>/<drive>/*_gtFine_labellevel3Ids.png "
        "(written by the publisher's createLabels.py --id-type level3Id)",
        terms=_RESEARCH,
        ignored="255",
    ),
    "kitti": NamedData(
        *("segmentation", _PAIRS + "kitti", _TRAIN_VAL | {"all": "training"}, 19),
        layout="data_semantics: training/image_2/*.png, training/semantic/*.png; KITTI has no validation split: val is "
        "ours, every fifth frame by name",
        terms="CC BY-NC-SA 3.0",
        ignored="the 15 ids without a trainId",
    ),
    "sun-rgbd": NamedData(
        *("segmentation", _PAIRS + "sun_rgbd", {"train": "train", "test": "test"}, 37),
        layout="SUNRGBD-{train,test}_images/img-*.jpg, sunrgbd_train_test_labels/img-*.png (1 to 5050 test, from 5051 on train)",
        terms="research; no licence is stated",
        ignored="0 (no label)",
    ),
    "potsdam": NamedData(
        *("segmentation", _PAIRS + "potsdam", {"train": "train", "test": "test"}, 6),
        layout="2_Ortho_RGB/top_potsdam_*_RGB.tif, 5_Labels_all/top_potsdam_*_label.tif (or 5_Labels_all_noBoundary); "
        "the benchmark's 24 and 14 tiles",
        terms="ISPRS: research, with acknowledgement",
        ignored="black (borders of the noBoundary edition)",
    ),
    "vaihingen": NamedData(
        *("segmentation", _PAIRS + "vaihingen", {"train": "train", "test": "test"}, 6),
        layout="top/top_mosaic_09cm_area*.tif, masks of the same name in gts_for_participants or "
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE; the benchmark's 16 and 17 areas",
        terms="ISPRS and DGPF: research, with acknowledgement",
        ignored="black (borders of the eroded edition)",
    ),
    "suim": NamedData(
        *("segmentation", _PAIRS + "suim", {"train": "train_val", "test": "TEST"}, 8),
        layout="{train_val,TEST}/images/*.jpg, {train_val,TEST}/masks/*.bmp in colours",
        terms="academic and educational use",
        ignored="none",
    ),
    "imagenet-s": NamedData(
        *("segmentation", _PAIRS + "imagenet_s", {"train": "train-semi", "val": "validation"}, None),
        layout="ImageNetS50, 300 or 919: {train-semi,validation}/<wnid>/*.JPEG, "
        "{train-semi,validation}-segmentation/<wnid>/*.png",
        terms="images: ImageNet's terms, non-commercial research",
        ignored="1000",
    ),
    "voc2012": NamedData(
        *("segmentation", _LISTS + "voc2012", _TRAIN_VAL | {"trainval": "trainval", "train_aug": "train_aug"}, 21),
        layout="VOC2012: JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/<split>.txt; train_aug: "
        "SegmentationClassAug/*.png and ImageSets/Segmentation/train_aug.txt (or trainaug.txt)",
        terms="images: Flickr's terms",
        ignored="255 (borders)",
    ),
    "pascal-context": NamedData(
        *("segmentation", _LISTS + "pascal_context", _TRAIN_VAL, 59),
        layout="VOC2010: JPEGImages/*.jpg, trainval/*.mat and labels.txt (or SegmentationClassContext/*.png), "
        "ImageSets/SegmentationContext/<split>.txt (or ImageSets/Main/<split>.txt)",
        terms="images: Flickr's terms",
        ignored="all but the 59 classes",
    ),
    "pascal-context-60": NamedData(
        *("segmentation", _LISTS + "pascal_context_60", _TRAIN_VAL, 60),
        layout="as pascal-context; the 59 classes and background",
        terms="images: Flickr's terms",
        ignored="255",
    ),
    "davis2017": NamedData(
        *("video", _LISTS + "davis2017", _TRAIN_VAL, None),
        layout="JPEGImages/480p/<sequence>/*.jpg, Annotations/480p/<sequence>/*.png, ImageSets/2017/<split>.txt",
        terms="see the publisher",
    ),
    "roxford5k": NamedData(
        *("retrieval", _LISTS + "roxford5k", {"test": "roxford5k"}, None),
        layout="roxford5k/jpg/*.jpg, roxford5k/gnd_roxford5k.pkl",
        terms="images: Flickr's terms",
    ),
    "rparis6k": NamedData(
        *("retrieval", _LISTS + "rparis6k", {"test": "rparis6k"}, None),
        layout="rparis6k/jpg/*.jpg, rparis6k/gnd_rparis6k.pkl",
        terms="images: Flickr's terms",
    ),
    "imagenet": NamedData(
        *("classification", _CLASSES + "imagenet", _TRAIN_VAL, 1000),
        layout="<split>/<wnid>/*.JPEG (also below ILSVRC/Data/CLS-LOC); the validation images sorted into class folders",
        terms=_RESEARCH,
    ),
    "imagenet100": NamedData(
        *("classification", _CLASSES + "imagenet100", _TRAIN_VAL, 100),
        layout="as imagenet, whole or these 100 folders alone: the list of CMC, which ImageNet-100-Pytorch has too",
        terms=_RESEARCH,
    ),
    "imagenet21k": NamedData(
        *("classification", _CLASSES + "imagenet21k", _IMAGENET_21K, None),
        layout="imagenet21k_{train,val}/<wnid>/*.JPEG as of ImageNet-21K-P (also below imagenet21k_resized); all: "
        "<wnid>/*.JPEG, the release as it is, which has no splits",
        terms=_RESEARCH,
    ),
    "miniimagenet": NamedData(
        *("classification", _CLASSES + "miniimagenet", _TRAIN_VAL_TEST, None),
        layout="{train,val,test}.csv with filename and label, images/*.jpg: 64, 16 and 20 classes of Ravi and Larochelle",
        terms="images: ImageNet's terms, non-commercial research",
    ),
    "cifar10": NamedData(
        *("classification", _CLASSES + "cifar10", {"train": "data_batch", "test": "test_batch"}, 10),
        layout="cifar-10-batches-py: data_batch_1 to data_batch_5, test_batch, batches.meta",
        terms="no licence is stated",
    ),
    "cifar100": NamedData(
        *("classification", _CLASSES + "cifar100", {"train": "train", "test": "test"}, 100),
        layout="cifar-100-python: train, test, meta",
        terms="no licence is stated",
    ),
    "pets": NamedData(
        *("classification", _CLASSES + "pets", {"train": "trainval", "test": "test"}, 37),
        layout="images/*.jpg, annotations/{trainval,test}.txt",
        terms="CC BY-SA 4.0",
    ),
    "flowers102": NamedData(
        *("classification", _CLASSES + "flowers102", {"train": "trnid", "val": "valid", "test": "tstid"}, 102),
        layout="jpg/image_*.jpg, imagelabels.mat, setid.mat",
        terms="no licence is stated",
    ),
    "cars": NamedData(
        *("classification", _CLASSES + "cars", {"train": "train", "test": "test"}, 196),
        layout="cars_{train,test}/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat",
        terms=_RESEARCH,
    ),
    "derm7pt": NamedData(
        *("classification", _CLASSES + "derm7pt", {"train": "train", "val": "valid", "test": "test"}, 5),
        layout="release_v0: images/**, meta/meta.csv, meta/{train,valid,test}_indexes.csv; "
        "the dermoscopic images, five diagnoses",
        terms="on request; see the publisher",
    ),
    "waymo": NamedData(
        *("depth", "rekindle.data.published.waymo:WaymoDepth", {"train": "training", "val": "validation"}, None),
        layout="version 2 (perception): {training,validation}/{camera_image,lidar,lidar_camera_projection,lidar_calibration,"
        "camera_calibration}/<segment>.parquet; the front camera and the top laser",
        terms="the Waymo Dataset Licence: non-commercial",
    ),
    "covidx": NamedData(
        *("classification", _CLASSES + "covidx", _TRAIN_VAL_TEST, None),
        layout="<split>/*.png, <split>.txt (or <split>_*.txt) with patient, file, class and source a line",
        terms="several sources; research",
    ),
}


def named_root(data: str) -> tuple[str, str] | None:
    """Return name and root of NAME:ROOT; None for a folder in our own layout. Raises: RequestError for an unknown name."""
    name, colon, root = data.partition(":")
    if not colon or not _NAME.fullmatch(name) or Path(data).expanduser().exists():
        return None
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if not root:
        raise RequestError(f"--data {data}: say where it lies, as {name}:/data/{name}")
    return name, root


def published_split(name: str, root: Path, split: str) -> str:
    """Return the publisher's name of a split. Raises: RequestError if the data set has none, or the root does not exist."""
    entry = DATASETS[name]
    if not root.is_dir():
        raise RequestError(f"{root}: the folder does not exist. {expected(name)}")
    if split not in entry.splits:
        raise RequestError(f"{name} has no split '{split}'; its splits: {', '.join(entry.splits)}")
    return entry.splits[split]


def expected(name: str) -> str:
    """Return the sentence on a data set's layout that ends messages."""
    return f"Expected of {name}: {DATASETS[name].layout}"


def open_data(kind: str, data: str | Path, split: str) -> Any:
    """Open one split as a kind of data: a folder in our own layout, or NAME:ROOT.

    Args:
        kind: a key of `rekindle.data.KINDS`.
        data: the folder, or NAME:ROOT.
        split: its name.

    Raises: RequestError for an unknown name, for labels of another kind, and for what the reader finds.
    """
    named = named_root(str(data))
    if named is None:
        return imported(KINDS[kind])(data, split)
    name, root = named
    entry = DATASETS[name]
    if kind not in entry.kinds:
        raise RequestError(
            f"{name} is {entry.kind} data and cannot be read as {kind}; it serves as {', '.join(entry.kinds)}"
        )
    found = imported(entry.reader)(Path(root).expanduser(), split)
    if kind == "objects" and entry.kind == "segmentation":
        return imported("rekindle.data.labelled.objects:MaskObjects")(found)
    return found
