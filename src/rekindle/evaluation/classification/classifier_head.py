# SPDX-License-Identifier: Apache-2.0
"""Classifier head on a backbone that learns as a whole, or through the adapters of its pre-training (TEC, sections 13 and 14)."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.evaluation.classification.options import FinetuneOptions
from rekindle.networks.backbone import Backbone
from rekindle.networks.block_outputs import walk_blocks
from rekindle.networks.parts.conditioning import Conditioning, read_conditioning
from rekindle.networks.tokens import Tokens

SAME_TOKEN = 1e-3  # of the class token's norm: how far what the adapters make may lie from what the model holds


class ClassifierHead(nn.Module):
    """All that learns besides the backbone.

    Args:
        width: D, of the backbone.
        num_classes: C.
        options: what the classifier reads, whether it has a norm, and what trains.
        adapters: of `read_adapters`, where they train.

    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        options: FinetuneOptions,
        adapters: tuple[Conditioning, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._inputs, self._has_norm = options.inputs, options.head_norm
        self._trains_backbone = options.train == "all"
        features = 2 * width if options.inputs == "cls+pat" else width
        self.norm = nn.LayerNorm(features, eps=1e-6) if options.head_norm else nn.Identity()
        self.classifier = nn.Linear(features, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.conditioning: Conditioning | None = None
        self.class_token: nn.Parameter | None = None
        if adapters is not None:
            conditioning, token = adapters
            reads_encoder = options.train == "encoder-adapters"
            self.conditioning = Conditioning(conditioning.input, conditioning.encoder if reads_encoder else None)
            self.class_token = nn.Parameter(token.clone()) if conditioning.input is not None else None

    def forward(self, backbone: Backbone, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Return the logits of normalised pixels; a backbone that does not train gives its features without gradient."""
        if self.conditioning is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_backbone):
                tokens = backbone(pixels, norm=not self._has_norm)
        else:
            tokens = self._conditioned(self.conditioning, backbone, pixels)
        cls = [] if self._inputs == "pat" else [tokens.class_token]
        pat = [] if self._inputs == "cls" else [tokens.patches.mean(dim=(1, 2))]
        logits: Tensor = self.classifier(self.norm(torch.cat([*cls, *pat], dim=1)))
        return logits

    def _conditioned(self, conditioning: Conditioning, backbone: Backbone, pixels: Tensor) -> Tokens:
        """Tokens of a backbone whose class token an MLP makes, and whose blocks' outputs are fused where adapters do that."""
        token = None if conditioning.input is None else conditioning.input(self.class_token)
        outputs = [step.after for step in walk_blocks(backbone, pixels, class_token=token)]
        if conditioning.encoder is not None or not self._has_norm:
            outputs[-1] = backbone.vit.norm(outputs[-1])
        first = backbone.num_prefix
        fused = conditioning.fuse([torch.cat([x[:, :1], x[:, first:]], dim=1) for x in outputs])
        grid = [side // backbone.patch_size for side in pixels.shape[-2:]]
        return Tokens(fused[:, 0], fused[:, 1:1], fused[:, 1:].reshape(len(fused), *grid, -1))


def read_adapters(run: str, train: str, backbone: Backbone) -> tuple[Conditioning, Tensor]:
    """Return the adapters of a TEC run and the class token that they read.

    Args:
        run: the run folder.
        train: `input-adapter` or `encoder-adapters`.
        backbone: the run's model; its class token is what the input adapter makes.

    Raises: RequestError where the run has no such adapters, or they are another model's.
    """
    conditioning, token = read_conditioning(Path(run) / "checkpoints" / "last.ckpt")
    missing = {"input-adapter": conditioning.input, "encoder-adapters": conditioning.encoder}[train] is None
    if missing:
        raise RequestError(f"finetune.train = {train}, but the run {run} was trained without them (--tec.{train[:13]})")
    own = backbone.vit.cls_token
    with torch.no_grad():
        made = token if conditioning.input is None else conditioning.input(token)
        is_own = (
            own is not None and made.shape == own.shape and bool((made.to(own) - own).norm() <= SAME_TOKEN * own.norm())
        )
    if not is_own:
        raise RequestError(
            f"finetune.conditioning = {run} holds the adapters of another model; give the folder of MODEL"
        )
    return conditioning, token
