# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN fine-tuning, the papers' main measure (GLARE, section 4; specification 9.1).

Features after the blocks 3, 6, 9 and 12 of twelve (from 1), before the final norm. Deviations: the class token and registers stay
in the sequence, as in pre-training; statistics of BatchNorm are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rekindle.evaluation.segmentation.options import FpnOptions
from rekindle.evaluation.segmentation.trained_segmentation import TrainedSegmentation
from rekindle.evaluation.training.without_prefix import drop_prefix
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.dpt import quarters
from rekindle.networks.parts.pyramid import SemanticFpn


class Fpn(TrainedSegmentation[FpnOptions]):
    """The protocol; see the module."""

    Config = FpnOptions
    FINAL_NORM = False

    def trim(self, backbone: Backbone) -> None:
        """Take the class token and the registers away, if asked to."""
        if self.config.drop_prefix:
            drop_prefix(backbone)

    def nothing_to_save(self) -> str:
        """A frozen backbone, or one whose class token was taken away."""
        if self.config.drop_prefix:
            return "fpn.drop_prefix leaves a network without class token, which no checkpoint layout describes"
        return super().nothing_to_save()

    def decoder(self, backbone: Backbone) -> nn.Module:
        """Pyramid, neck and head."""
        config = self.config
        return SemanticFpn(
            backbone.width,
            self.test.num_classes,
            kind=config.pyramid,
            channels=config.channels,
            head_channels=config.head_channels,
            dropout=config.dropout,
        )

    def blocks(self, backbone: Backbone) -> Sequence[int]:
        """The ends of the quarters."""
        return quarters(backbone.depth)
