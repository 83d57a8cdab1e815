# SPDX-License-Identifier: Apache-2.0
"""Linear probing: one linear map from frozen features to classes (E10; TEC, section 14).

Recipe `lars` is MAE's (BatchNorm without affine before the map, LARS), `sgd` DINO's (the map alone, gradient descent with
momentum). Without augmentation the features are those of the centre crop, computed once and shared with other protocols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional

from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.rng import derived_seed, generator, seeded_default
from rekindle.data.labelled.classification import ClassFolder, check_same_classes
from rekindle.evaluation.classification.knn import TOP, hits
from rekindle.evaluation.classification.options import LinearProbeOptions
from rekindle.evaluation.features.descriptors import check_descriptor, check_image_side
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import Means
from rekindle.evaluation.training.augmented_images import AugmentedImages, image_batches
from rekindle.networks.tokens import Tokens

RATE_IMAGES = 256
CROP_AREA = (0.08, 1.0)
LARS_TRUST = 0.001


class LinearClassifier(nn.Module):
    """Descriptors [B, F] -> logits [B, C].

    Args:
        width, num_classes: F and C.
        is_normed: BatchNorm without affine first, which makes the result independent of each channel's mean and scale.

    """

    def __init__(self, width: int, num_classes: int, *, is_normed: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if is_normed else nn.Identity()
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.norm(features))
        return logits


def lars(head: nn.Module, momentum: float) -> Lars:
    """Return LARS over a head: matrices step by 0.001 |w| / |g| of their gradient, vectors plainly; then momentum.

    Without weight decay timm's rule is the one of MAE's code (TEC, section 14).
    """
    parameters = list(head.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "always_adapt": True},
        {"params": [p for p in parameters if p.ndim == 1], "always_adapt": False},
    ]
    return Lars(groups, lr=0.0, momentum=momentum, weight_decay=0.0, trust_coeff=LARS_TRUST)


def probe_rate(epoch: float, options: LinearProbeOptions) -> float:
    """Return the learning rate at a point of the training: lr * batch / 256, linear warm-up, cosine to 0.

    Args:
        epoch: passes done, with their fraction.
        options: rate, batch, epochs.

    """
    peak = options.lr * options.batch_size / RATE_IMAGES
    if epoch < options.warmup_epochs:
        return peak * epoch / options.warmup_epochs
    done = (epoch - options.warmup_epochs) / (options.epochs - options.warmup_epochs)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def probe_inputs(per_block: Sequence[Tokens], inputs: str) -> Tensor:
    """Return what the classifier reads, float32 [B, F]: class tokens of all given blocks, then the last one's mean patch."""
    cls = [] if inputs == "pat" else [tokens.class_token for tokens in per_block]
    pat = [] if inputs == "cls" else [per_block[-1].patches.float().mean(dim=(1, 2))]
    return torch.cat([*cls, *pat], dim=1)


class LinearProbe(Protocol[LinearProbeOptions, ClassFolder]):
    """The protocol; see the module. A seed draws the map's weights, the batches and the crops."""

    Config = LinearProbeOptions
    DATA = "classification"

    _train_features: Tensor
    _test_features: Tensor

    def check(self) -> None:
        """Refuse splits of different classes, inputs that the model has not, and features that do not fit."""
        config = self.config
        check_same_classes(self.train, self.test)
        check_image_side("linear_probe.size_px", config.size_px, self.extractor)
        check_descriptor("linear_probe.inputs", config.inputs, self.extractor)
        if config.num_blocks > self.extractor.depth:
            raise RequestError(
                f"linear_probe.num_blocks = {config.num_blocks}, and the model has {self.extractor.depth} blocks"
            )
        if config.warmup_epochs >= config.epochs:
            raise RequestError(
                f"linear_probe.warmup_epochs = {config.warmup_epochs:g} must be less than linear_probe.epochs = {config.epochs}"
            )
        if len(self.training_indices(0)) < 2:
            raise RequestError("linear-probe needs at least two training images (BatchNorm); raise --train-fraction")
        count = len(self.test) + (0 if config.augment else len(self.train))
        gib = count * (config.num_blocks + 1) * self.extractor.width * 4 / 2**30
        if gib > config.max_cache_gib:
            raise RequestError(
                f"the features of {count} images would take up to {gib:.1f} GiB, more than linear_probe.max_cache_gib = "
                f"{config.max_cache_gib:g}; raise the limit, or lower linear_probe.num_blocks"
            )

    def prepare(self) -> None:
        """Compute the features that do not change: of the test, and of the training without augmentation."""
        self._test_features = self._features(self.test)
        if not self.config.augment:
            self._train_features = self._features(self.train)

    def run(self, seed: int) -> Outcome:
        """Train the map and classify the test images."""
        head = self._trained(seed).eval()
        with torch.no_grad():
            scores = torch.cat(
                [head(part.to(self.extractor.device)) for part in torch.split(self._test_features, 4096)]
            ).cpu()
        return classified(scores, self.test, len(self.training_indices(seed)))

    def _trained(self, seed: int) -> LinearClassifier:
        config, device = self.config, self.extractor.device
        with seeded_default(seed, "linear-probe"):
            head = LinearClassifier(
                self._test_features.shape[1], self.test.num_classes, is_normed=config.recipe == "lars"
            ).to(device)
        optimizer: torch.optim.Optimizer
        if config.recipe == "lars":
            optimizer = lars(head, config.momentum)
        else:
            optimizer = torch.optim.SGD(head.parameters(), lr=0.0, momentum=config.momentum)
        own = self.training_indices(seed)
        steps = math.ceil(len(own) / config.batch_size)
        for epoch in range(config.epochs):
            for step, (features, labels) in enumerate(self._batches(own, seed, epoch)):
                now = probe_rate(epoch + step / steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = now
                loss = functional.cross_entropy(head(features.to(device)), labels.to(device))
                if not bool(loss.isfinite()):
                    raise RekindleError(
                        f"the loss is not finite in epoch {epoch}; lower linear_probe.lr = {config.lr:g}"
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()  # type: ignore[no-untyped-call]
            if config.augment:
                self.message(f"epoch {epoch + 1} of {config.epochs}, loss {float(loss.detach()):.3f}")
        return head

    def _batches(self, own: list[int], seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of one pass; a rest of a single image is left out, for BatchNorm would make it zero."""
        config = self.config
        shuffled = torch.randperm(len(own), generator=generator(seed, "linear-probe-order", epoch)).tolist()
        order = [own[i] for i in shuffled]
        if config.augment:
            found = self._augmented(order, seed, epoch)
        else:
            parts = torch.split(torch.tensor(order), config.batch_size)
            found = ((self._train_features[part], self.train.labels[part]) for part in parts)
        yield from (pair for pair in found if len(pair[1]) > 1)

    def _augmented(self, order: list[int], seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        images = AugmentedImages(
            self.train,
            order,
            size_px=config.size_px,
            area=CROP_AREA,
            augment=lambda image: image,
            seed=derived_seed(seed, "linear-probe-crops", epoch),
            cache_bytes=0.0,
        )
        for pixels, labels in image_batches(images, config.batch_size, self.extractor.device):
            parts = [self.extractor.extract(part, self._blocks()) for part in torch.split(pixels, 64)]
            yield torch.cat([probe_inputs(part, config.inputs) for part in parts]), labels

    def _features(self, data: ClassFolder) -> Tensor:
        """Inputs of the classifier of all images [n, F]."""
        found = self.features.of(data, Sizing("centre", self.config.size_px), self._blocks(), self.message)
        return torch.cat([probe_inputs(tokens, self.config.inputs) for tokens in found])

    def _blocks(self) -> tuple[int, ...]:
        count = 1 if self.config.inputs == "pat" else self.config.num_blocks
        return tuple(range(-count, 0))


def classified(scores: Tensor, data: ClassFolder, train_images: int, **counts: int) -> Outcome:
    """Return the outcome of class scores [n, C]: top-1 and top-5 of the images."""
    found = [hits(scores, data.labels, top).numpy() for top in (1, TOP)]
    rows = np.stack([*found, np.ones(len(data))], axis=1)
    sizes = {"images": len(data), "train_images": train_images, "classes": data.num_classes}
    return Outcome(data.items, rows, Means(headline="top-1", names=["top-1", f"top-{TOP}"]), sizes | counts)
