# SPDX-License-Identifier: Apache-2.0
"""Frozen linear maps in 16, 8 or 4 bits: the trunk under adapters takes less memory and is computed with as before.

A weight is cut into groups of 32 numbers along its input. A group holds its lowest value and a step in float16 and, for each
number, how many steps it lies above: 9 and 5 bits a number in all; 16 bits are bfloat16 without groups. The dense weight exists
while its map is computed, forward and again on the way back, and is kept by nobody in between.

Why none of the libraries (torchao 0.18, bitsandbytes 0.50, optimum-quanto 0.2.7 beside torch 2.15, each tried on a CPU):

- torchao has 8 bits, with gradient; its 4 bits need a package of CUDA kernels, its NF4 is gone, and reading a part of a weight
  (`weight.chunk`, as the class token alone is computed) is not implemented for its tensors;
- bitsandbytes has both on a CPU, but a weight that holds codes cannot be read as one at all, its 8 bits round activations to
  float16 and 8 bits on a GPU as well, and it comes as a compiled library for each release of CUDA;
- quanto compiles C++ at its first use of 4 bits, cannot give its 8-bit tensors another type (`engine.precision`), and has had no
  release since early 2025.

What is left to do is a sum and a product, which torch has for every device.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.core.precision import ExactParameters
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import plain_block

TrunkBits = Literal[16, 8, 4]
GROUP = 32
"""Numbers of a weight that share a lowest value and a step."""


def pack_trunk(backbone: Backbone, bits: TrunkBits) -> None:
    """Hold the weights of all linear maps in the blocks in so many bits, in place. Norms, biases and adapters stay.

    Pack after adapters are attached and before the backbone is copied: copies share what is frozen.
    Raises: RequestError for a map that trains, or whose input has no whole number of groups; nothing has changed then.
    """
    found = [
        (owner, name, child)
        for block in map(plain_block, backbone.vit.blocks)
        for owner in block.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.Linear)
    ]
    for _, name, child in found:
        if any(p.requires_grad for p in child.parameters()):
            raise RequestError(
                f"engine.trunk_bits = {bits}: {name} of the blocks trains, and only frozen maps are packed"
            )
        if bits < 16 and child.in_features % GROUP:
            raise RequestError(
                f"engine.trunk_bits = {bits}: {name} reads {child.in_features} numbers, which groups of {GROUP} do not divide; "
                "use 16"
            )
    for owner, name, child in found:
        setattr(owner, name, PackedLinear(child, bits))
    for block in map(plain_block, backbone.vit.blocks):
        if isinstance(block.attn, EvaAttention):
            block.attn.qkv_bias_separate = True  # else timm multiplies with a dense weight, which autograd then keeps


class PackedLinear(ExactParameters):
    """A frozen linear map whose weight is packed: called, it is the map; `weight` is the dense weight, made at each reading."""

    def __init__(self, linear: nn.Linear, bits: TrunkBits) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        parts = [linear.weight.detach().to(torch.bfloat16)] if bits == 16 else packed(linear.weight.detach(), bits)
        self.packed = nn.ParameterList([nn.Parameter(part, requires_grad=False) for part in parts])
        self.bias = linear.bias
        self._dtype = linear.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b, in the type of x."""
        out: Tensor = _Product.apply(x, self.bias, *self.packed)
        return out

    @property
    def weight(self) -> Tensor:
        """W [out, in]."""
        return dense([*self.packed], self._dtype)

    def extra_repr(self) -> str:
        """For print."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def packed(weight: Tensor, bits: Literal[8, 4]) -> list[Tensor]:
    """Return codes (uint8) [out, groups, 32 or 16], steps and lowest values (float16) [out, groups, 1] of W [out, in].

    Of 4 bits, a byte holds number i of a group below and number i + 16 above.
    """
    groups = weight.float().reshape(len(weight), -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    low = low.half()
    step = ((high - low.float()).clamp_min(0) / (2**bits - 1)).half()
    divisor = torch.where(step > 0, step, 1).float()
    codes = ((groups - low.float()) / divisor).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | second << 4
    return [codes, step, low]


def dense(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] that `packed` was given, as near as its bits go."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    codes, step, low = parts
    if codes.shape[-1] < GROUP:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    return codes.float().mul_(step.float()).add_(low.float()).flatten(1).to(dtype)


class _Product(torch.autograd.Function):
    """W x + b with W made where it is needed: forward, and again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return F.linear(x, dense([*parts], x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        return (gradient @ dense([*parts], gradient.dtype), None, *[None] * len(parts))
