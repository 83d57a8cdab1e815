# SPDX-License-Identifier: Apache-2.0
"""Sizes of a MODEL without its weights: from an architecture, a name that timm knows, or the configuration in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from rekindle.adapters.peft_folder import is_peft_folder, read_folder
from rekindle.adapters.saved import load_backbone, read_description
from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.networks.backbone import check_plain_vit
from rekindle.networks.blocks import plain_block
from rekindle.networks.checkpoints.architecture import Architecture, build_vit, is_grammar, parse_arch
from rekindle.networks.checkpoints.folders import is_model_folder, model_folder
from rekindle.networks.checkpoints.named import HUB, unknown_model
from rekindle.pretraining.costs import Trunk
from rekindle.pretraining.options import PretrainOptions


def trunk_of(vit: Any, options: PretrainOptions) -> Trunk:
    """The sizes that memory follows from, of a network with or without adapters and weights."""
    block = plain_block(vit.blocks[0])
    hidden = block.mlp.fc2.in_features
    maps = sum(m.in_features * m.out_features for m in block.mlp.modules() if hasattr(m, "out_features"))
    return Trunk(
        vit.embed_dim,
        len(vit.blocks),
        block.attn.num_heads,
        hidden,
        vit.patch_embed.patch_size[0],
        int(vit.cls_token is not None) + (0 if vit.reg_token is None else vit.reg_token.shape[1]),
        rank=options.adapter.width if options.train == "adapters" or options.adapter.in_full_training else 0,
        mlp_maps=round(maps / (vit.embed_dim * hidden)),  # 3 where the MLP is gated
    )


def brings_sizes(options: PretrainOptions) -> bool:
    """Whether the sizes of a network are told without reading or downloading its weights."""
    name = options.network.arch or options.backbone
    return bool(name) and not name.startswith(HUB) and not Path(name).expanduser().is_file()


def vit_without_weights(options: PretrainOptions) -> Any:
    """Return the network that `backbone` names, on the meta device; a checkpoint file, which brings no configuration, is read.

    Raises: RequestError for what is not there, and for a repository of the hub, which would be a download.
    """
    name = options.network.arch or options.backbone
    if name.startswith(HUB):
        raise RequestError(
            f"--memory-gib with {name} would download it; give its timm name, vit:width=..., or a folder"
        )
    path = Path(name).expanduser()
    if is_peft_folder(path):
        return vit_without_weights(options.model_copy(update={"backbone": read_folder(path).base_model()}))
    if path.is_file():
        return load_backbone(name, options.network)[0].vit
    with torch.device("meta"):
        if is_grammar(name):
            return build_vit(parse_arch(name))
        if is_model_folder(path):
            return _of_config(name, read_json(model_folder(path) / "config.json"))
        if path.is_dir():
            return build_vit(Architecture.from_dict(read_description(path)["identity"]["arch"]["network"]))
        return _of_timm(name)


def _of_timm(name: str) -> Any:
    if not timm.is_model(name.split(".")[0]):
        raise unknown_model(name)
    try:
        vit: Any = timm.create_model(name.split(".")[0], pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError as error:  # a convolutional network knows no dynamic_img_size
        raise RequestError(f"'{name}' is not a plain vision transformer ({error})") from error
    check_plain_vit(vit)
    return vit


def _of_config(name: str, config: dict[str, Any]) -> Any:
    """The network of a folder that timm or transformers wrote."""
    if "architecture" in config:
        return _of_timm(str(config["architecture"]))
    if "identity" in config:  # our own class, `rekindle export --format hf`
        return build_vit(Architecture.from_dict(config["identity"]["arch"]["network"]))
    try:
        width, patch = int(config["hidden_size"]), int(config["patch_size"])
        gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
        hidden = config.get("intermediate_size") or int(width * config.get("mlp_ratio", 4))
        if config.get("use_swiglu_ffn"):
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as transformers' Dinov2SwiGLUFFN
        return build_vit(
            Architecture(
                width=width,
                depth=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                patch=patch,
                hidden=int(hidden),
                swiglu=gated,
                registers=int(config.get("num_register_tokens", 0)),
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{name}/config.json does not give the sizes of a plain ViT ({error})") from error
