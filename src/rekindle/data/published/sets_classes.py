# SPDX-License-Identifier: Apache-2.0
"""Published classification data: lists of text, tables, MATLAB files and CIFAR's batches."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder, ClassListing
from rekindle.data.labelled.retrieval import plain_unpickled
from rekindle.data.labelled.segmentation import images_by_stem
from rekindle.data.published.class_lists import class_names
from rekindle.data.published.named import expected, published_split
from rekindle.data.published.sets_pairs import inner

_CIFAR_PX = 32
_WORDNET_ID = re.compile(r"n\d{8}")
_CIFAR_BATCHES = 5
_FLOWERS = 102
_DIAGNOSES = {
    "basal cell carcinoma": ["basal cell carcinoma"],
    "nevus": [f"{kind} nevus" for kind in "blue clark combined congenital dermal recurrent".split()]
    + ["reed or spitz nevus"],
    "melanoma": ["melanoma", "melanoma metastasis"]
    + [f"melanoma ({stage})" for stage in ("in situ", "less than 0.76 mm", "0.76 to 1.5 mm", "more than 1.5 mm")],
    "miscellaneous": ["dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"],
    "seborrheic keratosis": ["seborrheic keratosis"],
}


def imagenet(root: Path, split: str) -> ClassFolder:
    """ImageNet in folders of WordNet ids."""
    published = published_split("imagenet", root, split)
    return ClassFolder(inner(root, "ILSVRC/Data/CLS-LOC"), published)


def imagenet100(root: Path, split: str) -> ClassFolder:
    """The 100 classes of ImageNet that CMC drew (Tian et al., 2020); MMC names ImageNet-100-Pytorch, which has the same list."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("imagenet100", root, split), inner(root, "ILSVRC/Data/CLS-LOC")
        names = class_names("imagenet100")
        missing = [name for name in names if not (root / part / name).is_dir()]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise RequestError(f"{root / part}: no folder {', '.join(missing[:5])}{more}. {expected('imagenet100')}")
        return _class_folders("imagenet100", root / part, names)

    return ClassFolder(root, split, find)


def imagenet21k(root: Path, split: str) -> ClassFolder:
    """ImageNet-21k in folders of WordNet ids: the splits of ImageNet-21K-P (Ridnik et al., 2021), or all of a release."""

    def find(root: Path, split: str) -> ClassListing:
        part = published_split("imagenet21k", root, split)
        folder = inner(root, "imagenet21k_resized") / part if part else root
        names = sorted(e.name for e in folder.iterdir() if _WORDNET_ID.fullmatch(e.name)) if folder.is_dir() else []
        if not names:
            state = "there is no folder of a WordNet id in it" if folder.is_dir() else "the folder does not exist"
            raise RequestError(f"{folder}: {state}. {expected('imagenet21k')}")
        return _class_folders("imagenet21k", folder, names)

    return ClassFolder(root, split, find)


def miniimagenet(root: Path, split: str) -> ClassFolder:
    """mini-ImageNet (Vinyals et al., 2016) with the splits of Ravi and Larochelle, whose classes are other ones in each."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("miniimagenet", root, split), inner(root, "mini-imagenet", "miniImageNet")
        rows = _table("miniimagenet", root / f"{part}.csv", ["filename", "label"])
        names = sorted({row["label"] for row in rows})
        images = [root / "images" / row["filename"] for row in rows]
        labels = [names.index(row["label"]) for row in rows]
        return ClassListing(names, [image.stem for image in images], labels, images, expected("miniimagenet"))

    return ClassFolder(root, split, find)


def cifar10(root: Path, split: str) -> ClassFolder:
    """CIFAR-10, the edition for Python; items are the names of the files within a batch."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("cifar10", root, split), inner(root, "cifar-10-batches-py")
        files = [part] if part == "test_batch" else [f"{part}_{i}" for i in range(1, _CIFAR_BATCHES + 1)]
        return _cifar("cifar10", root, files, "labels", root / "batches.meta", "label_names")

    return ClassFolder(root, split, find)


def cifar100(root: Path, split: str) -> ClassFolder:
    """CIFAR-100, the edition for Python, with its 100 fine classes."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("cifar100", root, split), inner(root, "cifar-100-python")
        return _cifar("cifar100", root, [part], "fine_labels", root / "meta", "fine_label_names")

    return ClassFolder(root, split, find)


def pets(root: Path, split: str) -> ClassFolder:
    """Oxford-IIIT Pets, 37 breeds; the class is in the file's name and its number in the list."""

    def find(root: Path, split: str) -> ClassListing:
        path = root / "annotations" / f"{published_split('pets', root, split)}.txt"
        rows = [line for line in _rows("pets", path, columns=2) if not line[0].startswith("#")]
        items = [row[0] for row in rows]
        labels = [_whole("pets", path, row[1]) - 1 for row in rows]
        breed = {label: item.rpartition("_")[0] for item, label in zip(items, labels, strict=True)}
        if sorted(breed) != list(range(len(breed))):
            raise RequestError(
                f"{path}: class numbers run from 1 without a gap, and here some are missing. {expected('pets')}"
            )
        names = [breed[i] for i in range(len(breed))]
        return ClassListing(names, items, labels, [root / "images" / f"{item}.jpg" for item in items], expected("pets"))

    return ClassFolder(root, split, find)


def flowers102(root: Path, split: str) -> ClassFolder:
    """Oxford Flowers, 102 classes; labels and splits stand in MATLAB files, both counted from 1."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("flowers102", root, split), inner(root, "flowers-102")
        every = _matlab("flowers102", root / "imagelabels.mat", "labels").reshape(-1)
        chosen = _matlab("flowers102", root / "setid.mat", part).reshape(-1)
        if chosen.min() < 1 or chosen.max() > len(every) or every.min() < 1 or every.max() > _FLOWERS:
            raise RequestError(
                f"{root}: setid.mat and imagelabels.mat do not belong together. {expected('flowers102')}"
            )
        items = [f"image_{number:05}" for number in chosen]
        labels = [int(every[number - 1]) - 1 for number in chosen]
        images = [root / "jpg" / f"{item}.jpg" for item in items]
        return ClassListing(class_names("flowers102"), items, labels, images, expected("flowers102"))

    return ClassFolder(root, split, find)


def cars(root: Path, split: str) -> ClassFolder:
    """Stanford Cars, 196 models; whole images, the boxes are not used."""

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("cars", root, split), inner(root, "stanford_cars")
        tables = [root / "devkit" / "cars_train_annos.mat"]
        if part == "test":
            tables = [folder / "cars_test_annos_withlabels.mat" for folder in (root, root / "devkit")]
        rows = _matlab("cars", _first("cars", tables), "annotations").reshape(-1)
        names = [
            str(name.item()) for name in _matlab("cars", root / "devkit" / "cars_meta.mat", "class_names").reshape(-1)
        ]
        files = [str(row["fname"].item()) for row in rows]
        labels = [int(row["class"].item()) - 1 for row in rows]
        images = [root / f"cars_{part}" / file for file in files]
        return ClassListing(names, [Path(file).stem for file in files], labels, images, expected("cars"))

    return ClassFolder(root, split, find)


def derm7pt(root: Path, split: str) -> ClassFolder:
    """Derm7pt: the dermoscopic image of each case, the diagnoses in the five groups of the publication."""
    group = {diagnosis: i for i, diagnoses in enumerate(_DIAGNOSES.values()) for diagnosis in diagnoses}

    def find(root: Path, split: str) -> ClassListing:
        part, root = published_split("derm7pt", root, split), inner(root, "release_v0")
        meta, listed = root / "meta" / "meta.csv", root / "meta" / f"{part}_indexes.csv"
        cases = _table("derm7pt", meta, ["derm", "diagnosis"])
        indices = [_whole("derm7pt", listed, row["indexes"]) for row in _table("derm7pt", listed, ["indexes"])]
        if indices and not 0 <= min(indices) <= max(indices) < len(cases):
            raise RequestError(
                f"{listed}: it names a row that meta.csv does not have ({len(cases)} rows, counted from 0)"
            )
        chosen = [cases[i] for i in indices]
        unknown = sorted({case["diagnosis"] for case in chosen} - set(group))
        if unknown:
            raise RequestError(f"{meta}: unknown diagnosis '{unknown[0]}'. {expected('derm7pt')}")
        items = [Path(case["derm"]).with_suffix("").as_posix() for case in chosen]
        images = [root / "images" / case["derm"] for case in chosen]
        return ClassListing(
            list(_DIAGNOSES), items, [group[case["diagnosis"]] for case in chosen], images, expected("derm7pt")
        )

    return ClassFolder(root, split, find)


def covidx(root: Path, split: str) -> ClassFolder:
    """COVIDx: chest X-rays; the classes (two or three, by edition) are those of all its lists together."""

    def find(root: Path, split: str) -> ClassListing:
        part = published_split("covidx", root, split)
        lists = {name: _covidx_list(root, name) for name in ("train", "val", "test")}
        path = lists[part]
        if path is None:
            raise RequestError(f"{root / part}.txt: the list of the split is missing. {expected('covidx')}")
        names = sorted(
            {_covidx_row(row)[1] for other in lists.values() if other for row in _rows("covidx", other, columns=3)}
        )
        rows = [_covidx_row(row) for row in _rows("covidx", path, columns=3)]
        images = [root / part / file for file, _ in rows]
        items = [Path(file).with_suffix("").as_posix() for file, _ in rows]
        return ClassListing(names, items, [names.index(label) for _, label in rows], images, expected("covidx"))

    return ClassFolder(root, split, find)


def _covidx_list(root: Path, part: str) -> Path | None:
    """Return the one list of a split; editions put their number behind the name. Raises: RequestError for several."""
    found = [root / f"{part}.txt"] if (root / f"{part}.txt").is_file() else sorted(root.glob(f"{part}_*.txt"))
    if len(found) > 1:
        told = ", ".join(path.name for path in found)
        raise RequestError(
            f"{root}: several lists of '{part}' ({told}); keep that of one edition, or call it {part}.txt"
        )
    return found[0] if found else None


def _covidx_row(row: list[str]) -> tuple[str, str]:
    """Return file and class of patient, file, class and, in later editions, source; only a file's name may hold spaces."""
    place = -1 if len(row) == 3 else -2
    return " ".join(row[1:place]), row[place]


def _cifar(name: str, root: Path, files: Sequence[str], key: str, meta: Path, names_key: str) -> ClassListing:
    names = _unpickled(name, meta, [names_key])[names_key]
    items: list[str] = []
    labels: list[int] = []
    pixels: list[Tensor] = []
    for file in files:
        batch = _unpickled(name, root / file, ["data", key, "filenames"])
        values = np.asarray(batch["data"], np.uint8).reshape(-1, 3, _CIFAR_PX, _CIFAR_PX)
        if not len(values) == len(batch[key]) == len(batch["filenames"]):
            raise RequestError(f"{root / file}: images, labels and names differ in number. {expected(name)}")
        pixels.append(torch.from_numpy(values.copy()))
        labels += [int(label) for label in batch[key]]
        items += [Path(item).stem for item in batch["filenames"]]
    return ClassListing([str(n) for n in names], items, labels, torch.cat(pixels), expected(name))


def _unpickled(name: str, path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read one of CIFAR's files, plain values and arrays only."""
    try:
        content = plain_unpickled(path.read_bytes())
    except Exception as error:  # a damaged pickle may raise anything
        raise RequestError(f"{path} cannot be read: {error}. {expected(name)}") from error
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    absent = [key for key in keys if key not in found]
    if absent:
        raise RequestError(f"{path}: it does not hold {', '.join(absent)}. {expected(name)}")
    return found


def _class_folders(name: str, folder: Path, names: Sequence[str]) -> ClassListing:
    """List the images of some folders below `folder`, each a class."""
    images = {number: images_by_stem(folder / wnid) for number, wnid in enumerate(names)}
    empty = [names[number] for number, found in images.items() if not found]
    if empty:
        raise RequestError(f"{folder / empty[0]}: there is no image in it. {expected(name)}")
    rows = [
        (f"{names[number]}/{stem}", number, path)
        for number, found in images.items()
        for stem, path in sorted(found.items())
    ]
    return ClassListing(list(names), [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], expected(name))


def _first(name: str, paths: Sequence[Path]) -> Path:
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise RequestError(f"{paths[0]}: the file is missing. {expected(name)}")
    return path


def _rows(name: str, path: Path, *, columns: int) -> list[list[str]]:
    """Return the words of each line that is not blank. Raises: RequestError for a missing or short line."""
    text = _first(name, [path]).read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    short = next((row for row in rows if len(row) < columns and not row[0].startswith("#")), None)
    if short is not None:
        raise RequestError(f"{path}: '{' '.join(short)}' has fewer than {columns} columns. {expected(name)}")
    return rows


def _table(name: str, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with _first(name, [path]).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not set(columns) <= set(rows[0]):
        raise RequestError(f"{path}: a table with the columns {', '.join(columns)} was expected. {expected(name)}")
    return rows


def _matlab(name: str, path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(_first(name, [path]))[key]
    except (MatReadError, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: the variable {key} cannot be read ({error}). {expected(name)}") from error


def _whole(name: str, path: Path, word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise RequestError(f"{path}: '{word}' is no whole number. {expected(name)}") from error
