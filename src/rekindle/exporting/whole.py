# SPDX-License-Identifier: Apache-2.0
"""Our own layout, whole: base and adapters in one folder that `rekindle.load` reads without anything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.saved import DESCRIPTION, FORMAT, WEIGHTS, load_backbone
from rekindle.exporting.parity import check_parity, native_size, other_size
from rekindle.exporting.source import Exported, Source, short_name
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import backbone_from_description
from rekindle.networks.checkpoints.tensors import tensors_hash
from rekindle.networks.options import NetworkOptions


def write(source: Source, folder: Path) -> Exported:
    """Write model.safetensors and model.json, and load them back. Raises RekindleError if the features differ."""
    tensors = whole_tensors(source.backbone)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(
        json.dumps(written_description(source, tensors), indent=2) + "\n", encoding="utf-8"
    )
    loaded, _ = load_backbone(folder)
    side = native_size(source.backbone)
    return Exported(
        parity=check_parity(source.backbone, loaded.eval(), [(2, side, side), (1, *other_size(source.backbone))]),
        library="rekindle",
        usage=(
            "import rekindle\n\n"
            'model = rekindle.load("THIS_FOLDER")  # or `rekindle evaluate THIS_FOLDER ...`\n'
            'tokens = rekindle.extract(model, "image.jpg")  # tokens.cls [D], tokens.patches [gh, gw, D]\n'
        ),
        notes=("The folder holds all tensors, adapters included; the base it came from is not needed.",),
    )


def whole_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return every tensor of the model by our names, contiguous and without shared memory."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in backbone.state_dict().items()}


def written_description(source: Source, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return model.json of the whole model; what a run recorded of its training is kept."""
    known, identity = source.description, source.backbone.identity
    base = {"name": identity.name, "sha256": identity.sha256, "licence": identity.licence} | dict(known.get("base", {}))
    content = tensors_hash(tensors)
    return {
        "format": FORMAT,
        "is_whole": True,
        "identity": public_identity(source.backbone),
        "weights_hash": content,
        "model_hash": content,
        "base": base | {"name": short_name(str(base["name"]))},
        "train": known.get("train"),
        "adapter": None if source.adapter is None else source.adapter.model_dump(mode="json"),
        "network": known.get("network", NetworkOptions().model_dump(mode="json")),
        "method": known.get("method"),
        "steps": known.get("steps"),
    }


def public_identity(backbone: Backbone) -> dict[str, object]:
    """Return the identity without the path that the weights lay at here."""
    identity = backbone.identity
    return identity.to_dict() | {"name": short_name(identity.name)}


def build(identity: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> Backbone:
    """Build an empty model of this description on the CPU, in evaluation mode; the caller loads its weights."""
    with torch.device("cpu"):
        backbone = backbone_from_description(identity)
        if adapter is not None:
            attach(backbone, AdapterOptions.model_validate(adapter), train="adapters")
    return backbone.eval().requires_grad_(False)


def restore_buffers(backbone: Backbone, identity: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> None:
    """Compute buffers that no file holds (rotary periods) again, after a loader has emptied them."""
    own, fresh = dict(backbone.named_buffers()), build(identity, adapter)
    kept = fresh.state_dict()
    for name, value in fresh.named_buffers():
        if name not in kept:
            own[name].copy_(value)
