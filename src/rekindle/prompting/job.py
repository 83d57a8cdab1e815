# SPDX-License-Identifier: Apache-2.0
"""`rekindle prompt`: the files of one question to one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.data.decoding import read_image
from rekindle.drawing.pictures import write_arrays, write_picture
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.features.dense_features import fitted_size
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.measuring.looking import Look, look
from rekindle.measuring.models import load_model
from rekindle.prompting.answer import Mask, Prompt, contour_picture, mask_of, score_patches, score_picture
from rekindle.prompting.options import PromptOptions

MOST_PATCHES = 16_384  # of one image: 128 x 128; attention grows with the square of it


@dataclass(frozen=True)
class Prompted:
    """What `prompt` wrote.

    Attributes:
        out: the folder.
        size: height and width of the image.
        grid: rows and columns of patches.
        share: of the image that the mask covers, in [0, 1].

    """

    out: Path
    size: tuple[int, int]
    grid: tuple[int, int]
    share: float


def run_prompt(options: PromptOptions, *, watcher: Watcher | None = None) -> Prompted:
    """Do what `rekindle prompt` does: map.png, mask.png and contour.png of the image's size, and prompt.npz.

    Raises: RequestError, RekindleError.
    """
    watcher = watcher or LoggingWatcher()
    for name, value in {"MODEL": options.model, "--image": options.image, "--out": options.out}.items():
        if not value:
            raise RequestError(f"{name} is missing; `rekindle prompt --help` says what it may be")
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"--out {out} is not an empty folder; choose another one, or clear it")
    prompts = prompts_of(options.add, options.subtract)
    image = read_image(options.image, max_pixels=options.max_pixels)
    size = (image.shape[1], image.shape[2])
    seen = look_within(load_model(options.model, options, watcher).extractor, image, size_px=options.size_px)
    scores = score_patches(seen, prompts, size)
    mask = mask_of(scores, size, options.threshold, options.edges)
    pixels = image.permute(1, 2, 0).numpy()
    write_picture(out / "map.png", score_picture(pixels, scores))
    write_picture(out / "contour.png", contour_picture(pixels, mask))
    write_mask(out / "mask.png", mask)
    places = np.array([(p.row, p.column, 1 if p.is_added else -1) for p in prompts])
    write_arrays(out / "prompt.npz", scores=scores, prompts=places, threshold=np.array(options.threshold))
    return Prompted(out, size, (scores.shape[0], scores.shape[1]), float(mask.mean()))


def prompts_of(added: Sequence[tuple[int, int]], subtracted: Sequence[tuple[int, int]]) -> list[Prompt]:
    """Return prompts from pairs of row and column."""
    return [Prompt(*place) for place in added] + [Prompt(*place, is_added=False) for place in subtracted]


def look_within(extractor: FeatureExtractor, image: Tensor, *, size_px: int) -> Look:
    """Look at an image [3, H, W], unless it is so long and narrow that memory might not hold its patches (RequestError)."""
    height, width = fitted_size(image.shape[1], image.shape[2], size_px, extractor.patch_size)
    count = height * width // extractor.patch_size**2
    if count > MOST_PATCHES:
        raise RequestError(
            f"an image of {image.shape[1]} x {image.shape[2]} px at --size-px {size_px} has {count} patches, more than "
            f"{MOST_PATCHES}; cut a part out of it, or take a smaller --size-px"
        )
    return look(extractor, image, size_px=size_px)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask [H, W] as a PNG of one channel: 255 within, 0 outside."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    write_atomically(path, lambda stream: picture.save(stream, format="PNG", compress_level=1))
