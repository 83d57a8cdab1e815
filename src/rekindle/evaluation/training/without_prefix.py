# SPDX-License-Identifier: Apache-2.0
"""Patch tokens alone: a network without prefix, as published segmentation configurations have it (GLARE, specification 9.1)."""

from __future__ import annotations

from torch import nn

from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone


def drop_prefix(backbone: Backbone) -> None:
    """Take class token and registers out of the sequence, in place; the patches keep their positions.

    Raises: RequestError for a network with rotary positions, whose blocks count on its first tokens.
    """
    if backbone.is_rotary:
        raise RequestError("drop_prefix is for networks with a table of positions; this one has rotary positions")
    vit = backbone.vit
    if vit.pos_embed is not None and not vit.no_embed_class:
        table = vit.pos_embed
        vit.pos_embed = nn.Parameter(
            table.detach()[:, backbone.num_prefix :].clone(), requires_grad=table.requires_grad
        )
    vit.cls_token = vit.reg_token = None
    backbone.has_class_token, backbone.has_cls = False, backbone.mean_as_cls
    backbone.num_registers = backbone.num_prefix = 0
