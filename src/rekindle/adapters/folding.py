# SPDX-License-Identifier: Apache-2.0
"""Adapters merged into the weights: a plain network with the same output and no cost of theirs."""

from __future__ import annotations

import copy

from rekindle.adapters import kinds_that_fold
from rekindle.adapters.replacing import ReplacingBlock
from rekindle.core.errors import RequestError
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock


def fold(backbone: Backbone) -> Backbone:
    """Return a copy with plain blocks whose weights hold what adapters learned that fold.

    The output is the adapted one's up to rounding, whether the adapters are enabled now or not. In the copy nothing asks for
    a gradient, and it can be written with `write_checkpoint`.

    Raises: RequestError for adapters that are not a change of weights.
    """
    for block in backbone.vit.blocks:
        if isinstance(block, ComposedBlock) and not isinstance(block, ReplacingBlock):
            raise RequestError(
                f"adapters with a nonlinearity of their own ({kinds_that_fold(False)}) cannot be folded into the weights; "
                f"save the run instead, or train with another adapter.kind ({kinds_that_fold()})"
            )
    folded = copy.deepcopy(backbone, {id(backbone.compiled): None}).requires_grad_(False)  # compiled code has no copy
    for i, block in enumerate(folded.vit.blocks):
        if isinstance(block, ReplacingBlock):
            folded.vit.blocks[i] = block.fold()
    return folded
