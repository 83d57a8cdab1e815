# SPDX-License-Identifier: Apache-2.0
"""Plain vision transformers, which other programs can hold, with foldable adapters folded into their weights."""

from __future__ import annotations

from typing import Any

from timm.layers.activations import QuickGELU
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn

from rekindle.adapters.attach import is_adapted
from rekindle.adapters.folding import fold
from rekindle.adapters.replacing import ReplacingBlock
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock

PLAIN_ACTIVATIONS = {QuickGELU: "quick_gelu", nn.ReLU: "relu"}


class Obstacle(Exception):
    """Why a format cannot hold a model, as a clause: "it has register tokens"."""


def folded(backbone: Backbone) -> Backbone:
    """Return a copy with LoRA, norm and bias adapters in its weights; the backbone itself if there is nothing to fold."""
    blocks = backbone.vit.blocks
    if any(isinstance(block, ReplacingBlock) for block in blocks) and all(
        isinstance(block, ReplacingBlock) or not isinstance(block, ComposedBlock) for block in blocks
    ):
        return fold(backbone)
    return backbone


def as_plain(backbone: Backbone) -> Backbone:
    """Return the backbone without adapters: itself, or a copy with what they learned added to its weights.

    Raises: Obstacle if an adapter is not a change of weights.
    """
    plain = folded(backbone)
    if is_adapted(plain):
        raise Obstacle(
            "it has adapters with a non-linearity between two layers, which cannot become weights of a plain vision transformer"
        )
    return plain


def require_own_tokens(backbone: Backbone) -> None:
    """Raise Obstacle if tokens come about in a way that a plain transformer does not know (UDI, FLSL)."""
    if backbone.patch_norm is not None:
        raise Obstacle("its patch tokens have a norm of their own (patch_norm = udi_norm1)")
    if backbone.mean_as_cls:
        raise Obstacle("the mean of its patch tokens plays the class token (flsl_cls = meanpool)")


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return the timm model's tensors by timm's names, contiguous and without shared memory."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in backbone.vit.state_dict().items()}


def norm_eps(backbone: Backbone) -> float:
    """Return the epsilon that all LayerNorms share. Raises Obstacle if they do not share one."""
    found = {module.eps for module in backbone.vit.modules() if isinstance(module, nn.LayerNorm)}
    if len(found) != 1:
        raise Obstacle(f"its LayerNorms have different epsilons ({', '.join(map(str, sorted(found)))})")
    return found.pop()


def activation(backbone: Backbone) -> str:
    """Return the name of the activation as transformers has it, `silu` for a gated MLP. Raises Obstacle for any other."""
    for block in backbone.vit.blocks:
        mlp: Any = block.mlp
        if type(mlp) is Mlp and type(mlp.act) is nn.GELU:
            name = "gelu" if mlp.act.approximate == "none" else "gelu_pytorch_tanh"
        elif type(mlp) is Mlp and type(mlp.act) in PLAIN_ACTIVATIONS:
            name = PLAIN_ACTIVATIONS[type(mlp.act)]
        elif type(mlp) is SwiGLU or (type(mlp) is GluMlp and not mlp.gate_last):
            name = "silu" if type(mlp.act) is nn.SiLU else ""
        else:
            name = ""
        if not name:
            raise Obstacle(f"its blocks have an MLP of type {type(mlp).__name__} with {type(mlp.act).__name__}")
    return name
