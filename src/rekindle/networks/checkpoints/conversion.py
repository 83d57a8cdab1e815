# SPDX-License-Identifier: Apache-2.0
"""The names that other projects give to the tensors of a ViT, turned into timm's.

Inside the backbone most use timm's names already, and only wrappers and prefix tokens differ:

| Layout | Backbone keys | Turned into |
|---|---|---|
| DINO, iBOT, FLSL (student / teacher) | `module.backbone.*` / `backbone.*` | bare names |
| DINOv2, DINOv3 in training | `student.backbone.*` and `teacher.backbone.*` in one entry | bare names of one (default: teacher) |
| UDI | `module.backbone.backbone.*` / `backbone.backbone.*`, two class tokens | bare names, 1 register |
| MAE | bare, beside `decoder_*` and `mask_token` | bare names |
| MoCo-v3 | `module.base_encoder.*`, `module.momentum_encoder.*` | bare names of one (default: base) |
| DINOv2 | `register_tokens`, `blocks.C.N.*`, `mlp.w12` | `reg_token`, `blocks.N.*`, `mlp.fc1` |
| DINOv3 | `storage_tokens`, `ls1.gamma`, fused `qkv.bias` | `reg_token`, `gamma_1`, `q_bias` and `v_bias` |
| Hugging Face ViT, Dinov2, DINOv3ViT | `encoder.layer.N.*`, `layer.N.*`, separate q, k, v | fused `qkv` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.networks.checkpoints.architecture import sincos_rows
from rekindle.networks.checkpoints.reading import MOCO_ENCODERS, CheckpointFile, names_network

ANCHORS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
HEAD_LIKE = re.compile(
    r"(head|head_dist|heads|dino_head|ibot_head|fc|classifier|pooler|projector|predictor|projection_head|"
    r"mask_token|masked_embed|embeddings\.mask_token|decoder\w*|pre_logits|lm_head|local_cls_norm|attn_pool)(\.|$)"
)
BUFFERS = re.compile(r"(^|\.)(bias_mask|periods|rope\w*\.\w+|num_batches_tracked|relative_position_index)$")

HUGGING_FACE = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)$", r"patch_embed.proj.\1"),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attn.{dict(q='query', k='key', v='value')[m[1]]}."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
)
MLP_NAMES = {"w12": "fc1", "w1": "fc1_g", "w2": "fc1_x", "w3": "fc2"}


@dataclass(frozen=True)
class Converted:
    """A backbone's tensors by timm's names.

    Attributes:
        state: the tensors.
        ignored: names of the file that belong to heads, decoders and wrappers.
        layout: what the file looks like, for messages.
        untrained_cls: the file's class token was never trained (FLSL) and is left out of `state`.
        udi_norm: weight and bias of the norm that a UDI file trained for its patch tokens.

    """

    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    layout: str
    untrained_cls: bool = False
    udi_norm: tuple[Tensor, Tensor] | None = None


def to_timm_names(file: CheckpointFile, key: str | None = None) -> Converted:
    """Find the backbone in the file's tensors and rename it.

    Args:
        file: as read.
        key: the user's `checkpoint_key`, which chooses one of several networks in one entry.

    Raises:
        RequestError: if there is no ViT in it, or more than one.

    """
    prefix, anchor = _find_backbone(file, key)
    inside = {name[len(prefix) :]: t for name, t in file.tensors.items() if name.startswith(prefix)}
    ignored = [name for name in file.tensors if not name.startswith(prefix)]
    ignored += [prefix + name for name in inside if HEAD_LIKE.match(name) or BUFFERS.search(name)]
    # a DINOv3 without registers keeps an empty tensor of them
    state = {n: t for n, t in inside.items() if t.numel() and not (HEAD_LIKE.match(n) or BUFFERS.search(n))}
    layout = "timm-named"
    if anchor != ANCHORS[0]:
        state, layout = _from_hugging_face(state), "Hugging Face"
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): t for name, t in state.items()}
    if any(name.startswith("fc_norm.") for name in state) and "norm.weight" not in state:
        state = {re.sub(r"^fc_norm\.", "norm.", name): t for name, t in state.items()}
    if "pos_embed" not in state:
        state, layout = _dinov3_names(state), f"{layout} DINOv3"
    elif "register_tokens" in state:
        state, layout = _registers_without_positions(state), f"{layout} DINOv2"
    state = {_gated_mlp_name(name): t for name, t in state.items()}
    if "cls_token" in state and state["cls_token"].shape[1] > 1:  # UDI: class tokens after the first are registers
        state["reg_token"], state["cls_token"] = state["cls_token"][:, 1:], state["cls_token"][:, :1]
        layout = "UDI"
    table = state.get("pos_embed")
    untrained_cls = table is not None and sincos_rows(table) and "reg_token" not in state and "cls_token" in state
    if untrained_cls:
        del state["cls_token"]
        ignored.append(prefix + "cls_token")
        layout = "FLSL"
    return Converted(state, tuple(ignored), layout, untrained_cls, _udi_norm(file.tensors, prefix))


def _find_backbone(file: CheckpointFile, key: str | None) -> tuple[str, str]:
    """Return the prefix of the backbone's names, and which naming it follows."""
    found = [(n[: -len(a)], a) for n in file.tensors for a in ANCHORS if n == a or n.endswith("." + a)]
    if not found:
        sample = ", ".join(list(file.tensors)[:5]) or "no tensors"
        raise RequestError(f"no vision transformer in this file: no name ends in '{ANCHORS[0]}' (it holds {sample})")
    if key is not None and key not in file.entry.split("."):
        found = _named(found, key, MOCO_ENCODERS.get(key, key)) or found
    elif len(found) > 1:
        found = _named(found, "teacher") or _named(found, MOCO_ENCODERS["student"]) or found
    if len(found) == 1:
        return found[0]
    prefixes = [p.removesuffix(".") or "''" for p, _ in found]
    raise RequestError(
        f"more than one network in this file ({', '.join(prefixes)}); choose with --network.checkpoint-key {prefixes[-1]}"
    )


def _named(found: Sequence[tuple[str, str]], *keys: str) -> list[tuple[str, str]]:
    """Those whose prefix holds one of the keys."""
    return [(prefix, anchor) for prefix, anchor in found if any(names_network(prefix, key) for key in keys)]


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    gated = any(".mlp.gate_proj." in name for name in state)
    for name, tensor in state.items():
        for pattern, replacement in HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        name = name.replace(".mlp.up_proj.", ".mlp.w2." if gated else ".mlp.fc1.")
        renamed[name.replace(".mlp.down_proj.", ".mlp.w3." if gated else ".mlp.fc2.")] = tensor
    fused = {n: t for n, t in renamed.items() if not re.search(r"\.attn\.(query|key|value)\.", n)}
    for name in renamed:
        if name.endswith(".attn.query.weight"):
            stem = name.removesuffix("query.weight")
            weights = [renamed.get(f"{stem}{part}.weight") for part in ("query", "key", "value")]
            fused |= _fused(f"{stem}qkv.weight", weights)
            biases = [renamed.get(f"{stem}{part}.bias") for part in ("query", "key", "value")]
            if biases[0] is not None:
                fused |= _fused(f"{stem}qkv.bias", [torch.zeros_like(biases[0]) if b is None else b for b in biases])
    return fused


def _fused(name: str, parts: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """One fused tensor, or nothing where a part is missing: the match report then names it."""
    present = [p for p in parts if p is not None]
    return {name: torch.cat(present)} if len(present) == len(parts) else {}


def _registers_without_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's registers join after the positions are added: fold the class token's own row into it."""
    state = dict(state)
    table = state.pop("pos_embed")
    state["reg_token"] = state.pop("register_tokens")
    return state | {"cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def _dinov3_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"^(storage_tokens|register_tokens)$", "reg_token", name)
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        if name.endswith(".attn.qkv.bias"):  # the key's third is masked in DINOv3: it has no effect on the softmax
            q, _, v = tensor.chunk(3)
            stem = name.removesuffix("qkv.bias")
            renamed |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
        else:
            renamed[name] = tensor
    return renamed


def _gated_mlp_name(name: str) -> str:
    return re.sub(r"(?<=\.mlp\.)(w12|w[123])(?=\.)", lambda m: MLP_NAMES[m[1]], name)


def _udi_norm(tensors: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor] | None:
    """UDI wraps the ViT once more; its patch branch begins with a norm beside the ViT."""
    if not prefix.endswith("backbone.backbone."):
        return None
    parent = prefix.removesuffix("backbone.")
    weight, bias = tensors.get(f"{parent}norm1.weight"), tensors.get(f"{parent}norm1.bias")
    return None if weight is None or bias is None else (weight, bias)
