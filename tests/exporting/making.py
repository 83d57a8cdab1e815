# SPDX-License-Identifier: Apache-2.0
"""Small models on disk, with weights far from their start so that no part of them is idle."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.saved import Lineage, load_backbone, model_hash, save_model
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import create_backbone
from rekindle.networks.checkpoints.tensors import write_checkpoint
from rekindle.networks.options import NetworkOptions

VIT = "vit:width=32,depth=2,heads=2,patch=8,img=32"
DINOV2 = "vit:width=32,depth=2,heads=2,patch=14,img=56,registers=4,no_embed_class=true,layer_scale=true"
DINOV3 = "dinov3:width=32,depth=2,heads=2,patch=8,img=32"
STYLES = {"vit": VIT, "dinov2": DINOV2, "dinov3": DINOV3}


@torch.no_grad()
def stir(backbone: Backbone, amount: float, names: Collection[str] | None = None) -> None:
    draw = torch.Generator().manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if names is None or name in names:
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=amount)


def write_base(folder: Path, arch: str, *, amount: float = 0.2, **network: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backbone, _ = create_backbone(arch, NetworkOptions(**network), init="random")
    stir(backbone, amount)
    path = folder / "base.safetensors"
    write_checkpoint(backbone, path)
    return path


def write_run(folder: Path, arch: str, *, amount: float = 0.2, **adapter: Any) -> Path:
    """A finished run with trained adapters of this kind, as `rekindle pretrain` leaves it."""
    base = write_base(folder, arch, amount=amount)
    backbone, _ = load_backbone(base)
    before = model_hash(backbone)
    options = AdapterOptions(**({"rank": 4} | adapter))
    trained = attach(backbone, options, train="adapters").trained
    stir(backbone, amount, trained)
    run = folder / "run"
    run.mkdir()
    lineage = Lineage(str(base), before, "apache-2.0", "adapters", options, NetworkOptions(), "glare", 7)
    save_model(run, backbone, trained, lineage)
    (run / "config.yaml").write_text("images: /somewhere/secret/beaches\nbatch_size: 4\nseed: 3\n")
    return run


@torch.no_grad()
def features(backbone: Backbone, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels, and all tokens of a model for them."""
    native = [side * backbone.patch_size for side in backbone.vit.patch_embed.grid_size]
    pixels = torch.randn(2, 3, *(size or native), generator=torch.Generator().manual_seed(5))
    return pixels, backbone.eval()(pixels).sequence
