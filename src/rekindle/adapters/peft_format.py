# SPDX-License-Identifier: Apache-2.0
"""LoRA in the files of Hugging Face's `peft`, which is not needed to write or read them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from rekindle.adapters.attach import attach
from rekindle.adapters.lora import LoraBlock, LowRank
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.peft_folder import CONFIG, PREFIX, TENSORS, read_folder
from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock


def write_peft(folder: Path, backbone: Backbone, base_name: str) -> None:
    """Write a backbone's LoRA as `adapter_config.json` and `adapter_model.safetensors`, each atomically.

    `PeftModel.from_pretrained(timm_model, folder)` reads it; tensors are called
    `base_model.model.blocks.<i>.<map>.lora_A.weight` [r, inputs] and `...lora_B.weight` [outputs, r], without `vit.`.

    Args: base_name, the model that the updates stand on, for PEFT's `base_model_name_or_path`.
    Raises: RequestError for other adapters than LoRA, and where PEFT would leave the update of `qkv` out: EVA with biases of
    queries and values beside a joint map multiplies with the map's weight itself, which PEFT does not touch.
    """
    blocks = _lora_blocks(backbone)
    tensors: dict[str, torch.Tensor] = {}
    for name, update in _updates(blocks).items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.lora_A.weight.detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = update.lora_B.weight.detach().cpu().contiguous()
    first = next(iter(blocks.values()))
    maps = first.updates()
    if "attn.qkv" in maps and getattr(first.block.attn, "q_bias", None) is not None:
        raise RequestError(
            "PEFT would ignore the update of attn.qkv in this network, whose biases lie beside that map; write fold(backbone) "
            "as a checkpoint instead, or train without qkv in adapter.lora_targets"
        )
    update = next(iter(maps.values()))
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": update.rank,
        "lora_alpha": int(update.alpha) if update.alpha.is_integer() else update.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(maps),
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    if len(blocks) < backbone.depth:
        config |= {"layers_to_transform": list(blocks), "layers_pattern": "blocks"}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / TENSORS, lambda stream: stream.write(save(tensors, metadata={"format": "pt"})))
    write_atomically(folder / CONFIG, lambda stream: stream.write(text.encode()))


def read_peft(folder: Path, backbone: Backbone) -> AdapterOptions:
    """Attach the LoRA of a folder that `write_peft` or PEFT wrote to its base, and return its options.

    A target that the file updates in part (some blocks, or the queries alone of three maps) keeps a zero update elsewhere.

    Args: backbone, the base, without adapters; changed in place, and only the updates train in it.
    Raises: RequestError for a file that is missing or damaged, is not plain LoRA, or does not fit the backbone.
    """
    if any(isinstance(block, ComposedBlock) for block in backbone.vit.blocks):
        raise RequestError(f"this backbone has adapters already; read {folder} onto the base without any")
    options = read_folder(folder).options
    attach(backbone, options, train="adapters")
    tensors = load_file(folder / TENSORS)
    own = {
        f"{PREFIX}{name}.{half}.weight": getattr(update, half).weight
        for name, update in _updates(_lora_blocks(backbone)).items()
        for half in ("lora_A", "lora_B")
    }
    wrong = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if wrong:
        raise RequestError(
            f"{folder / TENSORS} does not fit this backbone (first: {wrong[0]}); give the base it was made for"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return options


def _lora_blocks(backbone: Backbone) -> dict[int, LoraBlock]:
    """Blocks with LoRA, by their number."""
    blocks = {i: block for i, block in enumerate(backbone.vit.blocks) if isinstance(block, LoraBlock)}
    if not blocks:
        raise RequestError("PEFT's format holds LoRA, and this backbone has none; train with adapter.kind = lora")
    return blocks


def _updates(blocks: dict[int, LoraBlock]) -> dict[str, LowRank]:
    """All updates, by the name of the map in timm's model."""
    return {f"blocks.{i}.{name}": update for i, block in blocks.items() for name, update in block.updates().items()}
