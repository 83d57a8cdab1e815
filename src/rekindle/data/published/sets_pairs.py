# SPDX-License-Identifier: Apache-2.0
"""Published segmentation data whose images and masks lie in two folders, each found from the other's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.data.labelled.label_maps import LabelMap, color_code
from rekindle.data.labelled.segmentation import Listing, Pair, SegmentationFolder, images_by_stem
from rekindle.data.published.class_lists import class_names, coco_categories
from rekindle.data.published.named import expected, published_split

IGNORED = 255

_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Ids 0 to 33, and the licence plate's -1, which a byte cannot hold; what has no trainId does not count.
_CITYSCAPES = LabelMap(
    table={number: IGNORED for number in (*range(34), 255)} | {stored: i for i, stored in enumerate(_CITYSCAPES_IDS)}
)
_LOVEDA = "background, building, road, water, barren, forest, agriculture".split(", ")
_CAMVID = "sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist".split(", ")
_SUN_RGBD_TESTS = 5050
_ISPRS = {
    "impervious surface": [255, 255, 255],
    "building": [0, 0, 255],
    "low vegetation": [0, 255, 255],
    "tree": [0, 255, 0],
    "car": [255, 255, 0],
    "clutter": [255, 0, 0],
}
_POTSDAM_TILES = {
    "train": "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
    "test": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
}
_VAIHINGEN_AREAS = {
    "train": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
    "test": "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
}
_SUIM = {
    "background water": [0, 0, 0],
    "human diver": [0, 0, 255],
    "plant": [0, 255, 0],
    "wreck": [0, 255, 255],
    "robot": [255, 0, 0],
    "reef": [255, 0, 255],
    "fish": [255, 255, 0],
    "sea-floor": [255, 255, 255],
}
_IMAGENET_S_IGNORED = 1000


def ade20k(root: Path, split: str) -> SegmentationFolder:
    """ADE20K as of the scene parsing challenge 2016; ids 1 to 150 become 0 to 149."""

    def find(root: Path, split: str) -> Listing:
        part, root = published_split("ade20k", root, split), inner(root, "ADEChallengeData2016")
        masks = root / "annotations" / part
        pairs = listed("ade20k", root / "images" / part, lambda stem: masks / f"{stem}.png")
        return Listing(class_names("ade20k"), pairs, expected("ade20k"), from_one(150))

    return SegmentationFolder(root, split, find)


def cityscapes(root: Path, split: str) -> SegmentationFolder:
    """Cityscapes, fine annotations; the 19 classes that are evaluated."""

    def find(root: Path, split: str) -> Listing:
        part = published_split("cityscapes", root, split)
        pairs = _left_images("cityscapes", root, part, "_gtFine_labelIds.png")
        return Listing(class_names("cityscapes"), pairs, expected("cityscapes"), _CITYSCAPES)

    return SegmentationFolder(root, split, find)


def idd(root: Path, split: str) -> SegmentationFolder:
    """India Driving Dataset, the 26 classes of level 3."""

    def find(root: Path, split: str) -> Listing:
        part, root = published_split("idd", root, split), inner(root, "IDD_Segmentation")
        return Listing(
            class_names("idd"), _left_images("idd", root, part, "_gtFine_labellevel3Ids.png"), expected("idd")
        )

    return SegmentationFolder(root, split, find)


def kitti(root: Path, split: str) -> SegmentationFolder:
    """KITTI's 200 labelled frames, ids as in Cityscapes; "val" is every fifth by name, "train" the rest, "all" both."""

    def find(root: Path, split: str) -> Listing:
        published_split("kitti", root, split)
        root = inner(root, "data_semantics")
        masks = root / "training" / "semantic"
        pairs = listed("kitti", root / "training" / "image_2", lambda stem: masks / f"{stem}.png")
        chosen = [pair for i, pair in enumerate(pairs) if split == "all" or (i % 5 == 4) == (split == "val")]
        return Listing(class_names("cityscapes"), chosen, expected("kitti"), _CITYSCAPES)

    return SegmentationFolder(root, split, find)


def bdd100k(root: Path, split: str) -> SegmentationFolder:
    """BDD100K's 10k images with semantic masks; stored ids are those of the classes."""

    def find(root: Path, split: str) -> Listing:
        part, root = published_split("bdd100k", root, split), inner(root, "bdd100k")
        images, masks, ending = root / "images" / "10k" / part, root / "labels" / "sem_seg" / "masks" / part, ".png"
        if (root / "seg" / "images").is_dir():
            images, masks, ending = root / "seg" / "images" / part, root / "seg" / "labels" / part, "_train_id.png"
        pairs = listed("bdd100k", images, lambda stem: masks / f"{stem}{ending}")
        return Listing(class_names("cityscapes"), pairs, expected("bdd100k"))

    return SegmentationFolder(root, split, find)


def camvid(root: Path, split: str) -> SegmentationFolder:
    """CamVid in SegNet's edition: 11 classes, 11 is void."""

    def find(root: Path, split: str) -> Listing:
        part, root = published_split("camvid", root, split), inner(root, "CamVid")
        masks = root / f"{part}annot"
        pairs = listed("camvid", root / part, lambda stem: masks / f"{stem}.png")
        return Listing(_CAMVID, pairs, expected("camvid"), LabelMap(table={**{i: i for i in range(11)}, 11: IGNORED}))

    return SegmentationFolder(root, split, find)


def loveda(root: Path, split: str) -> SegmentationFolder:
    """LoveDA, urban and rural together; ids 1 to 7 become 0 to 6."""

    def find(root: Path, split: str) -> Listing:
        part = published_split("loveda", root, split)
        pairs = []
        for scene in ("Rural", "Urban"):
            folder = root / part / scene
            for pair in listed("loveda", folder / "images_png", lambda stem, f=folder: f / "masks_png" / f"{stem}.png"):  # type: ignore[misc]
                pairs.append(Pair(f"{scene}/{pair.item}", pair.image, pair.mask))
        return Listing(_LOVEDA, pairs, expected("loveda"), from_one(7))

    return SegmentationFolder(root, split, find)


def coco_stuff(root: Path, split: str) -> SegmentationFolder:
    """COCO-Stuff 164k: 80 things and 91 stuffs; a mask stores the category's id minus one."""
    categories = coco_categories()
    table = {number - 1: i for i, number in enumerate(categories)} | {255: IGNORED}

    def find(root: Path, split: str) -> Listing:
        pairs = _coco_pairs("coco-stuff", root, split)
        return Listing(list(categories.values()), pairs, expected("coco-stuff"), LabelMap(table=table))

    return SegmentationFolder(root, split, find)


def coco_things(root: Path, split: str) -> SegmentationFolder:
    """COCO's 80 things from the masks of COCO-Stuff; all stuff is class 0, background."""
    things = {number: name for number, name in coco_categories().items() if number <= 90}
    table = {number - 1: 0 for number in coco_categories()} | {255: IGNORED}
    table |= {number - 1: i for i, number in enumerate(things, start=1)}

    def find(root: Path, split: str) -> Listing:
        pairs = _coco_pairs("coco-things", root, split)
        return Listing(["background", *things.values()], pairs, expected("coco-things"), LabelMap(table=table))

    return SegmentationFolder(root, split, find)


def sun_rgbd(root: Path, split: str) -> SegmentationFolder:
    """SUN RGB-D with 37 classes; the masks of the training images are numbered from 5051 on, their images from 1 on."""

    def find(root: Path, split: str) -> Listing:
        part = published_split("sun-rgbd", root, split)
        images = root / f"SUNRGBD-{part}_images"
        found = listed("sun-rgbd", images, lambda stem: root / "sunrgbd_train_test_labels" / f"{stem}.png")
        numbers = [_number(pair) for pair in found]
        first = _SUN_RGBD_TESTS if part == "train" and min(numbers) <= _SUN_RGBD_TESTS else 0
        pairs = [
            Pair(pair.item, pair.image, pair.mask.with_name(f"img-{number + first:06}.png"))
            for pair, number in zip(found, numbers, strict=True)
        ]
        return Listing(class_names("sun_rgbd"), pairs, expected("sun-rgbd"), from_one(37))

    return SegmentationFolder(root, split, find)


def potsdam(root: Path, split: str) -> SegmentationFolder:
    """ISPRS Potsdam, whole tiles of the benchmark's split; masks in colours."""

    def find(root: Path, split: str) -> Listing:
        tiles = _POTSDAM_TILES[published_split("potsdam", root, split)].split()
        images = root / "2_Ortho_RGB"
        masks, ending = root / "5_Labels_all", "label.tif"
        if not masks.is_dir():
            masks, ending = root / "5_Labels_all_noBoundary", "label_noBoundary.tif"
        stem = "top_potsdam_"
        pairs = [Pair(t, images / f"{stem}{t}_RGB.tif", masks / f"{stem}{t}_{ending}") for t in tiles]
        return _colored("potsdam", pairs, _ISPRS, {color_code((0, 0, 0)): IGNORED})

    return SegmentationFolder(root, split, find)


def vaihingen(root: Path, split: str) -> SegmentationFolder:
    """ISPRS Vaihingen, whole areas (near infrared, red, green) of the benchmark's split; masks in colours."""

    def find(root: Path, split: str) -> Listing:
        areas = _VAIHINGEN_AREAS[published_split("vaihingen", root, split)].split()
        whole = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
        masks, ending = (whole if whole.is_dir() else root / "gts_for_participants"), ".tif"
        eroded = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
        if not masks.is_dir() and eroded.is_dir():
            masks, ending = eroded, "_noBoundary.tif"
        stem = "top_mosaic_09cm_area"
        pairs = [Pair(f"area{a}", root / "top" / f"{stem}{a}.tif", masks / f"{stem}{a}{ending}") for a in areas]
        return _colored("vaihingen", pairs, _ISPRS, {color_code((0, 0, 0)): IGNORED})

    return SegmentationFolder(root, split, find)


def suim(root: Path, split: str) -> SegmentationFolder:
    """SUIM, underwater; the colours of masks are rounded to 0 or 255 a channel, as the publishers do."""

    def find(root: Path, split: str) -> Listing:
        folder = root / published_split("suim", root, split)
        pairs = listed("suim", folder / "images", lambda stem: folder / "masks" / f"{stem}.bmp")
        table = {color_code(color): i for i, color in enumerate(_SUIM.values())}
        labels = LabelMap("dark or bright colours", table)
        return Listing(list(_SUIM), pairs, expected("suim"), labels, colors=list(_SUIM.values()))

    return SegmentationFolder(root, split, find)


def imagenet_s(root: Path, split: str) -> SegmentationFolder:
    """ImageNet-S: class 0 is everything else, then the WordNet ids in order; red + 256 green of a mask is the id."""

    def find(root: Path, split: str) -> Listing:
        part = published_split("imagenet-s", root, split)
        masks = root / f"{part}-segmentation"
        pairs = listed("imagenet-s", root / part, lambda stem: masks / f"{stem}.png")
        classes = root / "train-semi" if (root / "train-semi").is_dir() else root / part
        names = ["other", *sorted(entry.name for entry in classes.iterdir() if entry.is_dir())]
        labels = LabelMap("red + 256 green")
        return Listing(names, pairs, expected("imagenet-s"), labels, _IMAGENET_S_IGNORED)

    return SegmentationFolder(root, split, find)


def inner(root: Path, *folders: str) -> Path:
    """Return the first of the folders that archives unpack to, if it is there, else the root."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root)


def from_one(num_classes: int) -> LabelMap:
    """Return the map of masks that count classes from 1 and leave 0 for what does not count; 255 does not either."""
    return LabelMap(table={0: IGNORED, IGNORED: IGNORED} | {i + 1: i for i in range(num_classes)})


def listed(name: str, images: Path, mask_of: Callable[[str], Path]) -> list[Pair]:
    """Pair every image below a folder with its mask, by name. Raises: RequestError if there is none."""
    found = images_by_stem(images)
    if not found:
        state = "there is no image in it" if images.is_dir() else "the folder does not exist"
        raise RequestError(f"{images}: {state}. {expected(name)}")
    return [Pair(stem, found[stem], mask_of(stem)) for stem in sorted(found)]


def _number(pair: Pair) -> int:
    """Return the number of img-000123."""
    digits = pair.item.removeprefix("img-")
    if not digits.isdigit():
        raise RequestError(f"{pair.image}: the name is not img- and a number. {expected('sun-rgbd')}")
    return int(digits)


def _left_images(name: str, root: Path, part: str, ending: str) -> list[Pair]:
    """Pair the left images of Cityscapes's layout with their masks."""
    suffix, masks = "_leftImg8bit", root / "gtFine" / part
    pairs = listed(name, root / "leftImg8bit" / part, lambda stem: masks / f"{stem.removesuffix(suffix)}{ending}")
    return [Pair(pair.item.removesuffix(suffix), pair.image, pair.mask) for pair in pairs]


def _coco_pairs(name: str, root: Path, split: str) -> list[Pair]:
    part = published_split(name, root, split)
    images = root / part if (root / part).is_dir() else root / "images" / part
    maps = root / "stuffthingmaps" if (root / "stuffthingmaps").is_dir() else root / "annotations"
    return listed(name, images, lambda stem: maps / part / f"{stem}.png")


def _colored(name: str, pairs: list[Pair], classes: dict[str, list[int]], ignored: dict[int, int]) -> Listing:
    colors = list(classes.values())
    table = ignored | {color_code(color): i for i, color in enumerate(colors)}
    return Listing(list(classes), pairs, expected(name), LabelMap("colours", table), colors=colors)
