# SPDX-License-Identifier: Apache-2.0
"""Feature extraction: patches and descriptors of any images, as files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import write_atomically
from rekindle.data.films import is_film, write_frames
from rekindle.data.images import UnreadableImage, find_images
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.features.dense_features import extract_each, fitted_size, resize_image
from rekindle.measuring.clock import Clock
from rekindle.measuring.models import load_model
from rekindle.measuring.options import (
    ExtractOptions,
    require,
)
from rekindle.measuring.pictures import check_pictures, draw_pictures


@dataclass(frozen=True)
class Extracted:
    """What `extract` wrote."""

    out: Path
    images: int
    skipped: int


def run_extract(options: ExtractOptions, *, watcher: Watcher | None = None) -> Extracted:
    """Do what `rekindle extract` does: an NPZ of patches per image, and one of descriptors and paths."""
    watcher = watcher or LoggingWatcher()
    require("extract", MODEL=options.model, images=options.images, out=options.out)
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"--out {out} is not an empty folder; choose another one, or clear it")
    source = None if is_film(options.images) else find_images(options.images)
    extractor = load_model(options.model, options, watcher).extractor
    check_pictures(options, extractor)
    if source is None:
        frames = out / "frames"
        watcher.message(f"{write_frames(options.images, frames)} frames of {options.images} in {frames}")
        source = find_images(frames)
    skipped: list[str] = []
    kept: list[int] = []

    def images() -> Iterator[torch.Tensor]:
        for index in range(len(source)):
            try:
                image = source.read(index)
            except UnreadableImage as error:
                skipped.append(f"{error.name}: {error.reason}")
                continue
            kept.append(index)
            size = fitted_size(image.shape[1], image.shape[2], options.size_px, extractor.patch_size)
            yield resize_image(image, size)

    cls, means, files = [], [], []
    clock = Clock(len(source), watcher, every_s=10.0)
    for number, tokens in enumerate(extract_each(extractor, images())):
        patches = tokens[0].patches[0].cpu().numpy()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.name(kept[number])).stem)[:80]
        files.append(f"patches/{kept[number]:06}-{stem}.npz")
        _write_npz(out / files[-1], patches=patches.astype(np.float16))
        means.append(patches.mean(axis=(0, 1)))
        if tokens[0].cls is not None:
            cls.append(tokens[0].cls[0].cpu().numpy())
        clock.tick(f"{number + 1} of {len(source)} images")
    if skipped:
        text = "\n".join(skipped) + "\n"
        write_atomically(out / "skipped.txt", lambda stream: stream.write(text.encode()))
        watcher.message(f"{len(skipped)} of {len(source)} images could not be read; see {out / 'skipped.txt'}")
    if not kept:
        raise RekindleError(f"none of the {len(source)} images in {options.images} could be read")
    arrays = {
        "mean": np.stack(means),
        "paths": np.array([source.name(i) for i in kept]),
        "files": np.array(files),
    }
    _write_npz(out / "features.npz", **arrays, **({"cls": np.stack(cls)} if cls else {}))
    if options.pictures:
        drawn = draw_pictures(options, source, extractor, out)
        watcher.message(f"pictures: {', '.join(map(str, drawn))}")
    return Extracted(out, len(kept), len(skipped))


def _write_npz(path: Path, **arrays: Any) -> None:
    write_atomically(path, lambda stream: np.savez(stream, **arrays))
