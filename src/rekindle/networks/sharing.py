# SPDX-License-Identifier: Apache-2.0
"""Copies that share what is frozen: a teacher costs what the student trains, not the whole network."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_sharing_frozen(module: M) -> M:
    """Return a deep copy with the very same frozen parameters, in which nothing asks for a gradient.

    Parameters that train are copied and frozen in the copy; buffers are copied. The module trees are
    separate, so one may be in training mode (stochastic depth) while the other evaluates.
    """
    shared: dict[int, object] = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, shared).requires_grad_(False)
