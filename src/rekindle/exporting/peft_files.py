# SPDX-License-Identifier: Apache-2.0
"""PEFT: the updates of LoRA alone, for the base they were trained on."""

from __future__ import annotations

import copy
from pathlib import Path

from rekindle.adapters.lora import LoraBlock
from rekindle.adapters.peft_folder import TENSORS, is_peft_folder, read_folder
from rekindle.adapters.peft_format import read_peft, write_peft
from rekindle.adapters.saved import DESCRIPTION, read_description
from rekindle.exporting.parity import check_parity, native_size, other_size
from rekindle.exporting.plain import Obstacle
from rekindle.exporting.source import Exported, Source, short_name
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block


def write(source: Source, folder: Path) -> Exported:
    """Write adapter_config.json and adapter_model.safetensors, and read them onto the base.

    Raises: Obstacle for other adapters than LoRA; RequestError where PEFT would leave an update out; RekindleError if the
    features differ.
    """
    backbone = source.backbone
    if not any(isinstance(block, LoraBlock) for block in backbone.vit.blocks):
        raise Obstacle("it has no LoRA, which is all that PEFT's files hold of a vision transformer")
    base = short_name(_base_name(source))
    write_peft(folder, backbone, base)
    loaded = _without_adapters(backbone)
    read_peft(folder, loaded)
    side = native_size(backbone)
    return Exported(
        parity=check_parity(backbone, loaded.eval(), [(2, side, side), (1, *other_size(backbone))]),
        library="peft",
        usage=(
            "import rekindle\n\n"
            f'model = rekindle.load("THIS_FOLDER", base={base!r})\n\n'
            "# or with PEFT, around the base as timm has it:\n"
            "import peft\n\n"
            'model = peft.PeftModel.from_pretrained(timm_model, "THIS_FOLDER")\n'
        ),
        notes=(
            f"The folder holds the updates alone ({TENSORS}). They belong on their base, which `base_model_name_or_path` names; "
            "`rekindle.load` takes a base that lies elsewhere as `base`.",
        ),
        tags=("peft",),
    )


def _base_name(source: Source) -> str:
    """The MODEL whose weights are under the updates: the last one of the lineage that has no adapters of its own.

    The network's identity says less: a run that trained all weights has the one of the model that it started from.
    """
    name, description = source.name, dict(source.description)
    while True:
        folder = Path(name)
        if is_peft_folder(folder):
            return read_folder(folder).base or source.backbone.identity.name
        if not description and (folder / DESCRIPTION).is_file():
            description = read_description(folder)
        if not description or description["adapter"] is None or description["is_whole"]:
            return name
        name, description = str(description["base"]["name"]), {}


def _without_adapters(backbone: Backbone) -> Backbone:
    base = copy.deepcopy(backbone, {id(backbone.compiled): None})
    for i, block in enumerate(base.vit.blocks):
        base.vit.blocks[i] = plain_block(block)
    return base
