# SPDX-License-Identifier: Apache-2.0
"""Feature pyramids from the maps of a plain ViT, all at one stride, for Semantic FPN and UPerNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork

PyramidKind = Literal["rescaled", "literal"]
LEVELS = 4


class Pyramid(nn.Module):
    """Four maps of stride 16 (a patch) to strides 4, 8, 16 and 32, as BEiT and XCiT do it; 1,771,392 parameters at width 384.

    Args:
        width: channels D.
        kind: `rescaled`; `literal` leaves all four maps as they are.

    """

    def __init__(self, width: int, kind: PyramidKind) -> None:
        super().__init__()
        finest = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        rescaled = [
            finest,
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        self.levels = nn.ModuleList(rescaled if kind == "rescaled" else [nn.Identity() for _ in range(LEVELS)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the four levels, fine to coarse."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


class _Level(nn.Module):
    """Level i of the Semantic FPN head: max(1, i) blocks of 3x3, BatchNorm, ReLU, each followed by doubling for i > 0."""

    def __init__(self, level: int, channels: int, out: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels if i == 0 else out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
            for i in range(max(1, level))
        )
        self._doubles = level > 0

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = functional.relu(block(x))
            if self._doubles:
                x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x


class SemanticFpn(nn.Module):
    """Semantic FPN (Kirillov et al., 2019) on a plain ViT: four maps [B, D, gh, gw] -> logits at the finest level's size.

    torchvision's feature pyramid (1x1 laterals, nearest resize and add, 3x3 outputs), then the head: every level brought to the
    finest one's size, summed, dropout, 1x1 classifier. 2,754,560 + 1,623,808 parameters at width 384, classifier apart.

    Args:
        width: D.
        num_classes: C.
        kind: see `Pyramid`.
        channels: of the pyramid.
        head_channels: of the head.
        dropout: of whole channels before the classifier.

    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        kind: PyramidKind = "rescaled",
        channels: int = 256,
        head_channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(width, kind)
        self.neck = FeaturePyramidNetwork([width] * LEVELS, channels)
        self.head = nn.ModuleList(_Level(level, channels, head_channels) for level in range(LEVELS))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(head_channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits."""
        levels = OrderedDict((str(i), x) for i, x in enumerate(self.pyramid(maps)))
        found = list(self.neck(levels).values())
        total: Tensor = self.head[0](found[0])
        for branch, x in zip(list(self.head)[1:], found[1:], strict=True):
            total = total + functional.interpolate(
                branch(x), size=total.shape[-2:], mode="bilinear", align_corners=False
            )
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


class FcnHead(nn.Module):
    """One 3x3 convolution with BatchNorm and ReLU, dropout and a 1x1 classifier: a map [B, D, gh, gw] -> logits of its size."""

    def __init__(self, width: int, num_classes: int, *, channels: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.dropout(self.block(features)))
        return logits


class UperNet(nn.Module):
    """UPerNet (Xiao et al., 2018) on a plain ViT: four maps [B, D, gh, gw] -> logits at stride 4.

    The decoder is that of segmentation-models-pytorch. The auxiliary head reads the third map, which the pyramid leaves as it
    is, while training (as mmseg's configurations for a ViT have it).

    Args:
        width: D.
        num_classes: C.
        channels: of the decoder.
        dropout: of whole channels before the classifiers.
        auxiliary_channels: of the auxiliary head; 0 for none.

    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        channels: int = 512,
        dropout: float = 0.1,
        auxiliary_channels: int = 256,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(width, "rescaled")
        self.decoder = UPerNetDecoder([3, width, *[width] * LEVELS], decoder_channels=channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, num_classes)
        self.auxiliary = (
            FcnHead(width, num_classes, channels=auxiliary_channels, dropout=dropout) if auxiliary_channels else None
        )

    def auxiliary_logits(self, maps: Sequence[Tensor]) -> Tensor | None:
        """Return the auxiliary head's logits at the patch's stride; None without it."""
        return None if self.auxiliary is None else self.auxiliary(maps[2])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits."""
        levels = self.pyramid(maps)
        fused = self.decoder([levels[0], levels[0], *levels])  # it skips the first two, of strides 1 and 2
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made
