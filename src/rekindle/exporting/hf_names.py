# SPDX-License-Identifier: Apache-2.0
"""timm's names turned into those of transformers' ViT, Dinov2, Dinov2WithRegisters and DINOv3ViT, as their files have them.

The inverse of `networks.checkpoints.conversion`. What a model of transformers lacks is put in where that changes nothing: layer
scale of one, a position row of zero.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from rekindle.exporting.parity import native_size
from rekindle.exporting.plain import Obstacle, activation, norm_eps, require_own_tokens, tensors_of
from rekindle.networks.backbone import Backbone

CLASSES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
COMMON = ((r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."), (r"^norm\.", "layernorm."))
ATTENTION = (
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
)
RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "vit": (
        *COMMON,
        *ATTENTION,
        (r"^blocks\.", "encoder.layer."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    "dinov2": (
        *COMMON,
        *ATTENTION,
        (r"^blocks\.", "encoder.layer."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    ),
    "dinov3_vit": (
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"^blocks\.", "layer."),
        (r"\.attn\.query\.", ".attention.q_proj."),
        (r"\.attn\.key\.", ".attention.k_proj."),
        (r"\.attn\.value\.", ".attention.v_proj."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
        (r"\.mlp\.fc1(_x)?\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    ),
}
RENAMES["dinov2_with_registers"] = RENAMES["dinov2"]
KNOWN = re.compile(
    r"norm\.(weight|bias)|patch_embed\.proj\.(weight|bias)|"
    r"blocks\.\d+\.(norm[12]\.(weight|bias)|attn\.(query|key|value|proj)\.(weight|bias)|"
    r"mlp\.fc(1|1_g|1_x|2)\.(weight|bias)|ls[12]\.gamma|gamma_[12])"
)


def to_transformers(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of the transformers model that equals a plain backbone.

    Raises: Obstacle, saying what is in the way, if transformers has no such model.
    """
    require_own_tokens(backbone)
    if not backbone.has_class_token:
        raise Obstacle("it has no class token")
    if len({*backbone.vit.patch_embed.grid_size}) > 1 and not backbone.is_rotary:
        height, width = backbone.vit.patch_embed.grid_size
        raise Obstacle(
            f"its positions are a grid of {height} x {width}, and transformers takes every table for a square"
        )
    state, act, eps = tensors_of(backbone), activation(backbone), norm_eps(backbone)
    prefix: dict[str, Tensor] = {
        name: state.pop(name) for name in ("cls_token", "reg_token", "pos_embed") if name in state
    }
    has_scale = any(name.endswith((".ls1.gamma", ".gamma_1")) for name in state)
    hidden = state["blocks.0.mlp.fc2.weight"].shape[1]
    config = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.num_heads,
        "image_size": native_size(backbone),
        "patch_size": backbone.patch_size,
        "num_channels": 3,
        "layer_norm_eps": eps,
        "hidden_act": act,
    }
    if backbone.is_rotary:
        kind = "dinov3_vit"
        config |= _dinov3(backbone, state, prefix) | {"intermediate_size": hidden, "use_gated_mlp": act == "silu"}
    else:
        if backbone.num_registers:
            kind = "dinov2_with_registers"
        else:
            kind = "dinov2" if has_scale or act == "silu" else "vit"
        config |= {"qkv_bias": "blocks.0.attn.qkv.bias" in state}
        config |= {"intermediate_size": hidden} if kind == "vit" else _dinov2(backbone.width, hidden, act)
        _split_fused(state)
    if kind != "vit":
        _add_layer_scale(backbone, state, "gamma_{}" if backbone.is_rotary else "ls{}.gamma")
    strange = [name for name in state if not KNOWN.fullmatch(name)]
    if strange:
        raise Obstacle(f"transformers' {CLASSES[kind]} has no place for its tensor {strange[0]}")
    named = {_renamed(name, RENAMES[kind]): t for name, t in state.items()}
    if kind in ("dinov2", "dinov2_with_registers") and act == "silu":
        named = {re.sub(r"\.mlp\.fc([12])\.", lambda m: f".mlp.weights_{'in' if m[1] == '1' else 'out'}.", n): t
                 for n, t in named.items()}  # fmt: skip
    named |= _prefix_tokens(backbone, prefix, kind)
    config |= {"num_register_tokens": backbone.num_registers} if backbone.num_registers or kind == "dinov3_vit" else {}
    return {"model_type": kind, "architectures": [CLASSES[kind]]} | config, named


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _split_fused(state: dict[str, Tensor]) -> None:
    """One fused projection into three."""
    for name in [n for n in state if ".attn.qkv." in n]:
        parts = state.pop(name).chunk(3)
        for part, tensor in zip(("query", "key", "value"), parts, strict=True):
            state[name.replace(".qkv.", f".{part}.")] = tensor.contiguous().clone()


def _dinov2(width: int, hidden: int, act: str) -> dict[str, Any]:
    """The width of the MLP as Dinov2 counts it: a whole multiple of the width, from which a gated one is derived."""
    ratios = range(1, 17)
    if act == "silu":
        fitting = [r for r in ratios if (int(width * r * 2 / 3) + 7) // 8 * 8 == hidden]
    else:
        fitting = [r for r in ratios if width * r == hidden]
    if not fitting:
        raise Obstacle(f"transformers' Dinov2 has no MLP of width {hidden} at width {width}")
    return {"mlp_ratio": fitting[0], "use_swiglu_ffn": act == "silu"}


def _dinov3(backbone: Backbone, state: dict[str, Tensor], prefix: dict[str, Tensor]) -> dict[str, Any]:
    rope = backbone.vit.rope
    if type(rope).__name__ != "RotaryEmbeddingDinoV3" or "pos_embed" in prefix or backbone.vit.rope_mixed:
        raise Obstacle(f"transformers has no such rotary positions ({type(rope).__name__})")
    _split_fused(state)
    for part, name in (("query", "q_bias"), ("value", "v_bias")):
        for key in [n for n in state if n.endswith(f".attn.{name}")]:
            state[key.replace(name, f"{part}.bias")] = state.pop(key)
    has = {part: f"blocks.0.attn.{part}.bias" in state for part in ("query", "key", "value")}
    return {"rope_theta": float(rope.temperature)} | {f"{part}_bias": there for part, there in has.items()}


def _add_layer_scale(backbone: Backbone, state: dict[str, Tensor], name: str) -> None:
    for i in range(backbone.depth):
        for which in (1, 2):
            state.setdefault(f"blocks.{i}.{name.format(which)}", torch.ones(backbone.width))


def _prefix_tokens(backbone: Backbone, prefix: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Class and register tokens, and a table with one row for the class token and none for registers."""
    width, registers = backbone.width, prefix.get("reg_token")
    tokens = {"embeddings.cls_token": prefix["cls_token"]}
    if kind == "dinov3_vit":
        empty = torch.zeros(1, 0, width)
        return tokens | {
            "embeddings.register_tokens": empty if registers is None else registers,
            "embeddings.mask_token": torch.zeros(1, 1, width),
        }
    table = prefix["pos_embed"]
    if backbone.vit.no_embed_class:
        table = torch.cat([torch.zeros(1, 1, width), table], dim=1)
    elif registers is not None:  # registers join after the positions are added: their rows go into them
        rows = table[:, 1 : backbone.num_prefix]
        registers, table = registers + rows, torch.cat([table[:, :1], table[:, backbone.num_prefix :]], dim=1)
    tokens |= {"embeddings.position_embeddings": table.contiguous()}
    if registers is not None:
        tokens |= {"embeddings.register_tokens": registers}
    return tokens if kind == "vit" else tokens | {"embeddings.mask_token": torch.zeros(1, width)}
