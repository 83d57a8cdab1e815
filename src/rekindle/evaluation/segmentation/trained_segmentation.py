# SPDX-License-Identifier: Apache-2.0
"""Trained segmentation decoders, alone or with the backbone: search, training on labelled crops, test."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rekindle.core.errors import RequestError
from rekindle.core.rng import generator, seeded_default
from rekindle.data.labelled.segmentation import SegmentationFolder
from rekindle.evaluation.features.dense_features import resize_image
from rekindle.evaluation.protocol import Outcome, SegmentationProtocol
from rekindle.evaluation.scores.kinds import MeanIou
from rekindle.evaluation.scores.oracle import relabelled
from rekindle.evaluation.scores.pixel_counts import image_statistics
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.training.fitting import fit, training_groups
from rekindle.evaluation.training.label_images import label_map, sliding_logits, whole_logits
from rekindle.evaluation.training.labelled_crops import LabelledCrops, crop_batches
from rekindle.evaluation.training.options import SegmentationTrainingOptions
from rekindle.evaluation.training.predicted_maps import PredictedMaps
from rekindle.networks.backbone import Backbone

Settings = TypeVar("Settings", bound=SegmentationTrainingOptions)
HELD_OUT = 5  # a search judges on one training image of so many
FEWEST_STEPS = 1 / 8  # of the full schedule, however few images there are


class Segmenter(nn.Module):
    """Backbone and decoder: normalised pixels [B, 3, H, W] -> logits on the decoder's grid.

    Args:
        backbone: its tokens after `blocks` (each after the final norm) become maps [B, D, gh, gw].
        decoder: maps -> logits [B, C, h, w].
        blocks: which.
        is_frozen: the backbone stays in evaluation mode and gets no gradient.
        final_norm: see `TrainedSegmentation.FINAL_NORM`.

    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        blocks: Sequence[int],
        *,
        is_frozen: bool,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self._norm = backbone, decoder, final_norm
        self._blocks, self._is_frozen = tuple(blocks), is_frozen
        self.backbone.requires_grad_(not is_frozen)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self._is_frozen:
            self.backbone.eval()
        return self

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return what the decoder reads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_frozen):
            tokens = self.backbone.intermediate(pixels, self._blocks, norm=self._norm)
        return [t.patches.permute(0, 3, 1, 2) for t in tokens]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.decoder(self.maps(pixels))
        return logits


@dataclass(frozen=True)
class Tested:
    """Pixel counts [n, 3, C] of the maps as predicted, and with the oracle's classes."""

    plain: Rows
    oracle: Rows


class TrainedSegmentation(SegmentationProtocol[Settings]):
    """A decoder trained on labelled crops, with the backbone or on top of it.

    A seed draws the decoder's weights, the crops, stochastic depth, and the fold where only a part of the images is used;
    then the steps are reduced with it, to an eighth at the least (LOCA, specification 15.2: max(20k, 160k * fraction)).
    """

    FINAL_NORM: ClassVar[bool] = True
    """Whether the tokens of every block pass the final norm before the decoder reads them."""

    @abstractmethod
    def decoder(self, backbone: Backbone) -> nn.Module:
        """Return a new decoder; torch's default generator is seeded."""

    @abstractmethod
    def blocks(self, backbone: Backbone) -> Sequence[int]:
        """Indices of the blocks that the decoder reads."""

    def trim(self, backbone: Backbone) -> None:
        """Change the copy of the backbone that is trained, before there is a decoder; nothing unless a protocol says so."""

    def outputs(self, decoder: nn.Module, maps: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """Return what the loss is taken of in training, each with its weight: the logits alone, unless a protocol has more."""
        return [(1.0, decoder(maps))]

    def check(self) -> None:
        """Refuse sizes that the patch does not divide, and a warm-up longer than the training."""
        config, patch = self.config, self.extractor.patch_size
        for name in ("crop_px", *(("window_px",) if config.inference == "slide" else ())):
            size = getattr(config, name)
            if size % patch:
                below, above = size // patch * patch, (size // patch + 1) * patch
                raise RequestError(
                    f"{name} = {size} is not a multiple of the model's patch size {patch}; use "
                    + (f"{below} or {above}" if below else str(above))
                )
        if config.inference == "slide" and config.stride_px > config.window_px:
            raise RequestError(
                f"stride_px = {config.stride_px} leaves gaps between windows of window_px = {config.window_px}; "
                "use a stride of at most the window"
            )
        if len(_candidates(config)) > 1 and len(self.training_indices(0)) < 2:
            raise RequestError("a search needs at least two training images: one to learn from and one to judge on")
        if config.warmup_steps >= self._steps(seed=0):
            raise RequestError(
                f"warmup_steps = {config.warmup_steps} must be less than the steps ({self._steps(seed=0)} with "
                f"{len(self.training_indices(0))} training images); lower warmup_steps, or raise steps"
            )

    def nothing_to_save(self) -> str:
        """A backbone that stays frozen."""
        return "" if self.config.train_backbone else "train_backbone = false leaves the backbone as it is"

    def prepare(self) -> None:
        """Nothing is shared by the seeds."""

    def run(self, seed: int) -> Outcome:
        """Train and test."""
        indices = self.training_indices(seed)
        config = self.config.model_copy(update={"steps": self._steps(seed)})
        network = self.trained(indices, self.searched(indices, config, seed), seed)
        maps = self.maps()
        tested = self.tested(network, self.test, range(len(self.test)), maps)
        score = MeanIou(class_names=self.test.names)
        flat = {name: rows.reshape(len(rows), -1) for name, rows in vars(tested).items()}
        plain, oracle = score.value(flat["plain"]), score.value(flat["oracle"])
        moved = sum(p.numel() for p in network.parameters() if p.requires_grad)
        is_plain = config.headline == "mIoU"
        return self.outcome(
            tested.plain if is_plain else tested.oracle,
            seed,
            headline=config.headline,
            extras={"oracle-mIoU": oracle} if is_plain else {"mIoU": plain},
            maps=maps,
            backbone=self.kept(network.backbone),
            trained_parameters=moved,
            steps=config.steps,
        )

    def searched(self, indices: list[int], config: Settings, seed: int) -> Settings:
        """Return the options of the best candidate, trained on four fifths of the images and judged on the others."""
        candidates = _candidates(config)
        if len(candidates) == 1:
            return candidates[0]
        order = torch.randperm(len(indices), generator=generator(seed, "search")).tolist()
        judged = max(1, len(indices) // HELD_OUT)
        held, kept = [indices[i] for i in order[:judged]], sorted(indices[i] for i in order[judged:])
        score, best, best_value = MeanIou(class_names=self.test.names), candidates[0], -1.0
        for candidate in candidates:
            network, maps = self.trained(kept, candidate, seed), PredictedMaps(self.train, keep=0)
            tested = self.tested(network, self.train, held, maps)
            value = score.value(tested.plain.reshape(len(held), -1))
            told = f"{candidate.optimizer}, lr {candidate.lr:g}, drop_path {candidate.drop_path:g}"
            self.message(f"search: {told}: mIoU {100 * value:.2f} %")
            if value > best_value:
                best, best_value = candidate, value
        return best

    def trained(self, indices: Sequence[int], config: Settings, seed: int) -> Segmenter:
        """Return the network trained on some of the training images."""
        device = self.extractor.device
        backbone = self.extractor.trainable_copy()
        backbone.set_drop_path(config.drop_path)
        self.trim(backbone)
        with seeded_default(seed, "decoder"):
            decoder = self.decoder(backbone).to(device)
        network = Segmenter(
            backbone,
            decoder,
            self.blocks(backbone),
            is_frozen=not config.train_backbone,
            final_norm=self.FINAL_NORM,
        ).train()
        crops = LabelledCrops(
            self.train,
            list(indices),
            config,
            mean=self.extractor.mean,
            count=config.steps * config.batch_size,
            seed=seed,
            cache_bytes=config.max_cache_gib * 2**30,
        )

        def loss(batch: list[Tensor]) -> Tensor:
            labels = batch[1].to(device)
            with self.extractor.computing():
                maps = network.maps(self.extractor.normalise(batch[0]))
                weighed = self.outputs(decoder, maps)
            ignored = self.train.ignore_index
            parts = [weight * pixel_loss(logits.float(), labels, ignored) for weight, logits in weighed]
            return torch.stack(parts).sum()

        groups = training_groups(backbone if config.train_backbone else None, decoder, config)
        fit(groups, loss, crop_batches(crops, config.batch_size, device), config, seed=seed, message=self.message)
        return network.eval()

    @torch.no_grad()
    def tested(
        self, network: Segmenter, data: SegmentationFolder, indices: Sequence[int], maps: PredictedMaps
    ) -> Tested:
        """Label images whole or in windows, at their own size, and count pixels; `maps` keeps what was predicted."""
        config, patch = self.config, self.extractor.patch_size
        found: tuple[list[Rows], list[Rows]] = [], []
        for index in indices:
            image, label = data.read(index)
            height, width = label.shape
            scale = (config.test_size_px or config.size_px) / min(height, width)
            resized = resize_image(image, (max(1, round(height * scale)), max(1, round(width * scale))))
            pixels = self.extractor.normalise(resized[None])
            with self.extractor.computing():
                if config.inference == "slide":
                    logits = sliding_logits(network, pixels, patch, window=config.window_px, stride=config.stride_px)
                else:
                    logits = whole_logits(network, pixels, patch)
            prediction = label_map(logits, (height, width)).to("cpu")
            classes, ignored = data.num_classes, data.ignore_index
            by_oracle = relabelled(prediction, label, classes, ignored, components=config.regions == "components")
            found[0].append(maps.count(index, prediction, label))
            found[1].append(image_statistics(by_oracle, label, classes, ignored))
        return Tested(np.stack(found[0]), np.stack(found[1]))

    def _steps(self, seed: int) -> int:
        share = len(self.training_indices(seed)) / len(self.train)
        return max(1, round(self.config.steps * max(FEWEST_STEPS, share)))


def pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy of the labelled pixels [B, H, W], logits upsampled to them; 0 where there are none."""
    upsampled = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = functional.cross_entropy(upsampled, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def _candidates(config: Settings) -> list[Settings]:
    """Every combination of what is to be searched; the options themselves where nothing is."""
    found = []
    for optimizer, factor, drop_path in itertools.product(
        config.search_optimizer or (config.optimizer,), config.search_lr or (1.0,), config.search_drop_path or (None,)
    ):
        update: dict[str, object] = {"optimizer": optimizer, "lr": config.lr * factor}
        if optimizer == "adamw" and config.optimizer == "sgd":
            update |= {"lr": config.adamw_lr * factor, "weight_decay": 0.05}
        if drop_path is not None:
            update["drop_path"] = drop_path
        found.append(config.model_copy(update=update))
    return found
