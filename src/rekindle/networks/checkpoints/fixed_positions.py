# SPDX-License-Identifier: Apache-2.0
"""Fixed positions: sines and cosines of rows and columns in place of a learnt table (MAE, MoCo v3, FLSL, TEC's encoder)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.tensors import tensors_hash


@torch.no_grad()
def fix_positions(backbone: Backbone, option: str) -> None:
    """Write the fixed table of a drawn network, with zero rows for class token and registers, and freeze it.

    A network with rotary positions has no table and stays. Args: option, to blame for a width that does not fit.
    Raises: RequestError for a width that is no multiple of 4.
    """
    vit = backbone.vit
    if vit.pos_embed is None:
        return
    if backbone.width % 4:
        raise RequestError(f"{option}: fixed positions need a width that is a multiple of 4, not {backbone.width}")
    rows = 0 if vit.no_embed_class else backbone.num_prefix
    vit.pos_embed[:, :rows] = 0.0
    vit.pos_embed[0, rows:] = sines_and_cosines(vit.patch_embed.grid_size, backbone.width)
    vit.pos_embed.requires_grad_(False)
    backbone.fixed_positions = True
    details = dict(backbone.identity.arch) | {"fixed_positions": True}
    backbone.identity = replace(backbone.identity, arch=details, sha256=tensors_hash(vit.state_dict()))


def sines_and_cosines(grid: tuple[int, int], width: int) -> Tensor:
    """Table [gh * gw, width]: half of the width tells the column, half the row, each by sines and then cosines.

    So MAE's code, which FLSL and TEC share; MoCo v3's begins with the row, which is the same up to the order of the channels.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1).float()
