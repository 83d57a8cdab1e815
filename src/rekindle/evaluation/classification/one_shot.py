# SPDX-License-Identifier: Apache-2.0
"""Episodes of a few classes with one labelled image each (E5; MMC, table 8). Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.classification.options import OneShotOptions
from rekindle.evaluation.features.descriptors import check_descriptor, check_image_side, image_descriptors
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.threshold_scores import FewShot

THRESHOLDS = [round(0.1 * t, 1) for t in range(1, 10)]
CHUNK = 100  # episodes whose similarities are computed at once


@dataclass(frozen=True)
class Episode:
    """Positions of images among those of the split.

    Attributes:
        supports: labelled images [ways, shots].
        queries: images to classify [ways, queries]; none is a support.

    """

    supports: Tensor
    queries: Tensor


def draw_episode(members: list[Tensor], options: OneShotOptions, source: torch.Generator) -> Episode:
    """Draw distinct classes, and of each distinct images. `members` holds the positions of each class's images."""
    classes = torch.randperm(len(members), generator=source)[: options.ways].tolist()
    wanted = options.shots + options.queries
    drawn = torch.stack([members[c][torch.randperm(len(members[c]), generator=source)[:wanted]] for c in classes])
    return Episode(drawn[:, : options.shots], drawn[:, options.shots :])


def decisions(cosines: Float[Tensor, "E W q W2 s"], thresholds: list[float]) -> Tensor:
    """Count what episodes come to: rows [E, 3 + 2 T] as `FewShot.columns` names them.

    Args:
        cosines: of the queries of each class with the supports of each class.
        thresholds: a pair above one is decided "same".

    """
    episodes, ways, queries, _, shots = cosines.shape
    nearest = cosines.amax(dim=-1).argmax(dim=-1)
    truth = torch.arange(ways, device=cosines.device)
    hits = (nearest == truth[None, :, None]).sum(dim=(1, 2))
    above = torch.stack([cosines > t for t in thresholds], dim=1)
    same = above.sum(dim=(2, 3, 4, 5))
    true_same = above.diagonal(dim1=2, dim2=4).sum(dim=(2, 3, 4))
    sizes = torch.tensor([ways * queries, ways * queries * shots], device=cosines.device).expand(episodes, 2)
    return torch.cat([hits[:, None], sizes, true_same, same], dim=1)


class OneShot(Protocol[OneShotOptions, ClassFolder]):
    """The protocol; see the module. A seed draws the episodes, the same for every model."""

    Config = OneShotOptions
    DATA = "classification"
    USES_TRAIN = False
    UNGROUPED = (
        "its items are episodes, and each draws images of several groups; knn reads the same data image by image"
    )

    _features: Tensor
    _members: list[Tensor]

    def check(self) -> None:
        """Refuse too few classes, classes with too few images, and a descriptor that the model has not."""
        config = self.config
        check_image_side("one_shot.size_px", config.size_px, self.extractor)
        check_descriptor("one_shot.descriptor", config.descriptor, self.extractor)
        where = f"{self.test.root}, split '{self.test.split}'"
        if self.test.num_classes < config.ways:
            raise RequestError(
                f"{where}: {self.test.num_classes} classes are fewer than one_shot.ways = {config.ways}; lower it"
            )
        sizes = torch.bincount(self.test.labels, minlength=self.test.num_classes)
        fewest, wanted = int(sizes.min()), config.shots + config.queries
        if fewest < wanted:
            small = [self.test.names[c] for c in (sizes < wanted).nonzero()[:, 0].tolist()]
            more = f" and {len(small) - 5} more" if len(small) > 5 else ""
            mend = f"lower one_shot.queries to at most {fewest - config.shots}, " if fewest > config.shots else ""
            raise RequestError(
                f"{where}: an episode takes {config.shots} + {config.queries} images of a class, and these have fewer: "
                f"{', '.join(small[:5])}{more} (the fewest: {fewest}); {mend}remove these classes, or choose another --split"
            )

    def prepare(self) -> None:
        """Compute the descriptors of all images."""
        found = image_descriptors(self.features, self.test, self.config.size_px, self.message)
        self._features = found.unit(self.config.descriptor).to(self.extractor.device)
        labels = self.test.labels
        self._members = [(labels == c).nonzero()[:, 0] for c in range(self.test.num_classes)]

    def run(self, seed: int) -> Outcome:
        """Draw the episodes and classify their queries."""
        config = self.config
        rows = []
        for first in range(0, config.episodes, CHUNK):
            numbers = range(first, min(first + CHUNK, config.episodes))
            drawn = [draw_episode(self._members, config, generator(seed, "one-shot", n)) for n in numbers]
            supports = self._features[torch.stack([e.supports for e in drawn])]
            queries = self._features[torch.stack([e.queries for e in drawn])]
            cosines = torch.einsum("ewqd,evsd->ewqvs", queries, supports)
            rows.append(decisions(cosines, THRESHOLDS).cpu().numpy())
        items = [f"episode {n:05}" for n in range(config.episodes)]
        counts = {"images": len(self.test), "classes": self.test.num_classes, "episodes": config.episodes}
        score = FewShot(headline=config.headline, thresholds=THRESHOLDS)
        return Outcome(items, np.concatenate(rows), score, counts)
