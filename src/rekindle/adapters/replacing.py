# SPDX-License-Identifier: Apache-2.0
"""Blocks that run with other weights than their own, while their own stay what they are."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.networks.blocks import PLAIN, BlockPass, ComposedBlock, TimmBlock, first_row_attention, run_block

Replacement = Tensor | Callable[[Tensor], Tensor]
_ONE_AT_A_TIME = threading.RLock()


class ReplacingBlock(ComposedBlock):
    """A block in which other tensors and maps stand in for some of its own while it runs.

    So every path through the block (all tokens, the first rows, the attention of the class token) takes part without a
    second copy of its equations, and the frozen tensors keep their names, identity and hash. What trains is in `adapter`,
    under the names that it stands for: `adapter.attn.qkv...` changes `block.attn.qkv`. `enabled = False` runs the plain block.
    """

    def __init__(self, block: TimmBlock, adapter: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.adapter = adapter
        self.enabled = True

    @abstractmethod
    def replacements(self) -> dict[str, Replacement]:
        """What stands in while the block runs, by the name of the parameter or module in the block."""

    @abstractmethod
    def merged(self) -> dict[str, Tensor]:
        """Parameters with which the plain block gives the same output, by their names in the block."""

    def forward(self, x: Tensor, how: BlockPass = PLAIN) -> Tensor:
        """Return the tokens after the block; arguments as in `run_block`."""
        if not self.enabled:
            return run_block(self.block, x, how)
        with self._replaced():
            return run_block(self.block, x, how)

    def first_row_attention(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """Return the first token's attention with the replaced weights, [N, heads, T]."""
        if not self.enabled:
            return first_row_attention(self.block, x, rope)
        with self._replaced():
            return first_row_attention(self.block, x, rope)

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Let the replacements stand in for a while; a lock keeps other threads from taking them for the base.

        The block's tables of parameters and modules are changed and restored, as `torch.func.functional_call` does it for
        tensors alone.
        """
        with nullcontext() if torch.compiler.is_compiling() else _ONE_AT_A_TIME:
            restore: list[tuple[dict[str, Any], str, Any]] = []
            for name, value in self.replacements().items():
                path, _, leaf = name.rpartition(".")
                owner = attrgetter(path)(self.block) if path else self.block
                table = owner._parameters if isinstance(value, Tensor) else owner._modules
                restore.append((table, leaf, table[leaf]))
                table[leaf] = value
            try:
                yield
            finally:
                for table, leaf, value in restore:
                    table[leaf] = value

    @torch.no_grad()
    def fold(self) -> TimmBlock:
        """Write the merged weights into the plain block, in place, and return it."""
        for name, tensor in self.merged().items():
            attrgetter(name)(self.block).copy_(tensor)
        return self.block

    @classmethod
    def require_kind(cls, block: nn.Module, kind: str) -> None:
        """Raise RequestError if `block` is not of this class."""
        if type(block) is not cls:
            raise RequestError(f"this backbone has adapters of another kind than {kind}; name theirs")


def module_tree(leaves: Mapping[str, nn.Module | nn.Parameter]) -> nn.Module:
    """Return a module that holds each leaf under its dotted name."""
    root = nn.Module()
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        setattr(owner, last, leaf)
    return root
