# SPDX-License-Identifier: Apache-2.0
"""Operation counts of a step instead of its time: the same on every machine, whatever else it is doing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_VIEWS = frozenset(
    "view _unsafe_view reshape expand permute transpose t slice select unsqueeze squeeze split split_with_sizes unbind "
    "as_strided detach alias chunk narrow diagonal unfold lift_fresh".split()
)
_NO_KERNEL = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided is_same_size promote_types _local_scalar_dense "
    "_sparse_coo_tensor_with_dims_and_tensors profiler::_record_function_enter_new profiler::_record_function_exit".split()
)


def _product_flops(bias: Any, left: tuple[int, int], right: tuple[int, int], *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


FLOP_FORMULAS = {torch.ops.aten._addmm_activation: _product_flops}
"""Operations that torch's counter does not know: a product with its bias and activation."""


@dataclass
class Counted:
    """What was counted.

    Attributes:
        flops: floating point operations, 2 for a multiply-add: matrix products, convolutions, attention.
        kernels: operations that run something on a device: no views, no allocations; a foreach operation counts once.
        kept_now: bytes that autograd keeps at this moment, parameters not counted.
        kept_peak: largest number of bytes that autograd kept for the way back at any moment, parameters not counted.
        kept_shapes: shapes of all tensors that it kept at some moment.
        by_name: kernels by the operation's name.
    """

    flops: int = 0
    kernels: int = 0
    kept_now: int = 0
    kept_peak: int = 0
    kept_shapes: set[tuple[int, ...]] = field(default_factory=set)
    by_name: dict[str, int] = field(default_factory=dict)


class _KernelCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counted: Counted) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name not in _VIEWS and name not in _NO_KERNEL:
            self._counted.kernels += 1
            self._counted.by_name[name] = self._counted.by_name.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class _Kept:
    """Bytes alive in saved tensors: a storage counts once, and no longer than something refers to it."""

    def __init__(self, counted: Counted, not_counted: Sequence[Tensor]) -> None:
        self._counted = counted
        self._excluded = {t.untyped_storage().data_ptr() for t in not_counted}
        self._uses: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._excluded or not storage.nbytes():
            return tensor
        self._counted.kept_shapes.add(tuple(tensor.shape))
        return _Handle(self, tensor.detach(), key, storage.nbytes())

    def add(self, key: int, size: int) -> None:
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] == 1:
            self._counted.kept_now += size
            self._counted.kept_peak = max(self._counted.kept_peak, self._counted.kept_now)

    def drop(self, key: int, size: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self._counted.kept_now -= size


class _Handle:
    """A saved tensor; when autograd lets go of it, so does the count."""

    def __init__(self, kept: _Kept, tensor: Tensor, key: int, size: int) -> None:
        self._kept, self.tensor, self._key, self._size = kept, tensor, key, size
        kept.add(key, size)

    def __del__(self) -> None:
        self._kept.drop(self._key, self._size)


@contextmanager
def counting(not_kept: Sequence[Tensor] = ()) -> Iterator[Counted]:
    """Count what runs inside.

    Args: not_kept, tensors whose memory is there anyway (parameters, compute copies, the batch).
    """
    counted = Counted()
    kept = _Kept(counted, not_kept)
    with (
        torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda h: h.tensor if isinstance(h, _Handle) else h),
        FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as flops,
        _KernelCounter(counted),
    ):
        yield counted
    counted.flops = int(flops.get_total_flops())
