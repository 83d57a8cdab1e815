# SPDX-License-Identifier: Apache-2.0
"""mmsegmentation: a checkpoint whose keys are those of its VisionTransformer inside a segmentor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rekindle.exporting.parity import check_parity, native_sides, other_size
from rekindle.exporting.plain import Obstacle, activation, as_plain, norm_eps, require_own_tokens, tensors_of
from rekindle.exporting.source import Exported, Source
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import backbone_from_description

FILE = "model.pth"
NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"norm\.", "ln1."),
    (r"blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attn.attn.in_proj_"),
    (r"blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attn.attn.out_proj."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
)
BACK = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"ln1\.", "norm."),
    (r"layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"layers\.(\d+)\.attn\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
)


def write(source: Source, folder: Path) -> Exported:
    """Write model.pth, and compare the features after its keys are mapped back.

    Raises: Obstacle for what mmsegmentation's VisionTransformer cannot hold; RekindleError if the features differ.
    """
    backbone = as_plain(source.backbone)
    require_fit(backbone)
    named = {f"backbone.{name}": tensor for name, tensor in to_mmseg(backbone).items()}
    torch.save({"state_dict": named, "meta": {}}, folder / FILE)
    content = torch.load(folder / FILE, weights_only=True)["state_dict"]
    reread = from_mmseg({name.removeprefix("backbone."): t for name, t in content.items()}, backbone)
    (height, width), patch = native_sides(backbone), backbone.patch_size
    hidden = backbone.vit.blocks[0].mlp.fc1.out_features
    # mmsegmentation's own rule for positions, to say what to expect at another size
    reread.pos_interp = "size"
    other = other_size(backbone)
    parity = check_parity(source.backbone, reread, [(2, height, width)], elsewhere=[other])
    return Exported(
        parity=parity,
        library="mmsegmentation",
        usage=(
            "# mmsegmentation configuration; load_from fills the backbone of the segmentor\n"
            f'load_from = "{FILE}"\n'
            "model = dict(\n    backbone=dict(\n"
            f'        type="VisionTransformer", img_size=({height}, {width}), patch_size={patch}, in_channels=3,\n'
            f"        embed_dims={backbone.width}, num_layers={backbone.depth}, num_heads={backbone.num_heads}, "
            f"mlp_ratio={hidden // backbone.width}, qkv_bias=True,\n"
            f'        norm_cfg=dict(type="LN", eps={norm_eps(backbone)!r}), act_cfg=dict(type="GELU"), final_norm=True,\n'
            '        with_cls_token=True, interpolate_mode="bicubic",\n    ),\n)\n'
        ),
        notes=(
            "norm_cfg and final_norm matter: mmsegmentation's defaults are another epsilon (1e-5) and no final norm. Keep "
            "img_size as above also when you train with larger crops; positions are then resized on the way.",
            f"The parity is of the mapping, at {height} x {width} px; mmsegmentation itself was not run. At other sizes it "
            f"resizes positions with plain bicubic interpolation; this model was trained with the rule "
            f"`{backbone.pos_interp}`. At {other[0]} x {other[1]} px the largest difference is {parity.elsewhere[other]:.1e}.",
        ),
    )


def require_fit(backbone: Backbone) -> None:
    """Raise Obstacle, naming what is in the way, for what mmsegmentation's VisionTransformer cannot hold."""
    require_own_tokens(backbone)
    vit, state = backbone.vit, backbone.vit.state_dict()
    reasons = {
        "rotary positions": backbone.is_rotary or not isinstance(vit, VisionTransformer),
        "register tokens": backbone.num_registers > 0,
        "no class token": not backbone.has_class_token,
        "a norm before the first block": "norm_pre.weight" in state,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if not found:
        try:
            if (act := activation(backbone)) != "gelu":
                found.append("a gated MLP" if act == "silu" else f"MLPs with {act}")
        except Obstacle as error:
            found.append(str(error))
    if not found:
        known = re.compile(
            "|".join(f"(?:{old})" for old, _ in NAMES) + r"|cls_token|pos_embed|blocks\.\d+\.ls[12]\.gamma$"
        )
        found += [f"the tensor {name}" for name in state if not known.match(name)][:1]
    if not found and vit.blocks[0].mlp.fc1.out_features % backbone.width:
        found.append(f"an MLP of width {vit.blocks[0].mlp.fc1.out_features}, no multiple of {backbone.width}")
    if found:
        raise Obstacle(f"mmsegmentation's VisionTransformer does not know {', '.join(found)}")


def to_mmseg(backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors by mmsegmentation's names; what its model always has is put in as zeros.

    Layer scale, which it has not, goes into the map before it: gamma * (W x + b) = (gamma W) x + gamma b.
    """
    state = tensors_of(backbone)
    for gamma in [name for name in state if name.endswith(".gamma")]:
        scale = state.pop(gamma)
        block, which = gamma.rpartition(".ls")[0], gamma[-len("1.gamma")]
        before = f"{block}.attn.proj" if which == "1" else f"{block}.mlp.fc2"
        state[f"{before}.weight"] *= scale[:, None]
        state[f"{before}.bias"] *= scale
    if backbone.vit.no_embed_class:
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, backbone.width), state["pos_embed"]], dim=1)
    for i in range(backbone.depth):  # without it, torch's MultiheadAttention would drop the output's bias as well
        state.setdefault(f"blocks.{i}.attn.qkv.bias", torch.zeros(3 * backbone.width))
    return {_renamed(name, NAMES): tensor for name, tensor in state.items()}


def from_mmseg(named: Mapping[str, Tensor], like: Backbone) -> Backbone:
    """Return a new backbone of the architecture of `like` with the tensors of an mmsegmentation VisionTransformer."""
    fresh = backbone_from_description(like.identity.to_dict())
    state = {_renamed(name, BACK): tensor for name, tensor in named.items()}
    if like.vit.no_embed_class:
        state["pos_embed"] = state["pos_embed"][:, 1:]
    expected = fresh.vit.state_dict()
    state |= {name: torch.ones_like(t) for name, t in expected.items() if name.endswith(".gamma")}
    absent = {n: t for n, t in state.items() if n not in expected and n.endswith(".attn.qkv.bias") and not t.any()}
    fresh.vit.load_state_dict({n: t for n, t in state.items() if n not in absent}, strict=True)
    return fresh.eval()


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        changed, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return changed
    return name
