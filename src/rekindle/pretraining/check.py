# SPDX-License-Identifier: Apache-2.0
"""The data doctor as a whole: images, labelled splits, and a mosaic of the views that a model will see."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.core.rng import generator
from rekindle.data.decoding import UnreadableImage
from rekindle.data.doctor import Diagnosis, examine, shared_prints
from rekindle.data.images import ImageRef, ImageSource, chosen_images, find_images
from rekindle.data.labelled.classification import ClassFolder
from rekindle.data.labelled.segmentation import SegmentationFolder, splits
from rekindle.data.options import DataOptions
from rekindle.data.published.named import DATASETS, named_root, open_data
from rekindle.pretraining.grouping import Checked, proposed_groups
from rekindle.views.multicrop import MultiCrop
from rekindle.views.options import ViewsOptions

MOSAIC_IMAGES = 6


def check(
    images: str | None,
    data: str | None,
    *,
    reading: DataOptions,
    views: ViewsOptions,
    out: Path | None,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Examine a source of images, labelled data (a folder or NAME:ROOT), or both.

    With `out`, check.json and mosaic.png are written there, and groups.csv where images seem to belong together by times or as
    near-copies.
    """
    sources: dict[str, ImageSource] = {}
    labelled_items: dict[str, tuple[list[str], list[str]]] = {}  # of a source: names and classes of its images
    if images is not None:
        sources["images"] = chosen_images(images, reading)
    faults: list[str] = []
    absent: list[str] = []
    if data is not None:
        named = named_root(data)
        if named is not None:
            absent = _check_named(data, named[0], sources, labelled_items, faults)
        for split in splits(data) if named is None else []:
            folder = Path(data).expanduser() / "images" / split
            found = sources[f"data/{split}"] = find_images(folder)
            labelled_items[f"data/{split}"] = ([_below(ref.path, folder) for ref in found.refs], [])
            try:
                SegmentationFolder(data, split).check()
            except RequestError as error:
                faults.append(str(error))
    diagnoses: dict[str, Diagnosis] = {}
    for name, source in sources.items():
        diagnoses[name] = examine(
            source,
            smallest_px=views.local_size_px,
            options=reading,
            on_image=lambda done, n=name, s=source: progress(done, len(s), n),  # type: ignore[misc]
        )
    labelled = [n for n in diagnoses if n.startswith("data/")]
    leaks = [
        {"first": a, "second": b}
        for i, first in enumerate(labelled)
        for second in labelled[i + 1 :]
        for a, b in shared_prints(diagnoses[first], diagnoses[second])
    ]
    mosaic = None
    if out is not None:
        mosaic = _write_mosaic(next(iter(sources.values())), views, reading, out / "mosaic.png") if sources else None
    report: dict[str, Any] = {
        "sources": [_summary(name, diagnosis) for name, diagnosis in diagnoses.items()],
        "leaks": leaks,
        "faults": faults,
        "absent": absent,
        "mosaic": None if mosaic is None else str(mosaic),
        "groups": proposed_groups(_checked(sources, labelled_items, diagnoses), out),
        "usable": not faults and all(d.num_images > d.count("unreadable") for d in diagnoses.values()),
    }
    if out is not None:
        text = json.dumps(report, indent=2) + "\n"
        write_atomically(out / "check.json", lambda stream: stream.write(text.encode()))
    return report


def _below(path: str, folder: str | Path) -> str:
    """Name an image as results do: its path below a folder, without the suffix."""
    return Path(os.path.relpath(path, folder)).with_suffix("").as_posix()


def _checked(
    sources: dict[str, ImageSource], items: dict[str, tuple[list[str], list[str]]], diagnoses: dict[str, Diagnosis]
) -> list[Checked]:
    """What groups are proposed for: labelled data, or else the images."""
    if not items and "images" in sources:
        names = [ref.name for ref in sources["images"].refs]
        common = os.path.commonpath([os.path.dirname(name) for name in names])
        items = {"images": ([_below(name, common) for name in names], [])}
    return [
        Checked(
            name,
            name.partition("/")[2],
            own,
            [ref.name for ref in sources[name].refs],
            classes,
            diagnoses[name],
        )
        for name, (own, classes) in items.items()
    ]


def _check_named(
    data: str,
    name: str,
    sources: dict[str, ImageSource],
    items: dict[str, tuple[list[str], list[str]]],
    faults: list[str],
) -> list[str]:
    """Check the labels of NAME:ROOT and add its images to the sources, split by split.

    Splits that hold others again (trainval) are left out, for all of their images would count as leakage.

    Returns: why splits cannot be opened. Raises: RequestError if none can, or for data that is no set of single images.
    """
    entry = DATASETS[name]
    if entry.kind not in ("segmentation", "classification"):
        raise RequestError(
            f"--data {data}: check reads segmentation and classification data, and {name} is {entry.kind} data"
        )
    absent: list[str] = []
    parts = [split for split in entry.splits if split in ("train", "val", "test")]
    for split in parts:
        try:
            opened = open_data(entry.kind, data, split)
        except RequestError as error:
            absent.append(str(error))
            continue
        if opened.files:
            sources[f"data/{split}"] = ImageSource([ImageRef(str(path)) for path in opened.files])
            classes = [opened.names[c] for c in opened.labels.tolist()] if isinstance(opened, ClassFolder) else []
            items[f"data/{split}"] = (opened.items, classes)
        try:
            opened.check()
        except RequestError as error:
            faults.append(str(error))
    if len(absent) == len(parts):
        raise RequestError(absent[0])
    return absent


def _summary(name: str, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "name": name,
        "images": diagnosis.num_images,
        "usable": diagnosis.num_images - diagnosis.count("unreadable"),
        "sizes": [[list(size), count] for size, count in diagnosis.sizes],
        "wide": diagnosis.num_wide,
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }


def _write_mosaic(source: ImageSource, views: ViewsOptions, reading: DataOptions, path: Path) -> Path | None:
    """One row an image: the two global views, then the local ones at the height of a row."""
    crop = MultiCrop(views)
    rows = []
    for index in range(len(source)):
        try:
            pixels = source.read(index, draft_px=reading.draft_px, max_pixels=reading.max_pixels)
        except UnreadableImage:
            continue
        sample = crop(pixels, generator(0, "mosaic", index))
        cells = [*sample.global_pixels, *(sample.local_pixels if sample.local_pixels is not None else [])]
        rows.append(torch.cat([_cell(cell, views.global_size_px) for cell in cells], dim=-1))
        if len(rows) == MOSAIC_IMAGES:
            break
    if not rows:
        return None
    picture = Image.fromarray(torch.cat(rows, dim=-2).permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, lambda stream: stream.write(buffer.getvalue()))
    return path


def _cell(view: torch.Tensor, height: int) -> torch.Tensor:
    """A view in levels 0..255, padded below to the row's height and by a margin."""
    return torch.nn.functional.pad(view, (0, 4, 0, height - view.shape[-2] + 4), value=255)
