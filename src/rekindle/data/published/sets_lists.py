# SPDX-License-Identifier: Apache-2.0
"""Published data whose splits are list files: Pascal VOC and Context, and the sets that the readers of our own kinds know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.data.labelled.coco import CocoAnnotations
from rekindle.data.labelled.davis import DavisVideos
from rekindle.data.labelled.label_maps import LabelMap
from rekindle.data.labelled.objects import CocoObjects
from rekindle.data.labelled.retrieval import RetrievalFolder
from rekindle.data.labelled.segmentation import Listing, Pair, SegmentationFolder
from rekindle.data.published.class_lists import class_names
from rekindle.data.published.named import expected, published_split
from rekindle.data.published.sets_pairs import IGNORED, from_one, inner

_VOC = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")


def voc2012(root: Path, split: str) -> SegmentationFolder:
    """Pascal VOC 2012; "train_aug" are the 10582 images that SBD's masks add to."""

    def find(root: Path, split: str) -> Listing:
        published_split("voc2012", root, split)
        root = inner(root, "VOCdevkit/VOC2012", "VOC2012")
        lists, masks = [f"Segmentation/{split}.txt"], root / "SegmentationClass"
        if split == "train_aug":
            lists += ["Segmentation/trainaug.txt", "SegmentationAug/train_aug.txt"]
            masks = root / "SegmentationClassAug"
        stems = stems_of("voc2012", [root / "ImageSets" / name for name in lists])
        pairs = [Pair(stem, root / "JPEGImages" / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems]
        return Listing(_VOC, pairs, expected("voc2012"))

    return SegmentationFolder(root, split, find)


def pascal_context(root: Path, split: str) -> SegmentationFolder:
    """Pascal Context's 59 classes; background does not count."""
    return SegmentationFolder(root, split, lambda root, split: _context("pascal-context", root, split))


def pascal_context_60(root: Path, split: str) -> SegmentationFolder:
    """Pascal Context's 59 classes after class 0, background: every other of the 459 labels."""
    return SegmentationFolder(root, split, lambda root, split: _context("pascal-context-60", root, split))


def davis2017(root: Path, split: str) -> DavisVideos:
    """DAVIS 2017, 480p."""
    published_split("davis2017", root, split)
    return DavisVideos(inner(root, "DAVIS"), split)


def roxford5k(root: Path, split: str) -> RetrievalFolder:
    """Revisited Oxford; it has one split."""
    return RetrievalFolder(root, published_split("roxford5k", root, split))


def rparis6k(root: Path, split: str) -> RetrievalFolder:
    """Revisited Paris; it has one split."""
    return RetrievalFolder(root, published_split("rparis6k", root, split))


def coco(root: Path, split: str) -> CocoObjects:
    """COCO's instances."""
    return CocoObjects(CocoAnnotations(root, published_split("coco", root, split)))


def stems_of(name: str, lists: Sequence[Path]) -> list[str]:
    """Return the stems of the first column of the first list that is there. Raises: RequestError if none is, or it is empty."""
    path = next((path for path in lists if path.is_file()), None)
    if path is None:
        raise RequestError(f"{lists[0]}: the list of the split is missing. {expected(name)}")
    stems = [Path(line.split()[0]).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise RequestError(f"{path}: the list names no image. {expected(name)}")
    return stems


def _context(name: str, root: Path, split: str) -> Listing:
    """List Pascal Context from the published .mat files of 459 labels, or from masks that were converted to 0 and 1 to 59."""
    published_split(name, root, split)
    root = inner(root, "VOCdevkit/VOC2010", "VOC2010")
    stems = stems_of(name, [root / "ImageSets" / f"{folder}/{split}.txt" for folder in ("SegmentationContext", "Main")])
    with_background = name == "pascal-context-60"
    names = class_names("pascal_context")
    folder, ending = root / "SegmentationClassContext", ".png"
    if folder.is_dir():
        labels = LabelMap() if with_background else from_one(len(names))
    else:
        folder, ending = root / "trainval", ".mat"
        labels = _of_459(name, root / "labels.txt", names, with_background)
    pairs = [Pair(stem, root / "JPEGImages" / f"{stem}.jpg", folder / f"{stem}{ending}") for stem in stems]
    return Listing(["background", *names] if with_background else names, pairs, expected(name), labels)


def _of_459(name: str, path: Path, names: list[str], with_background: bool) -> LabelMap:
    """Read the numbers of the 459 labels ("12: bag" a line) and keep the 59 classes."""
    if not path.is_file():
        raise RequestError(f"{path}: the list of the 459 labels is missing. {expected(name)}")
    lines = [line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    numbers = {label.strip(): int(number) for number, label in lines}
    absent = [label for label in names if label not in numbers]
    if absent:
        raise RequestError(f"{path}: it does not name {', '.join(absent[:5])}. {expected(name)}")
    rest = 0 if with_background else IGNORED
    table = {number: rest for number in (0, *numbers.values())}
    return LabelMap("matlab", table | {numbers[label]: i for i, label in enumerate(names, start=int(with_background))})
