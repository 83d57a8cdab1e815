# SPDX-License-Identifier: Apache-2.0
"""Classification by fine-tuning (E9; TEC, sections 13 and 14): layer decay, mixed and augmented images, or adapters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.core.rng import seeded_default
from rekindle.data.labelled.classification import ClassFolder, check_same_classes
from rekindle.evaluation.classification.classifier_head import ClassifierHead, read_adapters
from rekindle.evaluation.classification.linear_probe import classified
from rekindle.evaluation.classification.options import FinetuneOptions
from rekindle.evaluation.features.dense_features import centre_crop
from rekindle.evaluation.features.descriptors import check_descriptor, check_image_side
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.training.augmented_images import AugmentedImages, augmentation, image_batches, seeded_libraries
from rekindle.evaluation.training.fitting import endless_order, fit, training_groups
from rekindle.networks.backbone import Backbone

Numbered = tuple[int, list[Tensor]]
TEST_BATCH = 32


def planned(options: FinetuneOptions, num_images: int) -> FinetuneOptions:
    """Return the options with steps, warm-up and rate as numbers: from passes over the images, and from the batch."""
    update: dict[str, object] = {}
    if options.epochs:
        per_epoch = max(1, num_images // options.batch_size)
        update["steps"] = max(1, round(options.epochs * per_epoch))
        update["warmup_steps"] = round(options.warmup_epochs * per_epoch)
    if options.lr_images:
        update["lr"] = options.lr * options.batch_size / options.lr_images
    return options.model_copy(update=update)


class TargetLoss:
    """Cross-entropy of mixed and erased images with their mixed, smoothed targets.

    Args:
        options: how images are mixed and erased.
        num_classes: C.
        device: where the images are.
        seed: of mixing and erasing.

    """

    def __init__(self, options: FinetuneOptions, num_classes: int, device: torch.device, seed: int) -> None:
        self._seed, self._smoothing = seed, options.label_smoothing
        self._erase: Callable[[Tensor], Tensor] | None = None
        self._mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        if options.random_erasing:
            erase: Any = RandomErasing
            self._erase = erase(options.random_erasing, mode="pixel", device=str(device))
        if options.mixup or options.cutmix:
            mix: Any = Mixup  # untyped, like RandomErasing
            self._mix = mix(
                options.mixup,
                options.cutmix,
                label_smoothing=options.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, classify: Callable[[Tensor], Tensor], step: int, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of normalised pixels [B, 3, S, S] and labels [B]; `classify` gives logits."""
        targets = labels
        with seeded_libraries(self._seed, "finetune-mix", step):
            if self._erase is not None:
                pixels = self._erase(pixels)
            if self._mix is not None:
                pixels, targets = self._mix(pixels, labels)
        smoothing = 0.0 if self._mix is not None else self._smoothing  # mixing smooths its own targets
        return functional.cross_entropy(classify(pixels).float(), targets, label_smoothing=smoothing)


class Finetune(Protocol[FinetuneOptions, ClassFolder]):
    """The protocol; see the module. A seed draws the classifier, the crops, the mixing and stochastic depth."""

    Config = FinetuneOptions
    DATA = "classification"

    def check(self) -> None:
        """Refuse splits of different classes, and options that do not fit each other or the model."""
        config, count = self.config, len(self.training_indices(0))
        check_same_classes(self.train, self.test)
        check_image_side("finetune.size_px", config.size_px, self.extractor)
        check_descriptor("finetune.inputs", config.inputs, self.extractor)
        augmentation(config.augmentation, self.extractor.mean, config.size_px)
        plan = planned(config, count)
        if plan.warmup_steps >= plan.steps:
            raise RequestError(
                f"finetune: a warm-up of {plan.warmup_steps} steps must be less than the {plan.steps} steps; "
                + ("lower finetune.warmup_epochs" if config.epochs else "lower finetune.warmup_steps")
            )
        if (config.mixup or config.cutmix) and config.batch_size % 2:
            raise RequestError(f"finetune.batch_size = {config.batch_size} must be even to mix pairs of images")
        if not config.train_backbone:
            raise RequestError("finetune.train_backbone = false says the same as finetune.train = head; use that")
        takes_adapters = config.train in ("input-adapter", "encoder-adapters")
        if takes_adapters != bool(config.conditioning):
            raise RequestError(
                f"finetune.train = {config.train} and finetune.conditioning = '{config.conditioning}' do not fit: the adapters "
                "of a TEC run folder train with input-adapter or encoder-adapters, and only then"
            )
        if takes_adapters:
            read_adapters(config.conditioning, config.train, self.extractor.trainable_copy())

    def nothing_to_save(self) -> str:
        """A backbone beside which something else trains."""
        return (
            "" if self.config.train == "all" else f"finetune.train = {self.config.train} leaves the backbone as it is"
        )

    def prepare(self) -> None:
        """Nothing is shared by the seeds."""

    def run(self, seed: int) -> Outcome:
        """Train and classify the centre crops of the test images."""
        own = self.training_indices(seed)
        config = planned(self.config, len(own))
        backbone, head = self._network(seed)
        device, trains_backbone = self.extractor.device, config.train == "all"
        order = endless_order(own, seed, "finetune-order")
        images = AugmentedImages(
            self.train,
            [next(order) for _ in range(config.steps * config.batch_size)],
            size_px=config.size_px,
            area=config.crop_area,
            augment=augmentation(config.augmentation, self.extractor.mean, config.size_px),
            seed=seed,
            cache_bytes=config.max_cache_gib * 2**30,
        )
        target_loss = TargetLoss(config, self.test.num_classes, device, seed)

        def loss(batch: Numbered) -> Tensor:
            step, (pixels, labels) = batch
            return target_loss(
                lambda x: self._logits(backbone, head, x), step, self.extractor.normalise(pixels), labels.to(device)
            )

        groups = training_groups(backbone if trains_backbone else None, head, config)
        moved = sum(p.numel() for group in groups for p in group["params"])
        numbered: Iterator[Numbered] = enumerate(image_batches(images, config.batch_size, device))
        fit(groups, loss, numbered, config, seed=seed, message=self.message)
        scores = self._tested(backbone.eval(), head.eval())
        outcome = classified(scores, self.test, len(own), trained_parameters=moved, steps=config.steps)
        return replace(outcome, backbone=self.kept(backbone))

    def _network(self, seed: int) -> tuple[Backbone, ClassifierHead]:
        """A copy of the backbone in the mode it trains in, and a new head."""
        config, backbone = self.config, self.extractor.trainable_copy()
        backbone.set_drop_path(config.drop_path)
        adapters = read_adapters(config.conditioning, config.train, backbone) if config.conditioning else None
        if config.train != "all":
            backbone.requires_grad_(False).eval()
        with seeded_default(seed, "finetune"):
            head = ClassifierHead(backbone.width, self.test.num_classes, config, adapters)
        return backbone, head.to(self.extractor.device).train()

    def _logits(self, backbone: Backbone, head: ClassifierHead, pixels: Tensor) -> Tensor:
        with self.extractor.computing():
            logits: Tensor = head(backbone, pixels)
        return logits

    @torch.no_grad()
    def _tested(self, backbone: Backbone, head: ClassifierHead) -> Tensor:
        """Logits of the test images [n, C]."""
        found = []
        for first in range(0, len(self.test), TEST_BATCH):
            numbers = range(first, min(first + TEST_BATCH, len(self.test)))
            images = torch.stack([centre_crop(self.test.image(i), self.config.size_px) for i in numbers])
            found.append(self._logits(backbone, head, self.extractor.normalise(images)).float().cpu())
        return torch.cat(found)
