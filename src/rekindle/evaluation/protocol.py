# SPDX-License-Identifier: Apache-2.0
"""Protocol, the base of all: one model on one data set, one outcome per seed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar, runtime_checkable
from typing import Protocol as Interface

import numpy as np
import torch

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.rng import generator
from rekindle.data.labelled.classification import ClassFolder
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.score import Rows, Score, shown
from rekindle.evaluation.training.predicted_maps import PredictedMaps
from rekindle.networks.backbone import Backbone

Settings = TypeVar("Settings", bound=Options)
Message = Callable[[str], None]


Table = tuple[list[str], list[list[str | int | float]]]
"""A header, and lines."""


@runtime_checkable
class Split(Interface):
    """One split of some data; each kind of data has its reader (`rekindle.data.KINDS`)."""

    items: list[str]

    def check(self) -> None:
        """Raise RequestError that lists what is wrong with the files."""


Data = TypeVar("Data", bound=Split)


@dataclass(frozen=True)
class Outcome:
    """What one seed gave.

    Attributes:
        items: what a resample draws (images, queries, ...), by name.
        rows: [n, F], the values of each; `score.columns` names them.
        score: what they come to together.
        counts: what went in (images, training images, pixels, ...).
        extras: further metrics, which have no interval.
        tables: by name, a header and lines of what is finer than items; written beside the result.
        maps: what was kept of predicted class maps, where there are any.
        backbone: as it was fine-tuned, where that was to be kept; `counts` has the "steps" then.

    """

    items: list[str]
    rows: Rows
    score: Score
    counts: dict[str, int] = field(default_factory=dict)
    extras: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    maps: PredictedMaps | None = None
    backbone: Backbone | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all items together, the headline first."""
        return self.score.metrics(self.rows) | self.extras

    @property
    def shown(self) -> str:
        """The headline with its name, as people read it."""
        return f"{self.score.name} {shown(self.score.name, self.score.value(self.rows))}"


@dataclass(frozen=True)
class TrainingPart:
    """Which of the training items a seed learns from: label efficiency, few-shot folds.

    Attributes:
        fraction: share of them; each seed draws its own, and a smaller share of one seed is part of a larger one.
        listed: names to learn from instead, for all seeds; empty for none.
        shots: so many images of each class instead (LOCA, table 2b: 10), drawn and nested like shares; 0 for all.

    """

    fraction: float = 1.0
    listed: tuple[str, ...] = ()
    shots: int = 0

    @property
    def is_whole(self) -> bool:
        """Every item, for every seed."""
        return self.fraction == 1.0 and not self.listed and not self.shots

    def indices(self, items: Sequence[str], seed: int) -> list[int]:
        """Return positions in `items`, ascending; floor(fraction * n) of them, at least one."""
        if self.listed:
            place = {name: i for i, name in enumerate(items)}
            unknown = [name for name in self.listed if name not in place]
            if unknown:
                raise RequestError(f"the training list names '{unknown[0]}', which is not in the training split")
            return sorted(place[name] for name in self.listed)
        count = max(1, int(self.fraction * len(items)))
        return sorted(torch.randperm(len(items), generator=generator(seed, "fold")).tolist()[:count])

    def of_each_class(self, data: Split, seed: int) -> list[int]:
        """Return positions of `shots` items of each class, ascending.

        Raises: RequestError for data without classes, and for a class with too few items.
        """
        if not isinstance(data, ClassFolder):
            raise RequestError(
                f"--train-shots {self.shots} counts images of a class, and this protocol's data have no class for a whole image; "
                "use --train-fraction, or a protocol that reads classes (knn, linear-probe, finetune)"
            )
        chosen: list[int] = []
        for number, name in enumerate(data.names):
            own = (data.labels == number).nonzero()[:, 0]
            if len(own) < self.shots:
                raise RequestError(
                    f"--train-shots {self.shots}: the training split has {len(own)} images of the class '{name}'; lower it"
                )
            order = torch.randperm(len(own), generator=generator(seed, "shots", number))
            chosen += own[order[: self.shots]].tolist()
        return sorted(chosen)


class Protocol(ABC, Generic[Settings, Data]):
    """One model on one data set under one protocol.

    Args:
        config: the protocol's options.
        extractor: the network.
        train: labelled data to learn or to remember; None for a protocol that needs none.
        test: data that the metrics are of; the same classes.
        message: takes one line of progress.
        part: which of the training items each seed learns from.
        features: of the network, shared with other protocols.
        keep_images: how many of the worst and of the best test images an outcome keeps, where it has class maps.
        keep_backbone: an outcome keeps the backbone that was trained.

    """

    Config: ClassVar[type[Options]]
    DATA: ClassVar[str]
    """Which kind of data it reads: a key of `rekindle.data.KINDS`."""
    USES_TRAIN: ClassVar[bool] = True
    """Whether there is anything to learn or to remember."""
    UNGROUPED: ClassVar[str] = ""
    """Why its items are in no group of images (`--group-by`), and what to measure with instead; empty where each item has the
    name of one image, query or video of `test`."""

    def __init__(
        self,
        config: Settings,
        extractor: FeatureExtractor,
        train: Data | None,
        test: Data,
        message: Message = lambda text: None,
        part: TrainingPart = TrainingPart(),
        features: SharedFeatures | None = None,
        keep_images: int = 0,
        keep_backbone: bool = False,
    ) -> None:
        self.features = features or SharedFeatures(extractor)
        self.config, self.extractor = config, extractor
        self._train, self.test, self.message, self.part = train, test, message, part
        self.keep_images, self.keep_backbone = keep_images, keep_backbone

    @property
    def train(self) -> Data:
        """Labelled data to learn or to remember."""
        assert self._train is not None, f"{type(self).__name__} was given no training data"
        return self._train

    def training_indices(self, seed: int) -> list[int]:
        """Positions of the training items that a seed learns from."""
        if self.part.shots:
            return self.part.of_each_class(self.train, seed)
        return self.part.indices(self.train.items, seed)

    def learning_from(self, part: TrainingPart) -> Protocol[Settings, Data]:
        """Return the same protocol, with what `prepare` made, that learns from another part of the training items."""
        other = copy.copy(self)
        other.part = part
        return other

    @abstractmethod
    def check(self) -> None:
        """Raise RequestError for options that do not fit model or data, before any feature is extracted."""

    def nothing_to_save(self) -> str:
        """Why no fine-tuned backbone can be kept, as a clause; empty for a protocol that trains one with these options."""
        return "it trains none"

    def kept(self, backbone: Backbone) -> Backbone | None:
        """Return what an outcome holds of a trained backbone: nothing, unless it is to be kept."""
        return backbone if self.keep_backbone else None

    @abstractmethod
    def prepare(self) -> None:
        """Extract what all seeds share."""

    @abstractmethod
    def run(self, seed: int) -> Outcome:
        """Return one seed's outcome; `prepare` has been called."""


class SegmentationProtocol(Protocol[Settings, SegmentationFolder]):
    """A protocol whose result is a map of classes for every test image."""

    DATA = "segmentation"

    def outcome(
        self,
        statistics: Rows,
        seed: int,
        *,
        headline: str = "mIoU",
        extras: dict[str, float] | None = None,
        maps: PredictedMaps | None = None,
        backbone: Backbone | None = None,
        **counts: int,
    ) -> Outcome:
        """Put names and the usual counts to the pixel counts [n, 3, C] of the test images; see `segmentation_metrics`."""
        sizes = {
            "images": len(self.test),
            "train_images": len(self.training_indices(seed)),
            "classes": self.test.num_classes,
            "pixels": int(statistics[:, 1].sum()),
        }
        rows = np.reshape(statistics, (len(statistics), -1))
        score = MeanIou(class_names=self.test.names, headline=headline)
        return Outcome(self.test.items, rows, score, sizes | counts, extras or {}, maps=maps, backbone=backbone)

    def maps(self) -> PredictedMaps:
        """Return what takes the maps of the test images and counts them."""
        return PredictedMaps(self.test, self.keep_images)
