# SPDX-License-Identifier: Apache-2.0
"""Zero-shot segmentation from one prompted patch (MMC, table 1).

A patch of the target is the prompt; all patches whose cosine with it exceeds a threshold are the prediction, compared with the
target's mask at the size of the input. Nothing is trained. The prediction is constant within a patch, so its IoU follows exactly
from the number of pixels that a target has in each patch, and no prediction is ever enlarged.

Choices where the paper is silent: a patch belongs to a target that covers more than half of it, targets without such a patch are
skipped and counted; ignored pixels and crowds count neither for nor against a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator
from rekindle.data.labelled.objects import Objects, ObjectSplit
from rekindle.evaluation.features.object_tokens import check_side, covered_pixels, nearest, unit_tokens
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.threshold_scores import BestThreshold
from rekindle.evaluation.segmentation.options import PromptedSegOptions


def threshold_iou(cosines: Tensor, target: Tensor, counted: Tensor, thresholds: Tensor) -> Tensor:
    """Return the IoU of the patches above each threshold with a target: [m, T].

    Args:
        cosines: [m, P] of m prompts with all patches.
        target: [P], pixels of the target in each patch.
        counted: [P], pixels that count in each patch.
        thresholds: [T]; a patch must exceed one.

    """
    sums = torch.stack([target, counted], dim=1)
    found = torch.stack([(cosines > t).to(sums) @ sums for t in thresholds.tolist()], dim=1)
    hit, predicted = found[..., 0], found[..., 1]
    iou: Tensor = hit / (predicted + target.sum() - hit)
    return iou


def interior_patch(patches: Tensor) -> int:
    """Return the index of the patch farthest from those that are not in the target, of equals the first.

    Args:
        patches: bool [gh, gw], the target's. Beyond the image nothing is in it.

    """
    depth = ndimage.distance_transform_edt(np.pad(patches.numpy(), 1))[1:-1, 1:-1]
    return int(np.asarray(depth).argmax())


def central_patch(patches: Tensor) -> int:
    """Return the index of the target's patch nearest its centre of mass, of equals the first."""
    places = patches.nonzero().double()
    nearest_place = (places - places.mean(dim=0)).square().sum(dim=1).argmin()
    return int(patches.flatten().nonzero()[nearest_place])


@dataclass(frozen=True)
class PromptTarget:
    """What was prompted, and how well it was found.

    Attributes:
        class_id: its class.
        curve: IoU at each threshold, mean over the prompts.
        area_share: of the image, in [0, 1].
        prompt: row and column of the prompt's patch; of several random ones the first, of the oracle's the best.

    """

    class_id: int
    curve: list[float]
    area_share: float
    prompt: tuple[int, int]


class PromptedSeg(Protocol[PromptedSegOptions, ObjectSplit]):
    """The protocol; see the module. A seed draws the prompts where they are random."""

    Config = PromptedSegOptions
    DATA = "objects"
    USES_TRAIN = False

    _fixed: Outcome

    def check(self) -> None:
        """Refuse a size that the patch does not divide."""
        check_side(self.config.size_px, self.extractor.patch_size, "prompted_seg.size_px")

    def prepare(self) -> None:
        """Measure once where nothing is random."""
        if self.config.prompt != "random":
            self._fixed = self._measured(0)

    def run(self, seed: int) -> Outcome:
        """Prompt every target of every image."""
        return self._measured(seed) if self.config.prompt == "random" else self._fixed

    def _measured(self, seed: int) -> Outcome:
        config, names = self.config, self.test.names
        groups: list[str] = names if config.average == "category" else ["all"]
        width = len(config.thresholds) + 1
        items, rows, counts = [], [], {"targets": 0, "without_patch": 0, "skipped_images": 0}
        lines: list[list[str | int | float]] = []
        found = self.features.of(self.test, Sizing("square", config.size_px), message=self.message)
        for index, tokens in enumerate(found):
            objects = self.test.objects(index, config.unit)
            targets = self._image(unit_tokens(tokens[0].patches[0]), objects, index, seed, counts)
            if not targets:
                counts["skipped_images"] += 1
                continue
            row = np.zeros((len(groups), width))
            for target in targets:
                row[target.class_id if config.average == "category" else 0] += [*target.curve, 1.0]
                best = config.thresholds[int(np.argmax(target.curve))]
                place = [target.area_share, *target.prompt]
                lines.append([self.test.items[index], names[target.class_id], *place, *target.curve, best])
            if config.average == "image":
                row /= len(targets)
            items.append(self.test.items[index])
            rows.append(row.ravel())
            counts["targets"] += len(targets)
        if not rows:
            raise RequestError(
                f"no image has a target that covers more than half of a patch of {config.size_px} x {config.size_px} px; "
                "raise prompted_seg.size_px, or look at the masks and at prompted_seg.background_class"
            )
        score = BestThreshold(thresholds=list(config.thresholds), groups=list(groups))
        curve = [f"IoU>{threshold:g}" for threshold in config.thresholds]
        header = ["image", "category", "area_share", "prompt_row", "prompt_column", *curve, "best_threshold"]
        counts = {"images": len(items)} | counts
        return Outcome(items, np.stack(rows), score, counts, tables={"targets": (header, lines)})

    def _image(
        self, tokens: Tensor, objects: Objects, index: int, seed: int, counts: dict[str, int]
    ) -> list[PromptTarget]:
        """The targets of one image."""
        patch, side = self.extractor.patch_size, self.config.size_px
        thresholds = torch.tensor(self.config.thresholds, dtype=torch.float64)
        counted = covered_pixels(~nearest(objects.void, side), patch)
        found = []
        for number, class_id in enumerate(objects.class_ids):
            if self.test.names[class_id] == self.config.background_class:
                continue
            target = covered_pixels(nearest(objects.masks[number], side), patch)
            own = 2 * target > patch * patch
            if not own.any():
                counts["without_patch"] += 1
                continue
            prompts = self._prompts(own.reshape(side // patch, -1), (index, number), seed)
            curve = threshold_iou(tokens[prompts] @ tokens.T, target, counted, thresholds)
            chosen = int(curve.amax(dim=1).argmax()) if self.config.prompt == "oracle" else 0
            best = curve[chosen] if self.config.prompt == "oracle" else curve.mean(dim=0)
            row, column = divmod(int(prompts[chosen]), side // patch)
            found.append(PromptTarget(class_id, best.tolist(), float(target.sum()) / side**2, (row, column)))
        return found

    def _prompts(self, patches: Tensor, place: tuple[int, int], seed: int) -> Tensor:
        """Indices [m] of the patches that prompt a target."""
        kind: Literal["interior", "random", "centroid", "oracle"] = self.config.prompt
        own = patches.flatten().nonzero()[:, 0]
        if kind == "interior":
            return torch.tensor([interior_patch(patches)])
        if kind == "centroid":
            return torch.tensor([central_patch(patches)])
        if kind == "random":
            source = generator(seed, "prompted-seg", *place)
            return own[torch.randint(len(own), (self.config.num_random,), generator=source)]
        return own
