# SPDX-License-Identifier: Apache-2.0
"""Base and adapted model on the same images and the same scales: which images, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from rekindle.adapters.saved import load_backbone, model_hash, read_description
from rekindle.core.errors import RekindleError, RequestError
from rekindle.data.images import UnreadableImage, find_images
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.data.published.named import open_data
from rekindle.drawing.pictures import Bytes, joint_colours
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.features.dense_features import resize_labels
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.verdict.telling import plain, signed
from rekindle.measuring.looking import (
    Look,
    attention_pictures,
    class_picture,
    look,
    on_best_device,
    place_of_interest,
    similar_to,
)
from rekindle.networks.backbone import Backbone
from rekindle.networks.options import NetworkOptions
from rekindle.report.comparisons import MeasuredModel
from rekindle.report.options import ReportOptions
from rekindle.report.page import Card, PicturePair
from rekindle.report.record import RunRecord

Why = Literal["typical", "worst", "best", "sample"]


@dataclass(frozen=True)
class Chosen:
    """An image that is shown: its name, why, its numbers, its bytes [3, H, W], and class ids [H, W] where they are known."""

    name: str
    why: Why
    note: str
    image: Tensor
    labels: Tensor | None = None


@dataclass
class ImageChoice:
    """The images, how they were chosen, at what size they are looked at, and how their classes are coloured."""

    images: list[Chosen] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size_px: int = 224
    colours: NDArray[np.uint8] | None = None
    ignore_index: int = 255


def draw_cards(
    record: RunRecord, measured: Sequence[MeasuredModel], options: ReportOptions, watcher: Watcher
) -> tuple[list[Card], list[str]]:
    """Return cards of the images, and notes on how they were chosen and scaled; what cannot be drawn is noted as missing."""
    if options.images == 0:
        record.missing.append("No image is shown, as --images 0 asks.")
        return [], []
    if record.description is None or record.options is None:
        return [], []
    try:
        base, adapted = load_pair(record, options)
    except RekindleError as error:
        record.missing.append(f"Base and adapted model could not be loaded, so their maps are not shown: {error}")
        return [], []
    choice = choose_images(record, measured, options)
    if not choice.images:
        return [], []
    watcher.message(f"looking at {len(choice.images)} images with base and adapted model")
    looks = [tuple(look(model, c.image, size_px=choice.size_px) for model in (base, adapted)) for c in choice.images]
    return _cards(choice, looks), choice.notes + _scales(looks)


def load_pair(record: RunRecord, options: ReportOptions) -> tuple[FeatureExtractor, FeatureExtractor]:
    """Load the base that a run started from, and its model, onto the best device. Raises RekindleError."""
    device = on_best_device()
    base, adapted = load_backbones(record, options.base)
    return FeatureExtractor(base, device=device), FeatureExtractor(adapted, device=device)


def load_backbones(record: RunRecord, moved_base: str) -> tuple[Backbone, Backbone]:
    """Load the base that a run started from (`moved_base` where it lies now, or empty), and its model. Raises RekindleError."""
    description = read_description(record.folder.path) if record.description is None else record.description
    if record.options is None:
        raise RequestError(f"{record.folder.path / 'config.yaml'} cannot be read, which says how the base was made")
    told, init = description["base"], record.options.init
    adapted, _ = load_backbone(record.folder.path, base=moved_base or None)
    network = NetworkOptions.model_validate(description["network"])
    base, _ = load_backbone(moved_base or told["name"], network, init=init, seed=record.options.seed)
    if model_hash(base) != told["sha256"]:
        raise RequestError(
            f"the run started from a base with hash {told['sha256'][:12]}, and {moved_base or told['name']} now has "
            f"{model_hash(base)[:12]}; name the right one with --base"
        )
    return base, adapted


def choose_images(record: RunRecord, measured: Sequence[MeasuredModel], options: ReportOptions) -> ImageChoice:
    """Choose by the change under the first segmentation protocol whose data can be opened, else evenly from the run's images."""
    reasons = []
    for found in measured:
        for row in found.rows:
            if row.score.kind != "mean-iou":
                continue
            data = options.data or found.comparison.data
            try:
                labelled: SegmentationFolder = open_data("segmentation", data, found.comparison.split)
                items, before, after = found.changes(row)
                return _by_change(found, row.protocol, row.metric, labelled, items, before, after, options.images)
            except RekindleError as error:
                reasons.append(f"{row.protocol}: {error}")
            break  # other protocols read the same data
    if reasons:
        record.missing.append(
            f"Worst and best images are not known ({reasons[0]}); images of the run are shown instead."
        )
    return _from_run(record, options.images)


def _by_change(
    found: MeasuredModel,
    protocol: str,
    metric: str,
    labelled: SegmentationFolder,
    items: Sequence[str],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    count: int,
) -> ImageChoice:
    places = {item: index for index, item in enumerate(labelled.items)}
    absent = [item for item in items if item not in places]
    if absent:
        raise RequestError(f"{absent[0]} is not among the images of {labelled.root}; was the data changed?")
    change = after - before
    known = np.flatnonzero(~np.isnan(change))
    ranked = known[np.argsort(change[known], kind="stable")]
    result = found.results(found.model, protocol)[0]
    choice = ImageChoice(
        notes=[
            f"Images are chosen by the change of their own {metric} under {protocol} ({found.place}; adapted minus base, mean "
            f"over {len(found.comparison.seeds)} seeds, n = {len(ranked)}): the extremes of that many images, which chance "
            "stretches, and the middle one."
        ],
        size_px=int(result.config.get("size_px", 224)),
        colours=_class_colours(labelled),
        ignore_index=labelled.ignore_index,
    )
    for index, why in extremes(len(ranked), count):
        item = int(ranked[index])
        place = places[items[item]]
        image, labels = labelled.read(place)
        note = (
            f"{metric} of this image {plain(metric, float(before[item]))} before, {plain(metric, float(after[item]))} after "
            f"({signed(metric, float(change[item]), unit=True)}); rank {index + 1} of {len(ranked)} from the worst change."
        )
        choice.images.append(Chosen(items[item], why, note, image, labels))
    return choice


def extremes(total: int, count: int) -> list[tuple[int, Why]]:
    """Return places in an ascending order of `total`: the middle one first, then the lowest, then the highest, `count` in all.

    Example:
        >>> extremes(100, 5)
        [(50, 'typical'), (0, 'worst'), (1, 'worst'), (99, 'best'), (98, 'best')]

    """
    if total == 0 or count == 0:
        return []
    rest = min(count, total) - 1
    low = min((rest + 1) // 2, total // 2)
    high = rest - low
    found: list[tuple[int, Why]] = [(total // 2, "typical")]
    found += [(i, "worst") for i in range(low)]
    return found + [(total - 1 - i, "best") for i in range(high) if total - 1 - i > total // 2]


def _from_run(record: RunRecord, count: int) -> ImageChoice:
    assert record.options is not None
    choice = ImageChoice(size_px=record.options.views.global_size_px)
    try:
        source = find_images(record.options.images)
    except RekindleError as error:
        record.missing.append(f"The images of the run are not there any more, so no maps are shown: {error}")
        return choice
    total = len(source)
    for number in range(min(count, total)):
        index = number * total // min(count, total)
        try:
            image = source.read(index, max_pixels=record.options.data.max_pixels)
        except UnreadableImage:
            continue  # the run lists it as skipped
        choice.images.append(
            Chosen(source.name(index).rsplit("/", 1)[-1], "sample", f"Image {index + 1} of {total}.", image)
        )
    choice.notes.append(
        "The images are taken evenly from those that the run was trained on; they are not chosen by any result."
    )
    return choice


def _cards(choice: ImageChoice, looks: Sequence[tuple[Look, ...]]) -> list[Card]:
    tokens = _token_pairs(looks)
    with_attention = all(seen.attention is not None for sides in looks for seen in sides)
    attention = attention_pictures(looks)[0] if with_attention else None
    cards = []
    for number, (chosen, (before, after)) in enumerate(zip(choice.images, looks, strict=True)):
        pairs = [PicturePair("tokens", "patch tokens, joint PCA", *tokens[number], is_grid=True)]
        if attention is not None:
            first, second = attention[number]
            pairs.append(PicturePair("attention", "attention of the class token", first, second))
        ids = None if chosen.labels is None else resize_labels(chosen.labels, before.image.shape[:2]).numpy()
        place = place_of_interest(ids, choice.ignore_index)
        first, second = (similar_to(seen, place).picture for seen in (before, after))
        pairs.append(PicturePair("similarity", "similar to the marked place", first, second))
        extra: dict[str, Bytes] = {}
        if ids is not None and choice.colours is not None:
            extra["true classes"] = class_picture(ids, choice.colours, choice.ignore_index)
        cards.append(Card(chosen.name, chosen.why, chosen.note, before.image, place, extra, pairs))
    return cards


def _token_pairs(looks: Sequence[tuple[Look, ...]]) -> list[tuple[Bytes, Bytes]]:
    """Colours of the patch tokens: one projection for all images and both models, if these have one width."""
    sides = [[sides[model].patches for sides in looks] for model in (0, 1)]
    if _is_joint(looks):
        colours = joint_colours([*sides[0], *sides[1]])
    else:
        colours = [*joint_colours(sides[0]), *joint_colours(sides[1])]
    as_bytes = [(c * 255 + 0.5).astype(np.uint8) for c in colours]
    return list(zip(as_bytes[: len(looks)], as_bytes[len(looks) :], strict=True))


def _is_joint(looks: Sequence[tuple[Look, ...]]) -> bool:
    return bool(looks[0][0].patches.shape[-1] == looks[0][1].patches.shape[-1])


def _scales(looks: Sequence[tuple[Look, ...]]) -> list[str]:
    told = (
        f"Patch tokens: three principal components as red, green and blue, fitted to base and adapted model together over all "
        f"{len(looks)} images, so that a colour means the same everywhere."
        if _is_joint(looks)
        else "Patch tokens: three principal components as red, green and blue. The two models have tokens of different width, so "
        "they are fitted apart, and their colours cannot be compared."
    )
    notes = [told]
    if all(seen.attention is not None for sides in looks for seen in sides):
        _, high = attention_pictures(looks)
        notes.append(
            f"Attention of the class token in the last block, mean over the heads: dark is 0, pale is {high:.3f} and more, for "
            "both models and all images."
        )
    else:
        notes.append("A model has no class token, so there is no attention to show.")
    notes.append(
        "Similarity: cosine of every patch with the one at the ring, from 0 (dark) to 1 (pale). The ring lies deepest inside the "
        "smallest true class that covers a hundredth of the image, or in the middle where there are no labels."
    )
    return notes


def _class_colours(data: SegmentationFolder) -> NDArray[np.uint8]:
    if data.colors is not None:
        return np.asarray(data.colors, dtype=np.uint8)
    wheel = (np.asarray(colormaps["tab20"].colors) * 255).astype(np.uint8)  # type: ignore[attr-defined]
    return wheel[np.arange(data.num_classes) % len(wheel)]
