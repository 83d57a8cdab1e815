# SPDX-License-Identifier: Apache-2.0
"""Classification without localisation: which classes an image shows (LOCA, section 4; specification 15.3).

An image's labels are the classes of its mask, ignored pixels left out. Beside the oracle of localisation (`oracle-mIoU` of
the trained decoders) it tells apart what a backbone knows of things and of places.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator, seeded_default
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.dense_features import fitted_size, resize_image
from rekindle.evaluation.features.shared_features import Sizing
from rekindle.evaluation.protocol import Outcome, Protocol
from rekindle.evaluation.scores.kinds import MeanAveragePrecision
from rekindle.evaluation.segmentation.linear_decoder import LinearDecoder
from rekindle.evaluation.segmentation.options import MultiLabelOptions
from rekindle.evaluation.training.fitting import endless_order, fit, training_groups
from rekindle.evaluation.training.label_images import whole_logits
from rekindle.evaluation.training.options import TrainingOptions
from rekindle.networks.backbone import Backbone


class PooledClassifier(nn.Module):
    """BatchNorm without affine and a linear map: means of patch tokens [B, D] -> logits [B, C]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.norm(pooled))
        return logits


def present_classes(mask: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return 1.0 for the classes that a mask holds, [C]."""
    counts = torch.bincount(mask[mask != ignore_index], minlength=num_classes)
    return (counts > 0).float()


class MultiLabel(Protocol[MultiLabelOptions, SegmentationFolder]):
    """The protocol; see the module."""

    Config = MultiLabelOptions
    DATA = "segmentation"

    _train_features: Tensor
    _test_features: Tensor

    def check(self) -> None:
        """Refuse too few training images for BatchNorm, and what the linear decoder refuses."""
        if self.config.source == "segmentation":
            self._decoder().check()
        elif len(self.training_indices(0)) < 2:
            raise RequestError("multi-label needs at least two training images (BatchNorm); raise --train-fraction")

    def nothing_to_save(self) -> str:
        """A linear layer on frozen features, or a decoder alone."""
        if self.config.source == "frozen":
            return "multi-label.source = frozen trains a linear layer alone"
        return "" if self._training.train_backbone else "train_backbone = false leaves the backbone as it is"

    def prepare(self) -> None:
        """Pool the frozen features of all images, once for all seeds."""
        if self.config.source == "frozen":
            self._train_features, self._test_features = self._pooled(self.train), self._pooled(self.test)

    def run(self, seed: int) -> Outcome:
        """Train what scores the classes, and score the test images."""
        scores, trained = {
            "frozen": self._frozen_scores,
            "finetuned": self._finetuned_scores,
            "segmentation": self._segmentation_scores,
        }[self.config.source](seed)
        rows = np.concatenate([scores.double().numpy(), self._present(self.test).double().numpy()], axis=1)
        counts = {"images": len(self.test), "train_images": len(self.training_indices(seed))}
        score = MeanAveragePrecision(class_names=self.test.names)
        if trained is None:
            return Outcome(self.test.items, rows, score, counts)
        counts["steps"] = self._training.steps
        return Outcome(self.test.items, rows, score, counts, backbone=self.kept(trained))

    @property
    def _training(self) -> TrainingOptions:
        return self.config.training if self.config.source == "finetuned" else self.config.decoder

    def _present(self, data: SegmentationFolder) -> Tensor:
        """Which classes each image shows, [n, C]."""
        masks = (data.mask(i) for i in range(len(data)))
        return torch.stack([present_classes(mask, data.num_classes, data.ignore_index) for mask in masks])

    def _resized(self, data: SegmentationFolder, indices: range) -> Iterator[Tensor]:
        for index in indices:
            image = data.image(index)
            size = fitted_size(image.shape[1], image.shape[2], self.config.size_px, self.extractor.patch_size)
            yield resize_image(image, size)

    def _pooled(self, data: SegmentationFolder) -> Tensor:
        """Means of the patch tokens, [n, D]."""
        found = self.features.of(data, Sizing("short", self.config.size_px), message=self.message)
        return torch.stack([t[0].patches[0].float().mean(dim=(0, 1)) for t in found])

    def _frozen_scores(self, seed: int) -> tuple[Tensor, None]:
        config, own = self.config, self.training_indices(seed)
        with seeded_default(seed, "multi-label"):
            head = PooledClassifier(self.extractor.width, self.test.num_classes).train()
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        features, labels = self._train_features[own], self._present(self.train)[own]
        for epoch in range(config.epochs):
            order = torch.randperm(len(own), generator=generator(seed, "multi-label-order", epoch))
            for batch in torch.split(order, config.batch_size):
                if len(batch) > 1:  # the statistics of one image say nothing
                    loss = functional.binary_cross_entropy_with_logits(head(features[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        with torch.no_grad():
            scores: Tensor = head.eval()(self._test_features)
        return scores, None

    def _finetuned_scores(self, seed: int) -> tuple[Tensor, Backbone]:
        config, device = self.config.training, self.extractor.device
        backbone = self.extractor.trainable_copy()
        backbone.set_drop_path(config.drop_path)
        with seeded_default(seed, "multi-label"):
            head = PooledClassifier(backbone.width, self.test.num_classes).to(device).train()
        labels = self._present(self.train)
        side = max(1, round(self.config.size_px / backbone.patch_size)) * backbone.patch_size
        order = endless_order(self.training_indices(seed), seed, "multi-label-order")
        source = generator(seed, "multi-label-flip")

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(config.steps):
                chosen = [next(order) for _ in range(config.batch_size)]
                images = [resize_image(self.train.image(i), (side, side)) for i in chosen]
                flips = (torch.rand(len(chosen), generator=source) < 0.5).tolist()
                yield torch.stack([x.flip(-1) if f else x for x, f in zip(images, flips, strict=True)]), labels[chosen]

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            with self.extractor.computing():
                pooled = backbone(self.extractor.normalise(batch[0])).patches.mean(dim=(1, 2))
            return functional.binary_cross_entropy_with_logits(head(pooled.float()), batch[1].to(device))

        groups = training_groups(backbone, head, config)
        fit(groups, loss, batches(), config, seed=seed, message=self.message)
        backbone.eval(), head.eval()
        found = []
        with torch.no_grad(), self.extractor.computing():
            for index in range(len(self.test)):
                image = resize_image(self.test.image(index), (side, side))
                pooled = backbone(self.extractor.normalise(image[None])).patches.mean(dim=(1, 2))
                found.append(head(pooled.float())[0].cpu())
        return torch.stack(found), backbone

    def _segmentation_scores(self, seed: int) -> tuple[Tensor, Backbone]:
        decoder = self._decoder()
        own = self.training_indices(seed)
        network = decoder.trained(own, decoder.searched(own, self.config.decoder, seed), seed)
        found = []
        with torch.no_grad(), self.extractor.computing():
            for image in self._resized(self.test, range(len(self.test))):
                logits = whole_logits(network, self.extractor.normalise(image[None]), self.extractor.patch_size)
                found.append(logits.float().softmax(dim=1).amax(dim=(0, 2, 3)).cpu())
        return torch.stack(found), network.backbone

    def _decoder(self) -> LinearDecoder:
        return LinearDecoder(self.config.decoder, self.extractor, self.train, self.test, self.message, self.part)
