# SPDX-License-Identifier: Apache-2.0
"""The Python calls, behind the thin functions of `rekindle` that import nothing until they are called."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rekindle import assemble
from rekindle.adapters.saved import load_backbone
from rekindle.config import read_run_file, resolve
from rekindle.data.decoding import read_image
from rekindle.engine.watcher import Watcher
from rekindle.networks.backbone import Backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.tokens import Tokens


def pretrain(*, resume: bool, watcher: Watcher | None, options: Mapping[str, Any]) -> assemble.PretrainResult:
    """See `rekindle.pretrain`."""
    asked = {k: fspath(v) if isinstance(v, PathLike) else v for k, v in options.items()}
    config = asked.pop("config", None)
    if config is not None:
        resolved = resolve(read_run_file(config), asked, file_name=str(config))
    elif resume:
        resolved = assemble.resolve_resumed(str(asked.get("out", "")), asked)
    else:
        resolved = resolve({}, asked)
    return assemble.pretrain(resolved, resume=resume, watcher=watcher)


def load(model: str | PathLike[str], *, base: str | None, arch: str | None) -> Backbone:
    """See `rekindle.load`."""
    backbone, _ = load_backbone(fspath(model), NetworkOptions(arch=arch), base=base)
    return backbone.eval().requires_grad_(False)


def extract(
    model: Backbone | str | PathLike[str], image: str | PathLike[str] | Image.Image | Tensor, *, size_px: int | None
) -> Tokens:
    """See `rekindle.extract`."""
    backbone = model if isinstance(model, Backbone) else load(model, base=None, arch=None)
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image tensor is uint8 [3, H, W]; got {image.dtype} {list(image.shape)}")
        pixels = image
    else:
        pixels = read_image(fspath(image))
    device = next(backbone.parameters()).device
    views = prepare(pixels[None].to(device), backbone, size_px=size_px)
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        tokens = backbone(views)
    backbone.train(was_training)
    return Tokens(None if tokens.cls is None else tokens.cls[0], tokens.registers[0], tokens.patches[0])


def prepare(images: Tensor, backbone: Backbone, *, size_px: int | None) -> Tensor:
    """Resize uint8 [N, 3, H, W] so that the sides are multiples of the patch, and normalise."""
    patch, (height, width) = backbone.patch_size, images.shape[-2:]
    scale = 1.0 if size_px is None else size_px / min(height, width)
    size = tuple(max(1, round(side * scale / patch)) * patch for side in (height, width))
    pixels = images.float() / 255
    if size != (height, width):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    return (pixels - mean) / std
