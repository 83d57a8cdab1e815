# SPDX-License-Identifier: Apache-2.0
"""LoRA: low-rank updates of a block's frozen linear maps."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn

from rekindle.adapters.options import LORA_MAPS, AdapterOptions, LoraTarget
from rekindle.adapters.replacing import Replacement, ReplacingBlock, module_tree
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import TimmBlock
from rekindle.networks.packed_maps import PackedLinear


class LowRank(nn.Module):
    """The update (alpha / r) B A of a map from `inputs` to `outputs` numbers; A [r, inputs], B [outputs, r].

    Hu et al. 2021, arXiv:2106.09685, eq. 3. B starts at zero; A as in the authors' code, uniform with a = sqrt(5) (the
    paper says Gaussian).
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.lora_A.out_features

    @property
    def factor(self) -> float:
        """The factor alpha / r."""
        return self.alpha / self.rank

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y + (alpha / r) B A x, [..., outputs]."""
        return torch.add(y, self.lora_B(self.lora_A(x)), alpha=self.factor)

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + (alpha / r) B A, [outputs, inputs]."""
        return torch.add(weight, self.lora_B.weight @ self.lora_A.weight, alpha=self.factor)


class UpdatedMap:
    """A linear map with its update, in the map's place: called, x goes through the narrow branch beside the frozen map.

    The branch needs neither a second weight nor its gradient. Where a caller multiplies with `weight` itself (the first
    rows alone; EVA, which has its biases elsewhere), that is the merged one.
    """

    def __init__(self, linear: nn.Linear | PackedLinear, update: LowRank) -> None:
        self.linear, self.update = linear, update

    def __call__(self, x: Tensor) -> Tensor:
        """Return W x + b + (alpha / r) B A x."""
        return self.update.onto(self.linear(x), x)

    @property
    def weight(self) -> Tensor:
        """W + (alpha / r) B A."""
        return self.update.merged(self.linear.weight)

    @property
    def bias(self) -> Tensor | None:
        """The map's own bias b."""
        return self.linear.bias


class LoraBlock(ReplacingBlock):
    """A block with W + (alpha / r) B A in place of W in its target maps. Hu et al. 2021, arXiv:2106.09685, section 4.1.

    A joint map of queries, keys and values gets one A [r, D] and one B [3D, r], as in PEFT; three maps get one pair each. A
    gated MLP's `fc1` is both of its halves.

    Deviations: the paper updates queries and values; the default here is all three, and the attention's projection. The
    paper's dropout before A is left out (0, as PEFT's default).
    """

    def __init__(self, block: TimmBlock, adapter: nn.Module, targets: tuple[LoraTarget, ...]) -> None:
        super().__init__(block, adapter)
        self.targets = targets
        self._names = tuple(target_maps(block, targets))

    @classmethod
    def wrap(cls, block: TimmBlock, width: int, options: AdapterOptions) -> LoraBlock:
        """Put fresh updates beside `block`'s maps, on its device and in its dtype.

        Raises: RequestError for a target that the block lacks, and for a rank that is not low.
        """
        updates: dict[str, nn.Module] = {}
        for name in target_maps(block, options.lora_targets):
            linear = attrgetter(name)(block)
            most = min(linear.in_features, linear.out_features)
            if options.width >= most:
                raise RequestError(
                    f"adapter.rank = {options.width} is not a low rank for {name} ({linear.out_features} x "
                    f"{linear.in_features}); use less than {most}, usually 4 to 64"
                )
            update = LowRank(linear.in_features, linear.out_features, options.width, options.lora_alpha)
            updates[name] = update.to(linear.weight.device, linear.weight.dtype)
        return cls(block, module_tree(updates), options.lora_targets)

    @classmethod
    def require_fit(cls, block: nn.Module, options: AdapterOptions) -> None:
        """Check that an adapted block is what `options` ask for. Raises RequestError that says what it is instead."""
        cls.require_kind(block, options.kind)
        assert isinstance(block, LoraBlock)
        update = next(iter(block.updates().values()))
        found = {
            "rank": (update.rank, options.width),
            "lora_alpha": (update.alpha, options.lora_alpha),
            "lora_targets": (sorted(block.targets), sorted(options.lora_targets)),
        }
        for name, (value, wanted) in found.items():
            if value != wanted:
                raise RequestError(
                    f"this backbone has adapters with {name} = {value}, not {wanted}; go on with the same "
                    f"(adapter.{name} = {value}), or start from the base they stand on"
                )

    def updates(self) -> dict[str, LowRank]:
        """The updates by the name of the map in the block."""
        return {n: cast(LowRank, attrgetter(n)(self.adapter)) for n in self._names}

    def replacements(self) -> dict[str, Replacement]:
        """The updated maps by their names."""
        return {name: UpdatedMap(attrgetter(name)(self.block), update) for name, update in self.updates().items()}

    def merged(self) -> dict[str, Tensor]:
        """W + (alpha / r) B A by the name of W."""
        return {f"{n}.weight": u.merged(attrgetter(n)(self.block).weight) for n, u in self.updates().items()}


def target_maps(block: TimmBlock, targets: tuple[LoraTarget, ...]) -> list[str]:
    """Names of the linear maps that `targets` mean in this block. Raises RequestError for a target without any."""
    names: list[str] = []
    for target in targets:
        found = [n for n in LORA_MAPS[target] if isinstance(_part(block, n), nn.Linear)]
        if not found:
            raise RequestError(
                f"adapter.lora_targets names {target}, and this network's blocks have no such linear map"
            )
        names += found
    return names


def _part(block: TimmBlock, name: str) -> object:
    """A module of a module of the block, or None."""
    owner, _, leaf = name.partition(".")
    return block._modules[owner]._modules.get(leaf)
