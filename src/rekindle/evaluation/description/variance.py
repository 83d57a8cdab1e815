# SPDX-License-Identifier: Apache-2.0
"""Variance of features under perturbation (MMC, table 10): lower is steadier.

Class level: class tokens of random resized crops. Patch level: patch tokens of an image of which blocks of noise cover half, at
their places. The variance over the views (biased) is averaged over channels, places and images. Features are those after the
final norm, not scaled to unit length; so a network whose features are simply smaller has less variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.progress import Progress
from rekindle.core.rng import derived_seed, generator
from rekindle.data.labelled.pictures import PictureFolder
from rekindle.evaluation.description.options import VarianceOptions
from rekindle.evaluation.features.dense_features import resize_image
from rekindle.evaluation.features.object_tokens import check_side
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens
from rekindle.views.crops import UniformStream, sample_box
from rekindle.views.group_masks import corrupt_groups

ASPECT = (3 / 4, 4 / 3)
METRICS = {"class": "class tokens (variance)", "patch": "patch tokens (variance)"}


def mean_variance(batches: Iterable[Tensor]) -> float:
    """Return the biased variance over all rows of batches [b, ...], averaged over the other axes, in one pass.

    Means and squared deviations of batches are merged (Chan et al., 1983) in float64: memory does not grow with the rows.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.double()
        own_mean, own_count = rows.mean(dim=0), len(rows)
        own_squares = (rows - own_mean).square().sum(dim=0)
        if count == 0:
            count, mean, squares = own_count, own_mean, own_squares
            continue
        shift, total = own_mean - mean, count + own_count
        mean = mean + shift * (own_count / total)
        squares = squares + own_squares + shift.square() * (count * own_count / total)
        count = total
    return float((squares / count).mean())


class Variance(Protocol[VarianceOptions, PictureFolder]):
    """The protocol; see the module. A seed draws the views."""

    Config = VarianceOptions
    DATA = "images"
    USES_TRAIN = False

    _backbone: Backbone

    def check(self) -> None:
        """Refuse a size that patch or noise do not divide, too much noise, and class tokens of a network without them."""
        config = self.config
        check_side(config.size_px, self.extractor.patch_size, "variance.size_px")
        if "patch" in config.levels:
            try:
                self._noised(torch.zeros(1, 2, 3, config.size_px, config.size_px), seed=0, number=0)
            except RequestError as error:
                told = f"size_px = {config.size_px}, align_px = {config.align_px}, coverage = {config.coverage:g}"
                raise RequestError(f"variance ({told}): {error}") from error
        if "class" in config.levels and not self.extractor.has_cls:
            raise RequestError("this network has no class token; use --variance.levels patch")

    def prepare(self) -> None:
        """Take a copy of the network: noise enters as normalised numbers, which bytes cannot hold."""
        self._backbone = self.extractor.trainable_copy().eval().requires_grad_(False)

    def run(self, seed: int) -> Outcome:
        """Perturb every chosen image and measure both variances."""
        order = torch.randperm(len(self.test.items), generator=generator(0, "variance-images")).tolist()
        chosen = sorted(order[: self.config.num_images])
        rows = []
        for done, number in enumerate(chosen):
            image = self.test.image(number)
            views = {"class": self._crops, "patch": self._noises}
            rows.append([mean_variance(views[level](image, seed, number)) for level in self.config.levels] + [1.0])
            if (done + 1) % 10 == 0:
                self.message(f"{done + 1} of {len(chosen)} images")
        names = [METRICS[level] for level in self.config.levels]
        score = Means(headline=names[0], names=names, better="lower")
        counts = {"images": len(chosen), "views": self.config.num_views}
        return Outcome([self.test.items[i] for i in chosen], np.array(rows), score, counts)

    def _crops(self, image: Tensor, seed: int, number: int) -> Iterator[Tensor]:
        """Class tokens [b, D] of random crops of an image."""
        config, size = self.config, (self.config.size_px,) * 2
        uniform = UniformStream(generator(seed, "variance-crops", number))
        for count in self._batches():
            boxes = [sample_box((image.shape[1], image.shape[2]), config.scale, ASPECT, uniform) for _ in range(count)]
            crops = [image[:, b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes]
            views = torch.stack([resize_image(crop, size) for crop in crops])
            yield self._tokens(self.extractor.normalise(views)).class_token

    def _noises(self, image: Tensor, seed: int, number: int) -> Iterator[Tensor]:
        """Patch tokens [b, gh, gw, D] of an image with noise."""
        pixels = self.extractor.normalise(resize_image(image, (self.config.size_px,) * 2)[None])
        for part, count in enumerate(self._batches()):
            views = self._noised(
                pixels.expand(1, count, -1, -1, -1), seed=derived_seed(seed, "variance", number), number=part
            )
            yield self._tokens(views[0]).patches

    def _noised(self, pixels: Tensor, *, seed: int, number: int) -> Tensor:
        config = self.config
        return corrupt_groups(
            pixels,
            Progress(step=number, total=math.ceil(config.num_views / config.batch_size), seed=seed),
            fill="noise",
            replace_p=0.0,
            fill_area=(config.coverage, config.coverage),
            align_px=config.align_px,
            max_block=config.max_block,
            purpose="variance-noise",
        ).pixels

    def _tokens(self, pixels: Tensor) -> Tokens:
        with torch.no_grad(), self.extractor.computing():
            tokens: Tokens = self._backbone(pixels)
        return tokens

    def _batches(self) -> list[int]:
        """Sizes of the batches that make up an image's views."""
        whole, rest = divmod(self.config.num_views, self.config.batch_size)
        return [self.config.batch_size] * whole + [rest] * (rest > 0)
