# SPDX-License-Identifier: Apache-2.0
"""MAE: masked autoencoders (He et al., 2022, arXiv:2111.06377)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.core.progress import Progress
from rekindle.methods.base import LossBreakdown, Method
from rekindle.methods.papers import mae as mae_paper
from rekindle.methods.shared.masking import PLAIN_CROPS
from rekindle.methods.shared.masking import draw_visible as draw_visible
from rekindle.networks.backbone import Backbone
from rekindle.networks.parts.masked_decoder import MaskedDecoder
from rekindle.objectives.reconstruction import as_patches, hidden_patch_error
from rekindle.views.batch import ViewBatch


class MaeOptions(Options):
    """Options of MAE; defaults are the paper's (appendix A.1)."""

    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that are hidden from the encoder."""
    normalise_pixels: bool = True
    """Each patch's pixels are predicted with mean 0 and variance 1."""
    decoder_width: int = Field(512, ge=4)
    """Width of the decoder."""
    decoder_depth: int = Field(8, ge=1)
    """Blocks of the decoder."""
    decoder_heads: int = Field(16, ge=1)
    """Attention heads of the decoder."""
    registers: Literal["refuse", "encode"] = "refuse"
    """What becomes of a backbone's registers, which MAE does not know: refuse the backbone, or encode them beside the visible
    patches and leave them out of the decoder."""


class Mae(Method):
    """An encoder of the visible patches, and a light decoder that predicts the pixels of the hidden ones.

    Deviations: every image gives two crops, each hidden on its own (repeated augmentation). With adapters the frozen trunk
    encodes, and adapters, decoder and its mask token train.
    """

    Config = MaeOptions
    STATED = mae_paper.STATED
    NEEDS: ClassVar[Mapping[str, object]] = PLAIN_CROPS
    PAPER: ClassVar[Mapping[str, object]] = {
        "optim.lr_per_256": 1.5e-4,
        "optim.warmup_epochs": 40.0,
        "optim.final_lr": 0.0,
        "optim.weight_decay": 0.05,
        "optim.beta2": 0.95,
        "optim.clip_norm": 0.0,
        "network.positions": "sincos",
    }

    def __init__(self, config: MaeOptions, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        if backbone.num_registers and config.registers == "refuse":
            raise RequestError(
                f"MAE knows a class token and patches, and this backbone has {backbone.num_registers} registers besides; "
                "--mae.registers encode lets them take part in the encoder and leaves them out of the decoder"
            )
        self.student = backbone
        self.decoder = MaskedDecoder(
            backbone.width,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            out=3 * backbone.patch_size**2,
            num_prefix=int(backbone.has_class_token),
        )

    def loss(self, batch: ViewBatch, progress: Progress) -> LossBreakdown:
        """Return the mean squared error of the hidden patches (section 3, reconstruction target).

        Equals `objectives.plain.hidden_patch_error` of the patches' pixels, standardised where the options say so.
        """
        config, pixels = self.config, batch.global_views.pixels.flatten(0, 1)
        patch = self.student.patch_size
        grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        keep, hidden = draw_visible(progress, len(batch), 2, grid[0] * grid[1], config.mask_ratio)
        keep, hidden = keep.to(pixels.device), hidden.to(pixels.device)
        visible = self.student.visible_tokens(pixels, keep)
        first = int(self.student.has_class_token)
        visible = torch.cat([visible[:, :first], visible[:, self.student.num_prefix :]], dim=1)  # registers stay behind
        predicted = self.decoder(visible, keep, grid)
        error = hidden_patch_error(predicted, as_patches(pixels, patch), hidden, normalise=config.normalise_pixels)
        return LossBreakdown.weigh({"mae": error}, {"mae": 1.0}, {"hidden": hidden.float().mean()})

    def exported(self) -> Backbone:
        """The encoder; the decoder has done its work."""
        return self.student
