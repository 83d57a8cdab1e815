# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of any network: bytes in, tokens out, in evaluation mode and without gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens


class FeatureExtractor:
    """What a protocol sees of a network. The backbone is put into evaluation mode and moved to the device.

    Args:
        backbone: the network.
        device: where it computes.
        bf16: compute in bfloat16 autocast; features come out as float32 all the same.

    """

    def __init__(self, backbone: Backbone, *, device: torch.device | str = "cpu", bf16: bool = False) -> None:
        self.device = torch.device(device)
        self._backbone = backbone.to(self.device).eval()
        self._bf16 = bf16
        self._mean = torch.tensor(backbone.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(backbone.std, device=self.device)[:, None, None]
        self.patch_size: int = backbone.patch_size
        self.width: int = backbone.width
        self.depth: int = backbone.depth
        self.has_cls: bool = backbone.has_cls
        self.has_class_token: bool = backbone.has_class_token

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of the tokens after each block."""
        return (self.width,) * self.depth

    def normalise(self, images: Tensor) -> Tensor:
        """Turn bytes [B, 3, H, W] into the pixels that the network expects, on its device."""
        return (images.to(self.device).float() / 255.0 - self._mean) / self._std

    def computing(self) -> torch.autocast:
        """Return the context in which the network computes: bfloat16 where that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean colour of the normalisation, for pixels in [0, 1]."""
        return self._backbone.mean

    @torch.no_grad()
    def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        """Return the tokens after the given blocks (-1 is the last), each after the final norm.

        Args:
            images: uint8 [B, 3, H, W] of any size that the patch divides. An image's tokens do not depend on
                the rest of the batch.
            blocks: 0-based; one entry of the result each.

        """
        pixels = self.normalise(images)
        with self.computing():
            tokens = self._backbone.intermediate(pixels, blocks)
        return [_float(t) for t in tokens]

    @torch.no_grad()
    def attending(self, images: Tensor) -> Tokens:
        """Return the tokens after the last block, with the class token's attention where there is a class token."""
        pixels = self.normalise(images)
        with self.computing():
            tokens = self._backbone(pixels, cls_attention=self._backbone.has_class_token)
        attention = tokens.cls_attention
        plain = _float(tokens)
        return Tokens(plain.cls, plain.registers, plain.patches, None if attention is None else attention.float())

    def trainable_copy(self) -> Backbone:
        """Return a copy in training mode with every parameter free, for fine-tuning protocols."""
        twin = copy.deepcopy(self._backbone).train()
        return twin.requires_grad_(True)


def _float(tokens: Tokens) -> Tokens:
    cls = None if tokens.cls is None else tokens.cls.float()
    return Tokens(cls, tokens.registers.float(), tokens.patches.float())
