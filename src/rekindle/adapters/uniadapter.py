# SPDX-License-Identifier: Apache-2.0
"""UniAdapter: a bottleneck beside the stream of each block, the identity until it has learned something."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rekindle.adapters.options import AdapterOptions
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import (
    PLAIN,
    BlockPass,
    ComposedBlock,
    attention_output,
    mlp_output,
    run_block,
)
from rekindle.networks.frozen_branch import onto_stream
from rekindle.networks.stochastic_depth import add_branch

Position = Literal["after_attn", "after_block", "parallel_mlp", "attn_branch"]


class UniAdapter(nn.Module):
    """The branch s * (ReLU(x W_down + b_down) W_up + b_up) of Adapter(x) = x + branch(x). GLARE, eq. 3.

    Deviations: the paper prints no biases; UniAdapter's code has them, and so have we. W_up and b_up start at
    zero, so the branch is exactly zero at first, and the first gradient reaches only them.

    Args:
        width: D.
        rank: r, the bottleneck.
        scale: s.
        learn_scale: s is a parameter that starts at `scale`.
        layernorm: normalise x before the down-projection.

    """

    def __init__(
        self,
        width: int,
        rank: int = 512,
        scale: float = 0.1,
        learn_scale: bool = False,
        layernorm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6) if layernorm else nn.Identity()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(scale)) if learn_scale else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Return onto + branch(x), of the shape of x; without `onto` the branch alone."""
        if onto is x and self._is_plain(x):
            out: Tensor = _Bottleneck.apply(
                x, self.down.weight, self.down.bias, self.up.weight, self.up.bias, self.scale
            )
            return out
        branch: Tensor = self.up(torch.relu(self.down(self.norm(x))))
        if onto is None:
            return self.scale * branch
        if isinstance(self.scale, float):
            return torch.add(onto, branch, alpha=self.scale)
        return onto + self.scale * branch

    def _is_plain(self, x: Tensor) -> bool:
        """Whether the branch stands on the stream itself, with a fixed scale, computed in the precision of its weights."""
        if (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or torch.is_autocast_enabled(x.device.type)
        ):
            return False
        is_fixed = isinstance(self.scale, float) and isinstance(self.norm, nn.Identity)
        return is_fixed and x.dtype == self.down.weight.dtype


class _Bottleneck(torch.autograd.Function):
    """x + s * (ReLU(x W_down + b_down) W_up + b_up), eq. 3: its sums are parts of the products. Keeps x and the hidden layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, scale: float
    ) -> Tensor:
        hidden = torch._addmm_activation(down_bias, x.flatten(0, -2), down.T)
        ctx.save_for_backward(x, hidden, down, up)
        ctx.scale = scale
        branch = torch.addmm(up_bias, hidden, up.T).view_as(x)
        return torch.add(x, branch, alpha=scale, out=branch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up = ctx.saved_tensors
        flat, scale = gradient.flatten(0, -2), ctx.scale
        pull = torch.addmm(hidden, flat, up, beta=0, alpha=scale)
        torch.ops.aten.threshold_backward(pull, hidden, 0, grad_input=pull)
        to_x = torch.addmm(flat, pull, down).view_as(x) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return to_x, None, None, None, None, None
        to_up = torch.addmm(up, flat.T, hidden, beta=0, alpha=scale)
        return to_x, pull.T @ x.flatten(0, -2), pull.sum(dim=0), to_up, flat.sum(dim=0).mul_(scale), None


class AdaptedBlock(ComposedBlock):
    """A transformer block with an adapter at one of four places.

    A is the adapter's branch, DP stochastic depth:

    | position | y = | output |
    |---|---|---|
    | `after_attn` | x + DP(Attn(LN1 x)); y + A(y) | y + DP(MLP(LN2 y)) |
    | `after_block` | Block(x) | y + A(y) |
    | `parallel_mlp` | x + DP(Attn(LN1 x)) | y + DP(MLP(LN2 y)) + A(y) |
    | `attn_branch` | a = Attn(LN1 x); x + DP(a + A(a)) | y + DP(MLP(LN2 y)) |

    The paper says both "after each attention layer" and "the output of a ViT block"; `after_attn` satisfies
    the first
    and keeps the residual of eq. 3. With layer scale, `Attn` and `MLP` include it. `enabled = False` runs the
    plain block.
    """

    def __init__(self, block: nn.Module, adapter: UniAdapter, position: Position = "after_attn") -> None:
        super().__init__()
        self.block = block
        self.adapter = adapter
        self.position: Position = position
        self.enabled = True

    @classmethod
    def wrap(cls, block: nn.Module, width: int, options: AdapterOptions) -> AdaptedBlock:
        """Put a fresh adapter around `block`, on the block's device and in its dtype."""
        layernorm = options.position == "parallel_mlp" if options.layernorm is None else options.layernorm
        adapter = UniAdapter(width, options.width, options.scale, options.learn_scale, layernorm)
        like = next(block.parameters())
        return cls(block, adapter.to(like.device, like.dtype), options.position)

    @classmethod
    def require_fit(cls, block: nn.Module, options: AdapterOptions) -> None:
        """Check that an adapted block is what `options` ask for. Raises RequestError that says what it is instead."""
        if type(block) is not cls or not isinstance(block.adapter, UniAdapter):
            raise RequestError(f"this backbone has adapters of another kind than {options.kind}; name theirs")
        adapter = block.adapter
        layernorm = options.position == "parallel_mlp" if options.layernorm is None else options.layernorm
        found: dict[str, object] = {
            "position": block.position,
            "rank": adapter.down.out_features,
            "layernorm": isinstance(adapter.norm, nn.LayerNorm),
            "learn_scale": isinstance(adapter.scale, nn.Parameter),
        }
        if not found["learn_scale"]:
            found["scale"] = adapter.scale
        wanted = {**{n: getattr(options, n) for n in found}, "layernorm": layernorm, "rank": options.width}
        for name, value in found.items():
            if wanted[name] != value:
                raise RequestError(
                    f"this backbone has adapters with {name} = {value}, not {wanted[name]}; go on with the same "
                    f"(adapter.{name} = {value}), or start from the base they stand on"
                )

    def forward(self, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
        """Return the tokens after the block; arguments as in `run_block`."""
        if not self.enabled:
            return run_block(self.block, x, how)
        adapter: UniAdapter = self.adapter
        if self.position == "after_block":
            y = run_block(self.block, x, how)
            return adapter(y, onto=y)  # type: ignore[no-any-return]
        kept, (attention_path, mlp_path) = x if how.rows is None else x[:, : how.rows], how.paths or (None, None)
        is_frozen = not (
            how.one_graph or torch.compiler.is_compiling() or any(p.requires_grad for p in self.block.parameters())
        )

        def attended(x: Tensor) -> Tensor:
            out = attention_output(self.block, x, how.computed(attention_path))
            return adapter(out, onto=out) if self.position == "attn_branch" else out

        if is_frozen and how.rows is None and self.position != "attn_branch":
            y = onto_stream(x, attended, attention_path)
        else:
            y = add_branch(kept, x, attended, attention_path)
        if self.position == "after_attn":
            y = adapter(y, onto=y)
        if is_frozen:
            out = onto_stream(y, lambda y: mlp_output(self.block, y), mlp_path)
        else:
            out = add_branch(y, y, lambda y: mlp_output(self.block, y), mlp_path)
        return adapter(y, onto=out) if self.position == "parallel_mlp" else out
