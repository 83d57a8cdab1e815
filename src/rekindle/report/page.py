# SPDX-License-Identifier: Apache-2.0
"""Content of a report before it is a page. What is not there is left empty, and why stands in `missing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rekindle.drawing.pictures import Bytes
from rekindle.report.panels import Panel
from rekindle.report.verdicts import VerdictRow

Facts = Mapping[str, str]


@dataclass(frozen=True)
class PicturePair:
    """One kind of map of one image, of both models on one scale.

    Attributes:
        kind: tokens, attention, similarity.
        title: in words.
        base, adapted: pictures of one size; a map may be as small as its grid.
        is_grid: each pixel is a patch, to be shown as a square.

    """

    kind: str
    title: str
    base: Bytes
    adapted: Bytes
    is_grid: bool = False


@dataclass(frozen=True)
class Card:
    """One image, and what both models see in it.

    Attributes:
        name: of the image.
        why: why it is shown (worst, best, ...).
        note: its own numbers.
        image: bytes [H, W, 3].
        place: (y, x) of the place that similarity is asked for, as shares of the image.
        extra: title -> further pictures of the image alone, such as its true classes.
        pairs: base and adapted.

    """

    name: str
    why: Literal["typical", "worst", "best", "sample"]
    note: str
    image: Bytes
    place: tuple[float, float]
    extra: Mapping[str, Bytes]
    pairs: Sequence[PicturePair]


@dataclass(frozen=True)
class Figure:
    """A single picture with what it shows."""

    title: str
    caption: str
    pixels: Bytes
    kind: Literal["photo", "map"] = "photo"


@dataclass(frozen=True)
class MetricLine:
    """One metric of both models: means and standard deviations over the seeds; `part` is the class it is of, or empty."""

    protocol: str
    data: str
    metric: str
    base: float
    base_std: float
    model: float
    model_std: float
    seeds: int


@dataclass(frozen=True)
class ClassTable:
    """Base, adapted and difference of each class under one protocol (name -> three numbers; None where it is not known)."""

    protocol: str
    data: str
    metric: str
    rows: Mapping[str, tuple[float | None, float | None, float]]


@dataclass(frozen=True)
class Setting:
    """One option of a run: its value as text, what set it, and why."""

    name: str
    value: str
    source: str
    why: str = ""


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        title: headline of the page.
        lead: what was done, one or two sentences.
        rows: one verdict per protocol.
        missing: what the page lacks, and why.
        compared: which comparisons are shown.
        notes: what to know beside their verdicts.
        metrics, classes: numbers of the comparisons.
        cards: images with both models' maps; the first is shown at the top.
        maps_note: how the maps are scaled, and of what.
        curves: heading -> panels.
        constants: what did not change during the run, by name.
        warnings: what the run warned of.
        views: what the model was shown in training.
        drawn: what the method drew.
        predicted: what the heads of the comparisons drew: confusion matrices, labelled images.
        skipped: images that could not be read.
        cost, environment, origin: facts.
        commands: title -> what reproduces it.
        settings: every option.
        settings_note: where they come from.

    """

    title: str
    lead: str
    rows: Sequence[VerdictRow] = ()
    missing: Sequence[str] = ()
    compared: Sequence[str] = ()
    notes: Sequence[str] = ()
    metrics: Sequence[MetricLine] = ()
    classes: Sequence[ClassTable] = ()
    cards: Sequence[Card] = ()
    maps_note: Sequence[str] = ()
    curves: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    constants: Facts = field(default_factory=dict)
    warnings: Sequence[str] = ()
    views: Sequence[Figure] = ()
    drawn: Sequence[Figure] = ()
    predicted: Sequence[Figure] = ()
    skipped: Sequence[str] = ()
    cost: Facts = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)
    origin: Facts = field(default_factory=dict)
    commands: Facts = field(default_factory=dict)
    settings: Sequence[Setting] = ()
    settings_note: str = ""


@dataclass(frozen=True)
class RunLine:
    """One run in the table of several: facts by column, and its verdicts by (protocol, data)."""

    name: str
    facts: Mapping[str, str | float | None]
    rows: Sequence[VerdictRow]


@dataclass(frozen=True)
class Overview:
    """Several runs side by side.

    Attributes:
        title: headline.
        lead: what is compared.
        runs: a line each.
        missing: what the page lacks.
        curves: heading -> panels with a line per run.
        notes: how far the runs can be compared.
        commands: title -> what reproduces each.
    """

    title: str
    lead: str
    runs: Sequence[RunLine]
    missing: Sequence[str] = ()
    curves: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    commands: Facts = field(default_factory=dict)
