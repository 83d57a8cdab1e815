# SPDX-License-Identifier: Apache-2.0
"""Random initialisation of a new network beside a given one: same kind of input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block
from rekindle.networks.checkpoints.architecture import is_grammar, parse_arch
from rekindle.networks.checkpoints.create import backbone_from_description
from rekindle.networks.checkpoints.fixed_positions import fix_positions, sines_and_cosines
from rekindle.networks.checkpoints.tensors import tensors_hash


def is_of_mae(backbone: Backbone) -> bool:
    """Whether a network was trained by MAE, or drawn beside one that was, whatever its file is called.

    MAE's table holds its sines and cosines, columns before rows (MoCo v3 has rows first), and zeros for the class token. A
    network that was drawn has such a table too; it says itself whom it learnt from.
    """
    identity, table = backbone.identity, backbone.vit.pos_embed
    if "is_of_mae" in identity.arch:
        return bool(identity.arch["is_of_mae"])
    if identity.name.endswith(".mae"):
        return True
    if identity.source == "random" or table is None or not backbone.has_class_token or backbone.vit.no_embed_class:
        return False
    rows, known = table.detach()[0, backbone.num_prefix :].float().cpu(), backbone.vit.patch_embed.grid_size
    has_zeros = not bool(table.detach()[0, : backbone.num_prefix].any())
    if not has_zeros or backbone.width % 4:
        return False
    return torch.allclose(rows, sines_and_cosines(known, backbone.width), atol=1e-4)


def drawn_like(base: Backbone, arch: str = "", *, option: str = "--tec.arch") -> Backbone:
    """Return a plain ViT for the pixels that `base` takes, drawn from torch's default generator as MAE draws its encoder.

    Linear maps and the patch embedding are Xavier-uniform with zero biases, the class token normal with deviation 0.02. A
    position table becomes the fixed sines and cosines of rows and columns, with a zero row for the class token; rotary positions
    stay. Everything else trains.

    Args: arch, its architecture as in `vit:width=768,depth=12,heads=12`; empty is the base's own, without any adapters. What
    `arch` leaves out of patch and img is the base's; option, what names it, for messages.
    Raises: RequestError for another patch size, and for a width that sines and cosines do not fit.
    """
    details = dict(base.identity.arch) | {"patch_norm": False, "is_of_mae": is_of_mae(base)}
    if arch:
        if not is_grammar(arch):
            raise RequestError(f"{option} {arch}: write an architecture, such as vit:width=768,depth=12,heads=12")
        parsed = parse_arch(arch)
        given = {part.partition("=")[0].strip() for part in arch.partition(":")[2].split(",")}
        if "patch" not in given:
            parsed = replace(parsed, patch=base.patch_size)
        if "img" not in given:
            parsed = replace(parsed, img=int(base.vit.patch_embed.grid_size[0]) * parsed.patch)
        if parsed.patch != base.patch_size:
            raise RequestError(
                f"{option} {arch}: the new encoder has patches of {parsed.patch} px and the base model of "
                f"{base.patch_size} px; both must cut an image into the same grid, so use patch={base.patch_size}"
            )
        details |= {"network": parsed.to_dict(), "mean_as_cls": False}
    new = backbone_from_description(base.identity.to_dict() | {"arch": details, "source": "random"})
    vit = new.vit
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.data.flatten(1))
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)
    new.identity = replace(new.identity, arch=details, sha256=tensors_hash(vit.state_dict()))
    fix_positions(new, option)
    new.recompute_blocks = base.recompute_blocks
    if not plain_block(base.vit.blocks[0]).attn.fused_attn:
        new.attend_plainly()
    return new
