# SPDX-License-Identifier: Apache-2.0
"""UPerNet fine-tuning (TEC, section 4; specification 17, after MAE's public configuration).

Features after the blocks 4, 6, 8 and 12 of twelve (from 1), before the final norm; an auxiliary head on the third of them while
training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rekindle.evaluation.segmentation.options import UperNetOptions
from rekindle.evaluation.segmentation.trained_segmentation import TrainedSegmentation
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.pyramid import UperNet


class UperNetProtocol(TrainedSegmentation[UperNetOptions]):
    """The protocol; see the module."""

    Config = UperNetOptions
    FINAL_NORM = False

    def decoder(self, backbone: Backbone) -> nn.Module:
        """Pyramid, decoder and classifier."""
        config = self.config
        return UperNet(
            backbone.width,
            self.test.num_classes,
            channels=config.channels,
            dropout=config.dropout,
            auxiliary_channels=config.auxiliary_channels if config.auxiliary_weight else 0,
        )

    def outputs(self, decoder: nn.Module, maps: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """The logits, and those of the auxiliary head."""
        assert isinstance(decoder, UperNet)
        logits = decoder.auxiliary_logits(maps)
        return [*super().outputs(decoder, maps), *([] if logits is None else [(self.config.auxiliary_weight, logits)])]

    def blocks(self, backbone: Backbone) -> Sequence[int]:
        """The ends of the first, half, two thirds, and the last."""
        return tuple(max(1, round(backbone.depth * block / 12)) - 1 for block in (4, 6, 8, 12))
