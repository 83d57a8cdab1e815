# SPDX-License-Identifier: Apache-2.0
"""FD: feature distillation, a new encoder that predicts a frozen one's whitened features (Wei et al., 2022, arXiv:2205.14141)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rekindle.adapters.folding import fold
from rekindle.adapters.replacing import ReplacingBlock
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.papers import fd as fd_paper
from rekindle.methods.shared.masking import PLAIN_CROPS
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.drawing import drawn_like
from rekindle.networks.tokens import Tokens
from rekindle.objectives.reconstruction import smooth_feature_error
from rekindle.views.batch import ViewBatch


class FdOptions(Options):
    """Options of FD; defaults are those of its code for DINO's ViT-B."""

    arch: str = ""
    """Architecture of the new encoder, as in vit:width=768,depth=12,heads=12; empty: the base model's."""
    after_norm: bool = True
    """Predict the base model's features after its final norm, or before it."""
    beta: float = Field(2.0, gt=0)
    """Error up to which the loss is a square, and beyond which it is linear."""
    drop_path: float = Field(0.3, ge=0, lt=1)
    """Stochastic depth of the new encoder's last block; the base model has none."""


class FrozenBase(nn.Module):
    """A backbone that never trains, always in evaluation mode."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBase:
        """Stay in evaluation mode whatever the mode of the method."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, after_norm: bool) -> Tokens:
        """Return the last block's tokens, after the final norm or before it."""
        tokens: Tokens = self.backbone.intermediate(pixels, (-1,), norm=after_norm)[0]
        return tokens


class Fd(Method):
    """A new encoder and a linear map predict every token of a frozen base model, from the same whole image.

    The base's tokens are whitened: each has mean 0 and variance 1 over its channels, without a learnt gain (section 3.1). The
    new encoder alone drops depth.

    Deviations: every image gives two crops; the new encoder's positions are fixed sines and cosines, where the paper shares a
    relative bias among blocks; gradients are clipped per tensor; registers stay behind.
    """

    Config = FdOptions
    STATED = fd_paper.STATED
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 1.5e-4,
        "optim.warmup_epochs": 10.0,
        "optim.final_lr": 2e-5,
        "optim.weight_decay": 0.05,
        "optim.clip_norm": 3.0,
    }
    NEEDS: ClassVar[Mapping[str, object]] = {
        **PLAIN_CROPS,
        **PAPER,
        "views.global_scale": (0.08, 1.0),
        "train": "all",
        "recipe": "paper",
    }

    def __init__(self, config: FdOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.student = drawn_like(backbone, config.arch, option="--fd.arch")
        self.student.set_drop_path(config.drop_path)
        is_updated = any(isinstance(block, ReplacingBlock) for block in backbone.vit.blocks)
        self.base_model = FrozenBase(fold(backbone) if is_updated else backbone)
        self.project = nn.Linear(self.student.width, backbone.width)
        self.has_class_token = self.student.has_class_token and backbone.has_class_token

    @classmethod
    def learns_beside(cls, config: Options) -> bool:
        """The named backbone is the base model."""
        return True

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the error of the predicted tokens (section 3.1).

        Equals `objectives.plain.whitened_feature_error` of the class token's and the patches' features.
        """
        pixels = batch.global_views.pixels.flatten(0, 1)
        target = self._compared(self.base_model(pixels, after_norm=self.config.after_norm))
        own = self._compared(self.student(pixels))
        error = smooth_feature_error(self.project(own), target, beta=self.config.beta)
        stats = {
            "feature_variance": own.detach().float().var(dim=1, correction=0).mean(),
            "target_variance": target.float().var(dim=1, correction=0).mean(),
        }
        return LossBreakdown.weigh({"fd": error}, {"fd": 1.0}, stats)

    def _compared(self, tokens: Tokens) -> Tensor:
        """Class token, where both networks have one, and patches: [N, T, C]."""
        patches = tokens.patches.flatten(1, 2)
        return torch.cat([tokens.class_token[:, None], patches], dim=1) if self.has_class_token else patches

    def exported(self) -> Backbone:
        """The new encoder; the map to the base model's features stays behind."""
        return self.student
