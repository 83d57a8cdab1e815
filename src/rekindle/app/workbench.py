# SPDX-License-Identifier: Apache-2.0
"""The models of the app and the images that were opened with them. No Gradio here."""

from __future__ import annotations

import hashlib
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.decoding import UnreadableImage, read_image
from rekindle.data.images import SUFFIXES
from rekindle.drawing.pictures import Bytes, joint_colours, overlay
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.measuring.looking import Look
from rekindle.measuring.models import load_model
from rekindle.measuring.options import ModelOptions
from rekindle.networks.checkpoints.folders import is_model_folder
from rekindle.networks.options import NetworkOptions
from rekindle.prompting.answer import (
    Mask,
    Prompt,
    Scores,
    contour_picture,
    mask_of,
    score_patches,
    score_picture,
)
from rekindle.prompting.job import look_within
from rekindle.prompting.options import AppOptions, Edges
from rekindle.report.images import load_backbones
from rekindle.report.record import read_record

SHOWN_PX = 768  # longer side of a picture in the page
HEAD_PX = 320  # longer side of the picture of one head
MOST_KEPT = 8  # images whose features stay in memory


@dataclass(frozen=True)
class ShownModel:
    """A model: what the page calls it, the arguments that name it on the command line, and the network."""

    title: str
    arguments: tuple[str, ...]
    extractor: FeatureExtractor


@dataclass(frozen=True)
class Opened:
    """An image that was opened.

    Attributes:
        name: of its file.
        size: height and width of the upright image.
        picture: bytes [H, W, 3], its longer side SHOWN_PX.
        looks: of each side.
        seconds: that reading and looking took.

    """

    name: str
    size: tuple[int, int]
    picture: Bytes
    looks: tuple[Look, ...]
    seconds: float


@dataclass(frozen=True)
class Shown:
    """What one side answers: scores of the patches, and pictures of the size of the opened one."""

    scores: Scores
    similarity: Bytes
    contour: Bytes


def load_sides(options: AppOptions, watcher: Watcher) -> list[ShownModel]:
    """Load the model, and before it its base where the model is a run. Raises RequestError, RekindleError.

    A run whose base cannot be had is shown alone, which is said.
    """
    if not options.model:
        raise RequestError("MODEL is missing; `rekindle app --help` says what it may be")
    alone = (options.model, *_arguments(options, options.network, options.init))
    if not Path(options.model).is_dir() or is_model_folder(Path(options.model)):
        if options.base:
            raise RequestError(f"--base {options.base}: {options.model} is no run folder, so it has no base")
        return [ShownModel("model", alone, load_model(options.model, options, watcher).extractor)]
    try:
        record = read_record(options.model)
        base, adapted = load_backbones(record, options.base)
    except RekindleError as error:
        if options.base:
            raise
        extractor = load_model(options.model, options, watcher).extractor  # raises where the run itself is at fault
        watcher.message(f"the base is not shown: {error}")
        return [ShownModel("adapted", alone, extractor)]
    assert record.description is not None and record.options is not None
    told = options.base or str(record.description["base"]["name"])
    network = NetworkOptions.model_validate(record.description["network"])
    return [
        ShownModel(
            "base",
            (told, *_arguments(options, network, record.options.init)),
            load_model(told, options, watcher, base).extractor,
        ),
        ShownModel("adapted", alone, load_model(options.model, options, watcher, adapted).extractor),
    ]


def _arguments(options: ModelOptions, network: NetworkOptions, init: str) -> list[str]:
    """What the command line must say beside the model's name to load it alike."""
    words = ["--init", init] if init != "pretrained" else []
    words += ["--precision", options.precision] if options.precision != "fp32" else []
    for name, value in network.model_dump(
        exclude_defaults=True, exclude={"drop_path"}
    ).items():  # only training reads that
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--network.{option}" if value else f"--network.no-{option}")
        else:
            words += [f"--network.{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


class Workbench:
    """Opens images, each once for all models, and answers prompts. Several threads may call it.

    Args:
        sides: the models.
        size_px: short side that they get.
        max_pixels: most that an image may have.

    """

    def __init__(self, sides: Sequence[ShownModel], *, size_px: int, max_pixels: int) -> None:
        self.sides = tuple(sides)
        self.size_px = size_px
        self._max_pixels = max_pixels
        self._kept: OrderedDict[tuple[str, str], Opened] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str | Path) -> Opened:
        """Decode an image file and look at it with every model; an image that was just open is there at once.

        Raises: UnreadableImage, RequestError.
        """
        start, name = time.perf_counter(), Path(path).name
        if Path(path).suffix.lower() not in SUFFIXES:
            raise UnreadableImage(name, f"the page takes {' '.join(sorted(SUFFIXES))}")
        content = Path(path).read_bytes()
        key = (hashlib.sha256(content).hexdigest(), name)
        with self._lock:  # one image at a time: two large ones may not fit into memory together
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            image = read_image(content, name=name, max_pixels=self._max_pixels)
            looks = tuple(look_within(side.extractor, image, size_px=self.size_px) for side in self.sides)
            size = (image.shape[1], image.shape[2])
            picture = scaled(image.permute(1, 2, 0).numpy(), SHOWN_PX)
            opened = Opened(name, size, picture, looks, time.perf_counter() - start)
            self._kept[key] = opened
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return opened

    def command(
        self, opened: Opened, prompts: Sequence[Prompt], threshold: float, edges: Edges, side: ShownModel
    ) -> str:
        """Return the command that gives the same mask."""
        words = ["rekindle", "prompt", *side.arguments, "--image", opened.name]
        for option, is_added in (("--add", True), ("--subtract", False)):
            chosen = [p for p in prompts if p.is_added == is_added]
            words += [option, *(str(n) for p in chosen for n in (p.row, p.column))] if chosen else []
        words += [
            "--threshold",
            f"{threshold:g}",
            "--edges",
            edges,
            "--size-px",
            str(self.size_px),
            "--out",
            "prompted",
        ]
        return shlex.join(words)


def scaled(pixels: Bytes, longer_px: int) -> Bytes:
    """Return a picture [H, W, 3] whose longer side has this many pixels, smaller or larger than it was."""
    share = longer_px / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * share)), max(1, round(pixels.shape[0] * share)))
    how = Image.Resampling.LANCZOS if share < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how, reducing_gap=2.0))


def answer(opened: Opened, prompts: Sequence[Prompt], threshold: float, edges: Edges) -> list[Shown]:
    """Return what every side answers. Raises RequestError for a place outside the image."""
    found = []
    size = (opened.picture.shape[0], opened.picture.shape[1])
    for seen in opened.looks:
        scores = score_patches(seen, prompts, opened.size)
        contour = contour_picture(opened.picture, mask_of(scores, size, threshold, edges))
        found.append(Shown(scores, score_picture(opened.picture, scores), contour))
    return found


def full_mask(opened: Opened, shown: Shown, threshold: float, edges: Edges) -> Mask:
    """Return a side's mask at the size of the image."""
    return mask_of(shown.scores, opened.size, threshold, edges)


def with_prompts(opened: Opened, prompts: Sequence[Prompt]) -> Bytes:
    """Return the picture with a disc at each place: plus where it was added, minus where it was subtracted."""
    picture = Image.fromarray(opened.picture)
    draw, radius = ImageDraw.Draw(picture), 12
    scale = opened.picture.shape[0] / opened.size[0]
    for prompt in prompts:
        x, y = (prompt.column + 0.5) * scale, (prompt.row + 0.5) * scale
        fill, ink = ("white", "black") if prompt.is_added else ("black", "white")
        draw.ellipse((x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2), fill=ink)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        draw.line((x - 7, y, x + 7, y), fill=ink, width=3)
        if prompt.is_added:
            draw.line((x, y - 7, x, y + 7), fill=ink, width=3)
    return np.asarray(picture)


def token_pictures(opened: Opened) -> list[Bytes]:
    """Return each side's patch tokens as colours, fitted together where they have one width."""
    patches = [seen.patches for seen in opened.looks]
    is_joint = len({p.shape[-1] for p in patches}) == 1
    colours = joint_colours(patches) if is_joint else [joint_colours([p])[0] for p in patches]
    size = (opened.picture.shape[1], opened.picture.shape[0])
    grids = [Image.fromarray((c * 255 + 0.5).astype(np.uint8)) for c in colours]
    return [np.asarray(grid.resize(size, Image.Resampling.NEAREST)) for grid in grids]


def head_pictures(opened: Opened) -> list[list[Bytes]]:
    """Return a picture of every head of every side, one scale for all: dark is 0, pale the 99.5th percentile.

    A side without a class token has none.
    """
    maps = [seen.heads for seen in opened.looks if seen.heads is not None]
    high = float(np.percentile(np.concatenate([m.ravel() for m in maps]), 99.5)) if maps else 0.0
    image = scaled(opened.picture, HEAD_PX)[None]
    return [
        [] if seen.heads is None else [overlay(image, head[None], low=0.0, high=high)[0] for head in seen.heads]
        for seen in opened.looks
    ]
