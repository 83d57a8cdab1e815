# SPDX-License-Identifier: Apache-2.0
"""Position classifier: where a query lies in its reference, by a block that reads the reference (LOCA, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from rekindle.networks.parts.query_block import QueryBlock


class Locator(nn.Module):
    """Block g and classifier W: query patches read the visible reference and say where they lie in it.

    Args: width, heads of the backbone (None for no block: tokens are classified as they are); num_places, classes; box: predict
    (cx, cy, w, h) of the query instead.
    """

    def __init__(self, width: int, heads: int | None, num_places: int, *, box: bool) -> None:
        super().__init__()
        self.block = None if heads is None else QueryBlock(width, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        hidden = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()] if box else []
        self.predict = nn.Sequential(*hidden, nn.Linear(width, 4 if box else num_places))
        self.box = box

    def stop_reading(self) -> None:
        """Freeze what reads the reference, for one of which nothing is visible."""
        assert self.block is not None
        self.block.stop_reading()

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """[N, Q, D] and [N, M, D] -> logits [N, Q, places], or boxes [N, 4]."""
        read = self.norm(tokens if self.block is None else self.block(tokens, visible))
        out: Tensor = self.predict(read.mean(dim=1)).sigmoid() if self.box else self.predict(read)
        return out
