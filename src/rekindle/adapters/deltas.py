# SPDX-License-Identifier: Apache-2.0
"""Adapters without new modules: the blocks' own LayerNorms, or their own biases, move; the base stays beside them."""

from __future__ import annotations

from abc import abstractmethod
from operator import attrgetter

import torch
from torch import Tensor, nn

from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.replacing import Replacement, ReplacingBlock, module_tree
from rekindle.core.errors import RequestError
from rekindle.networks.blocks import TimmBlock


class DeltaBlock(ReplacingBlock):
    """A block in which a few vectors v run as v + delta, with deltas that start at zero and are all that trains.

    Training delta from zero is training v itself: same gradients, same steps of an optimizer without decay (vectors have none
    here). So the base is not lost, the saved file is small, and a teacher averages the deltas alone.

    Deviation: vectors outside the blocks (the final norm, the patch embedding's bias) stay frozen, so that all that
    trains lies in `adapter`. train=norm moves the LayerNorms inside and outside, without keeping the base.
    """

    @staticmethod
    @abstractmethod
    def chosen(block: TimmBlock) -> list[str]:
        """Names of the block's parameters that move."""

    @classmethod
    def wrap(cls, block: TimmBlock, width: int, options: AdapterOptions) -> DeltaBlock:
        """Put zero deltas beside `block`'s vectors. Raises RequestError if it has none of this kind."""
        names = cls.chosen(block)
        if not names:
            raise RequestError(f"adapter.kind = {options.kind}: the blocks of this network have nothing of the kind")
        return cls(block, module_tree({n: nn.Parameter(torch.zeros_like(attrgetter(n)(block))) for n in names}))

    @classmethod
    def require_fit(cls, block: nn.Module, options: AdapterOptions) -> None:
        """Check that an adapted block is of the kind that `options` ask for. Raises RequestError if not."""
        cls.require_kind(block, options.kind)

    def replacements(self) -> dict[str, Replacement]:
        """The vectors v + delta by the names of v."""
        return dict(self.merged())

    def merged(self) -> dict[str, Tensor]:
        """The vectors v + delta by the names of v."""
        return {name: attrgetter(name)(self.block) + delta for name, delta in self.adapter.named_parameters()}


class NormBlock(DeltaBlock):
    """Weights and biases of the LayerNorms move (LN-Tune, Basu et al. 2023, arXiv:2304.01917)."""

    @staticmethod
    def chosen(block: TimmBlock) -> list[str]:
        """Names of weight and bias of every LayerNorm, those of queries and keys included."""
        return [
            f"{prefix}.{name}"
            for prefix, module in block.named_modules()
            if isinstance(module, nn.LayerNorm)
            for name, _ in module.named_parameters(recurse=False)
        ]


class BiasBlock(DeltaBlock):
    """All biases move: y = W x + (b + delta), and those of the LayerNorms.

    BitFit, Ben Zaken et al. 2021, arXiv:2106.10199, section 3. No map gets a bias that it did not have: EVA's and
    DINOv3's keys stay without.
    """

    @staticmethod
    def chosen(block: TimmBlock) -> list[str]:
        """Names of every bias, also where queries and values keep theirs beside a joint map."""
        names = (name for name, _ in block.named_parameters())
        return [n for n in names if (last := n.rpartition(".")[2]) == "bias" or last.endswith("_bias")]
