# SPDX-License-Identifier: Apache-2.0
"""Random initialisation of a new network beside a given one: same kind of input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block
from rekindle.networks.checkpoints.architecture import is_grammar, parse_arch
from rekindle.networks.checkpoints.create import backbone_from_description
from rekindle.networks.checkpoints.tensors import tensors_hash


def drawn_like(base: Backbone, arch: str = "") -> Backbone:
    """Return a plain ViT for the pixels that `base` takes, drawn from torch's default generator as MAE draws its encoder.

    Linear maps and the patch embedding are Xavier-uniform with zero biases, the class token normal with deviation 0.02. A
    position table becomes the fixed sines and cosines of rows and columns, with a zero row for the class token; rotary positions
    stay. Everything else trains.

    Args: arch, its architecture as in `vit:width=768,depth=12,heads=12`; empty is the base's own, without any adapters. What
    `arch` leaves out of patch and img is the base's.
    Raises: RequestError for another patch size, and for a width that sines and cosines do not fit.
    """
    details = dict(base.identity.arch) | {"patch_norm": False}
    if arch:
        if not is_grammar(arch):
            raise RequestError(f"--tec.arch {arch}: write an architecture, such as vit:width=768,depth=12,heads=12")
        parsed = parse_arch(arch)
        given = {part.partition("=")[0].strip() for part in arch.partition(":")[2].split(",")}
        if "patch" not in given:
            parsed = replace(parsed, patch=base.patch_size)
        if "img" not in given:
            parsed = replace(parsed, img=int(base.vit.patch_embed.grid_size[0]) * parsed.patch)
        if parsed.patch != base.patch_size:
            raise RequestError(
                f"--tec.arch {arch}: the new encoder has patches of {parsed.patch} px and the base model of "
                f"{base.patch_size} px; both must cut an image into the same grid, so use patch={base.patch_size}"
            )
        details |= {"network": parsed.to_dict(), "mean_as_cls": False}
    new = backbone_from_description(base.identity.to_dict() | {"arch": details, "source": "random"})
    vit = new.vit
    if vit.pos_embed is not None:
        if new.width % 4:
            raise RequestError(f"--tec.arch: fixed positions need a width that is a multiple of 4, not {new.width}")
        details["fixed_positions"] = new.fixed_positions = True
        _set_fixed_positions(new)
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.data.flatten(1))
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)
    new.identity = replace(new.identity, arch=details, sha256=tensors_hash(vit.state_dict()))
    new.recompute_blocks = base.recompute_blocks
    if not plain_block(base.vit.blocks[0]).attn.fused_attn:
        new.attend_plainly()
    return new


@torch.no_grad()
def _set_fixed_positions(backbone: Backbone) -> None:
    """Write the fixed table and freeze it."""
    vit = backbone.vit
    rows = 0 if vit.no_embed_class else backbone.num_prefix
    vit.pos_embed[:, :rows] = 0.0
    vit.pos_embed[0, rows:] = _sines_and_cosines(vit.patch_embed.grid_size, backbone.width)
    vit.pos_embed.requires_grad_(False)


def _sines_and_cosines(grid: tuple[int, int], width: int) -> Tensor:
    """Table [gh * gw, width]: half of the width tells the column, half the row, each by sines and then cosines (MAE's code)."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1).float()
