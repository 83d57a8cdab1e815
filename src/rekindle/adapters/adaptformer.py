# SPDX-License-Identifier: Apache-2.0
"""AdaptFormer: a bottleneck beside the MLP of each block."""

from __future__ import annotations

from torch import nn

from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.uniadapter import AdaptedBlock


class AdaptFormerBlock(AdaptedBlock):
    """y = x + DP(Attn(LN1 x)); out = y + DP(MLP(LN2 y)) + s * (ReLU(y W_down + b_down) W_up + b_up).

    Chen et al. 2022, arXiv:2205.13535, eqs. 2 and 3. It is UniAdapter's branch at `parallel_mlp`, so it shares that code; what
    differs is the default without LayerNorm. `options.position` is not read.

    Deviations: eq. 2 puts a LayerNorm before W_down, the released code (default "none") feeds the un-normalised y, and so do
    we; `layernorm=True` is eq. 2, with eps 1e-6. The code's third choice, a LayerNorm on the branch's output, is left out:
    on a branch that starts at zero its gradient is 1 / sqrt(eps) times too large. The code drops 10 % of the bottleneck while
    training; we drop none, since the views of student and teacher differ already. A learnt scale starts at `scale`, in the
    code at 1. The paper's rank is 64.
    """

    @classmethod
    def wrap(cls, block: nn.Module, width: int, options: AdapterOptions) -> AdaptFormerBlock:
        """Put a fresh adapter around `block`, on the block's device and in its dtype."""
        wrapped = super().wrap(block, width, _beside_the_mlp(options))
        assert isinstance(wrapped, cls)
        return wrapped

    @classmethod
    def require_fit(cls, block: nn.Module, options: AdapterOptions) -> None:
        """Check that an adapted block is what `options` ask for. Raises RequestError that says what it is instead."""
        super().require_fit(block, _beside_the_mlp(options))


def _beside_the_mlp(options: AdapterOptions) -> AdapterOptions:
    return options.model_copy(update={"position": "parallel_mlp", "layernorm": bool(options.layernorm)})
