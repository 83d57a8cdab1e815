# SPDX-License-Identifier: Apache-2.0
"""Segmenter's linear decoder, trained end to end (Strudel et al., 2021; LOCA, section 4).

The last block's patch tokens after the final norm, one linear map to the classes, bilinear upsampling, cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rekindle.evaluation.segmentation.options import LinearDecoderOptions
from rekindle.evaluation.segmentation.trained_segmentation import TrainedSegmentation
from rekindle.networks.backbone import Backbone


class LinearMaps(nn.Module):
    """One linear map of each token: [[B, D, gh, gw]] -> [B, C, gh, gw]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(maps[-1])
        return logits


class LinearDecoder(TrainedSegmentation[LinearDecoderOptions]):
    """The protocol; see the module."""

    Config = LinearDecoderOptions

    def decoder(self, backbone: Backbone) -> nn.Module:
        """One linear map."""
        return LinearMaps(backbone.width, self.test.num_classes)

    def blocks(self, backbone: Backbone) -> Sequence[int]:
        """The last."""
        return (-1,)
