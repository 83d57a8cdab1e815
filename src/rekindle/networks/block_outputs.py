# SPDX-License-Identifier: Apache-2.0
"""The blocks of a backbone one after the other: what goes into each and what comes out, of all patches or of the visible ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import BlockPass, TimmBlock
from rekindle.networks.position import rope_rows


@dataclass(frozen=True)
class BlockStep:
    """One block of a pass.

    Attributes:
        block: plain or composed.
        before, after: the tokens [N, T, D] that it reads and returns, prefix first; no final norm.
        rope: the rotary table that it used, if any.
    """

    block: TimmBlock
    before: Tensor
    after: Tensor
    rope: Tensor | None


def walk_blocks(
    backbone: Backbone,
    pixels: Float[Tensor, "N C H W"],
    *,
    keep: Int64[Tensor, "N L"] | None = None,
    class_token: Float[Tensor, "1 1 D"] | None = None,
) -> Iterator[BlockStep]:
    """Run the blocks in turn; what the caller lets go of is not kept.

    Args:
        keep: patches of each image that are encoded, without the others; their positions are added before. None: all.
        class_token: stands in for the backbone's own; the same for every image.

    """
    x, ropes, _ = backbone.embed(pixels)
    if class_token is not None:
        x = torch.cat(
            [_embedded_class_token(backbone, class_token.to(x.dtype)).expand(len(x), -1, -1), x[:, 1:]], dim=1
        )
    if keep is not None:
        prefix, patches = x[:, : backbone.num_prefix], x[:, backbone.num_prefix :]
        x = torch.cat([prefix, patches.gather(1, keep[..., None].expand(-1, -1, backbone.width))], dim=1)
        ropes = [None if rope is None else rope_rows(rope, keep) for rope in ropes]
    for block, rope, path in zip(backbone.vit.blocks, ropes, backbone.draw_block_paths(x), strict=True):
        after = backbone.run_one_block(block, x, BlockPass(rope, paths=path))
        yield BlockStep(block, x, after, rope)
        x = after


def _embedded_class_token(backbone: Backbone, token: Tensor) -> Tensor:
    """A class token as it enters the first block: with its row of the position table, if there is one."""
    vit = backbone.vit
    has_row = vit.pos_embed is not None and not vit.no_embed_class
    embedded: Tensor = vit.norm_pre(token + vit.pos_embed[:, :1] if has_row else token)
    return embedded
