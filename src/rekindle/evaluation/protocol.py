# SPDX-License-Identifier: Apache-2.0
"""What every segmentation protocol is: features once per model, then one outcome per seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from rekindle.core.options import Options
from rekindle.data.segmentation import SegmentationFolder
from rekindle.evaluation.extractors import FeatureExtractor
from rekindle.evaluation.result import Statistics
from rekindle.evaluation.segmentation_metrics import segmentation_metrics

Settings = TypeVar("Settings", bound=Options)
News = Callable[[str], None]


@dataclass(frozen=True)
class SegmentationOutcome:
    """What one seed gave.

    Attributes:
        items: names of the images.
        statistics: [n, 3, C] pixel counts of each image; see `segmentation_metrics`.
        class_names: one per class.
        counts: what went in (images, training images, pixels, ...).

    """

    items: list[str]
    statistics: Statistics
    class_names: list[str]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all images together."""
        return segmentation_metrics(self.statistics, self.class_names)


class SegmentationProtocol(ABC, Generic[Settings]):
    """One model on one data set under one protocol.

    Args:
        config: the protocol's options.
        extractor: the network.
        train: labelled images to learn or to remember.
        test: labelled images that the metrics are of; the same classes.
        news: takes one line of progress.

    """

    Config: ClassVar[type[Options]]

    def __init__(
        self,
        config: Settings,
        extractor: FeatureExtractor,
        train: SegmentationFolder,
        test: SegmentationFolder,
        news: News = lambda text: None,
    ) -> None:
        self.config, self.extractor = config, extractor
        self.train, self.test, self.news = train, test, news

    @abstractmethod
    def check(self) -> None:
        """Raise RequestError for options that do not fit model or data, before any feature is extracted."""

    @abstractmethod
    def prepare(self) -> None:
        """Extract what all seeds share."""

    @abstractmethod
    def run(self, seed: int) -> SegmentationOutcome:
        """Return one seed's outcome; `prepare` has been called."""

    def outcome(self, statistics: Statistics, **counts: int) -> SegmentationOutcome:
        """Put names and the usual counts to the statistics of the test images."""
        sizes = {
            "images": len(self.test),
            "train_images": len(self.train),
            "classes": self.test.num_classes,
            "pixels": int(statistics[:, 1].sum()),
        }
        return SegmentationOutcome(self.test.items, statistics, self.test.names, sizes | counts)
