# SPDX-License-Identifier: Apache-2.0
"""Pictures of features from the command line: `rekindle extract --pictures pca clusters attention film`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rekindle.core.errors import RequestError
from rekindle.data.images import ImageSource, UnreadableImage
from rekindle.drawing.attention_pictures import write_attention, write_film
from rekindle.drawing.token_pictures import cluster_tokens, write_clusters, write_principal
from rekindle.evaluation.features.dense_features import BATCH, fitted_size, resize_image
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.measuring.options import ExtractOptions
from rekindle.networks.tokens import Tokens

MOST = 200  # images of which pictures are drawn: the components are fitted to all of them together
Frame = NDArray[np.uint8]


def check_pictures(options: ExtractOptions, extractor: FeatureExtractor) -> None:
    """Raise RequestError for pictures of attention that the network cannot give."""
    wanted = {"attention", "film"} & {*options.pictures}
    if wanted and not extractor.has_class_token:
        raise RequestError(
            f"--pictures {min(wanted)} shows the attention of the class token, and {options.model} has none; use pca or clusters"
        )


def draw_pictures(options: ExtractOptions, source: ImageSource, extractor: FeatureExtractor, out: Path) -> list[Path]:
    """Write the pictures that were asked for of the first readable images, and return the folders and films.

    `pca/` one projection of all images, `clusters/` k-means of each by itself, `attention/<image>/` heads, their mean and the
    composite of the strongest, `film.gif` the mean attention over the images in order, as frames of one size.
    """
    wanted = {*options.pictures}
    tokens: dict[str, NDArray[np.float32]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    frames: list[Frame] = []
    attention: list[NDArray[np.float32]] = []
    for name, frame, found in _looked(options, source, extractor):
        patches = found.patches[0].cpu().numpy()
        tokens[name], sizes[name] = patches, (frame.shape[0], frame.shape[1])
        if "clusters" in wanted:
            clusters = cluster_tokens(patches, num_clusters=options.clusters)
            write_clusters(out / "clusters" / f"{name}.png", clusters, sizes[name])
        if wanted & {"attention", "film"}:
            assert found.cls_attention is not None
            maps = found.cls_attention[0].cpu().numpy()
            if "attention" in wanted:
                write_attention(out / "attention" / name, frame, maps)
            frames.append(frame)
            attention.append(maps)
    if "pca" in wanted:
        write_principal(out / "pca", tokens, sizes)
    if "film" in wanted:
        if len({frame.shape for frame in frames}) > 1:
            raise RequestError("--pictures film needs frames of one size; these images differ after resizing")
        write_film(out / "film.gif", frames, attention)
    return [out / ("film.gif" if kind == "film" else kind) for kind in dict.fromkeys(options.pictures)]


def _looked(
    options: ExtractOptions, source: ImageSource, extractor: FeatureExtractor
) -> Iterator[tuple[str, Frame, Tokens]]:
    """Yield name, resized image [H, W, 3] and tokens with attention of the first readable images."""
    waiting: list[tuple[str, torch.Tensor]] = []
    drawn = 0
    for index in range(len(source)):
        if drawn + len(waiting) == MOST:
            break
        try:
            image = source.read(index)
        except UnreadableImage:
            continue  # `extract` lists them
        size = fitted_size(image.shape[1], image.shape[2], options.size_px, extractor.patch_size)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.name(index)).stem)[:80]
        if waiting and (len(waiting) == BATCH or waiting[0][1].shape[1:] != size):
            yield from _pass(waiting, extractor)
            drawn, waiting = drawn + len(waiting), []
        waiting.append((f"{index:06}-{stem}", resize_image(image, size)))
    yield from _pass(waiting, extractor)


def _pass(waiting: list[tuple[str, torch.Tensor]], extractor: FeatureExtractor) -> Iterator[tuple[str, Frame, Tokens]]:
    if waiting:
        tokens = extractor.attending(torch.stack([image for _, image in waiting])).chunk(len(waiting))
        for (name, image), own in zip(waiting, tokens, strict=True):
            yield name, image.permute(1, 2, 0).numpy(), own
