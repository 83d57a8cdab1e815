# SPDX-License-Identifier: Apache-2.0
"""timm: a state dict, and the call of `timm.create_model` that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rekindle.exporting.parity import check_parity, native_sides, other_size
from rekindle.exporting.plain import Obstacle, as_plain, norm_eps, require_own_tokens, tensors_of
from rekindle.exporting.source import Exported, Source
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.architecture import Architecture
from rekindle.networks.tokens import Tokens

WEIGHTS, FACTORY, CONFIG = "model.safetensors", "factory.json", "config.json"
FAMILY_EPS = {"vit": 1e-6, "dinov3": 1e-5}


def write(source: Source, folder: Path) -> Exported:
    """Write model.safetensors, factory.json, and the config.json of timm's own `local-dir:` and `hf-hub:` names.

    Raises: Obstacle for adapters and token rules that timm's models do not have; RekindleError if the features differ.
    """
    backbone = as_plain(source.backbone)
    require_own_tokens(backbone)
    name, arguments = factory(backbone)
    save_file(tensors_of(backbone), folder / WEIGHTS, metadata={"format": "pt"})
    call = f"timm.create_model({name!r}, pretrained=False, {', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    recipe = {"name": name, "kwargs": arguments, "call": call, "timm": timm.__version__}
    (folder / FACTORY).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(_hub_config(backbone, name, arguments), indent=2) + "\n", encoding="utf-8")
    (height, width), other = native_sides(backbone), other_size(backbone)
    sizes = [(2, height, width), *([(1, *other)] if backbone.is_rotary else [])]
    parity = check_parity(
        source.backbone, _reloaded(folder, backbone), sizes, elsewhere=() if backbone.is_rotary else [other]
    )
    notes = ["`forward_features` returns all tokens in the order class, registers, patches."]
    if not backbone.is_rotary:
        notes.append(
            f"The parity holds at {height} x {width} px. At other sizes timm resizes positions with its own rule (bicubic, "
            f"with a low-pass filter when shrinking); this model was trained with the rule `{backbone.pos_interp}`. At "
            f"{other[0]} x {other[1]} px the largest difference is {parity.elsewhere[other]:.1e}."
        )
    return Exported(
        parity=parity,
        library="timm",
        usage=(
            "import timm\nfrom safetensors.torch import load_file\n\n"
            f'model = {call}\nmodel.load_state_dict(load_file("{WEIGHTS}"))\n'
            "features = model.eval().forward_features(pixels)  # [images, tokens, width]\n\n"
            '# or, with a timm that knows folders: timm.create_model("local-dir:THIS_FOLDER", pretrained=True)\n'
        ),
        notes=tuple(notes),
    )


def factory(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the `timm.create_model` call for this architecture, plain values only.

    Raises: Obstacle if no such call can be made of plain values.
    """
    vit, arch = backbone.vit, Architecture.from_dict(_description(backbone))
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True}
    height, width = native_sides(backbone)
    arguments["img_size"] = height if height == width else [height, width]
    is_classic = isinstance(vit, VisionTransformer)
    act = {} if not arch.act or arch.swiglu else {"act_layer": arch.act}
    if arch.family == "timm":
        if is_classic:
            arguments |= {"reg_tokens": arch.registers, "no_embed_class": arch.no_embed_class} | act
        return arch.timm_name, arguments
    if arch.eps and arch.eps != FAMILY_EPS[arch.family]:
        raise Obstacle(f"its LayerNorms have epsilon {norm_eps(backbone):g}, which no argument of create_model sets")
    hidden = arch.hidden or 4 * arch.width
    arguments |= {
        "patch_size": arch.patch,
        "embed_dim": arch.width,
        "depth": arch.depth,
        "num_heads": arch.heads,
        "qkv_bias": arch.qkv_bias,
        "init_values": 1e-5 if arch.layer_scale else None,
        "class_token": arch.class_token,
    }
    if not is_classic:
        if act:
            raise Obstacle(f"its MLPs have {arch.act}, which no argument of create_model sets in a rotary network")
        arguments |= {"mlp_ratio": hidden / arch.width, "num_reg_tokens": arch.registers}
        return "vit_small_plus_patch16_dinov3" if arch.swiglu else "vit_small_patch16_dinov3", arguments
    arguments |= {
        "mlp_ratio": (2 if arch.swiglu else 1) * hidden / arch.width,
        "reg_tokens": arch.registers,
        "no_embed_class": arch.no_embed_class,
        "pre_norm": arch.pre_norm,
    } | act
    return "vit_giant_patch14_dinov2" if arch.swiglu else "vit_base_patch16_224", arguments


def _description(backbone: Backbone) -> dict[str, object]:
    network = backbone.identity.arch["network"]
    assert isinstance(network, dict)
    return dict(network)


def _reloaded(folder: Path, backbone: Backbone) -> Any:
    """The files as timm runs them."""
    recipe = json.loads((folder / FACTORY).read_text(encoding="utf-8"))
    model: Any = timm.create_model(recipe["name"], pretrained=False, **recipe["kwargs"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise Obstacle(f"timm's {recipe['name']} does not take its tensors ({first})") from error
    model.eval()

    def forward(pixels: Tensor) -> Tokens:
        return split_tokens(model.forward_features(pixels), backbone, pixels)

    return forward


def split_tokens(sequence: Tensor, backbone: Backbone, pixels: Tensor) -> Tokens:
    """Cut [N, T, D], in the order class, registers, patches, into tokens of these pixels."""
    grid = [side // backbone.patch_size for side in pixels.shape[-2:]]
    prefix, registers = backbone.num_prefix, backbone.num_registers
    cls = sequence[:, 0] if backbone.has_class_token else None
    patches = sequence[:, prefix:].reshape(len(sequence), *grid, -1)
    return Tokens(cls, sequence[:, prefix - registers : prefix], torch.as_tensor(patches))


def _hub_config(backbone: Backbone, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    height, width = native_sides(backbone)
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.width,
        "global_pool": "",
        "model_args": {k: v for k, v in arguments.items() if k != "num_classes"},
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": backbone.identity.licence,
        },
    }
