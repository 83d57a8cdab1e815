# SPDX-License-Identifier: Apache-2.0
"""Memory of a whole run from sizes alone, and the cheapest settings that fit into what there is. Torch-free.

Counted steps stand beside the estimate in results/performance/memory-table.json (`scripts/memory_cells.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rekindle.adapters.options import Train
from rekindle.pretraining.costs import Head, Rows, Trunk, held_per_image, kept_besides, kept_per_image

LIBRARY_BYTES = {"cpu": 790 * 2**20, "gpu": 600 * 2**20}
"""What a process holds before its first tensor. cpu: largest resident memory of three steps of a network of
100 thousand numbers, torch 2.15, measured; gpu:
CUDA's context, kernels and workspaces beside the allocator, assumed, and not measured for this table."""
SLACK = 0.1
"""Share of the tensors' bytes that an allocator holds beside them; assumed."""
PACKED_BYTES = {16: 2.0, 8: 9 / 8, 4: 5 / 8}
"""Bytes of a packed number, with its share of its group's step and lowest value (`networks.packed_maps`)."""


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside sizes.

    Attributes:
        is_bf16: computes in bfloat16.
        trunk_bits: of the frozen maps; None: float32, and its copy where the run computes in bfloat16.
        recompute: blocks are computed again on the way back.
        micro_batch: images at a time.
        batch: images of a step, whose views wait.
    """

    is_bf16: bool = False
    trunk_bits: Literal[16, 8, 4] | None = None
    recompute: bool = False
    micro_batch: int = 1
    batch: int = 1

    def arguments(self) -> list[str]:
        """As they are typed."""
        bits = [] if self.trunk_bits is None else ["--engine.trunk-bits", str(self.trunk_bits)]
        again = ["--engine.recompute-blocks"] if self.recompute else []
        return [*bits, *again, "--engine.micro-batch-size", str(self.micro_batch)]

    def told(self) -> str:
        """In words."""
        words = [] if self.trunk_bits is None else [f"{self.trunk_bits}-bit trunk"]
        return ", ".join([*words, f"micro-batch {self.micro_batch}", *(["recomputation"] if self.recompute else [])])


@dataclass(frozen=True)
class Sizes:
    """A run's network and views.

    Attributes:
        trunk: of the backbone with its adapters.
        others: numbers of the backbone outside the blocks' linear maps.
        head: of the method; GLARE's three maps of cross-attention are counted with it.
        train: what trains.
        views: sides of large and small views, px; num_local, small ones.
        device: `cpu` or `gpu`.
    """

    trunk: Trunk
    others: int
    head: Head
    train: Train = "adapters"
    views: tuple[int, int] = (224, 96)
    num_local: int = 10
    device: Literal["cpu", "gpu"] = "cpu"

    @property
    def trained(self) -> int:
        """Numbers that train: adapters or all, the head, and the cross-attention."""
        t, h = self.trunk, self.head
        own = t.adapted * (2 * t.width * t.rank + t.width + t.rank) if t.rank else 0
        if self.train == "all":
            own += t.depth * t.block_maps + self.others
        maps = h.width * h.hidden + h.hidden**2 + h.hidden * h.bottleneck + h.bottleneck * h.prototypes
        return own + maps + 3 * t.width**2


@dataclass(frozen=True)
class Memory:
    """Bytes of a run, by what holds them.

    Attributes:
        library: of the process, before the first tensor.
        trunk: what is frozen, with its copies.
        trained: what trains: weights, AdamW's two averages, the teacher's, and their copies.
        activations: what a micro-batch keeps for the way back.
        gradients: what is there beside them, whatever the micro-batch.
        temporary: of the block that is computed.
        waiting: views of the step.
        slack: of the allocator.
    """

    library: float
    trunk: float
    trained: float
    activations: float
    gradients: float
    temporary: float
    waiting: float
    slack: float

    @property
    def tensors(self) -> float:
        """Bytes of tensors at the peak: what a counter of storages sees."""
        return sum(self.to_dict().values()) - self.library - self.slack

    @property
    def total(self) -> float:
        """All of them."""
        return self.library + self.tensors + self.slack

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def memory_of(sizes: Sizes, setting: Setting) -> Memory:
    """Return what a run holds at its peak, where the loss of the large views is known and the way back begins."""
    trunk, each = sizes.trunk, 2 if setting.is_bf16 else 4
    copies = 2 if setting.is_bf16 else 0
    maps = trunk.depth * trunk.block_maps
    frozen = sizes.others * (4 + copies) + maps * (
        4 + copies if setting.trunk_bits is None else PACKED_BYTES[setting.trunk_bits]
    )
    rows = Rows(*2 * [2.0 * (trunk.tokens(sizes.views[0]) - trunk.prefix)])
    rows = replace(rows, student_region=rows.student_patch)
    shape = {"sizes": sizes.views, "num_local": sizes.num_local}
    one_block = 2 * trunk.tokens(sizes.views[0]) * (trunk.mlp_maps * trunk.hidden + 4 * trunk.width) * each

    def kept(trunk: Trunk) -> float:
        return kept_per_image(trunk, sizes.head, rows, train=sizes.train, bytes_each=each, **shape)  # type: ignore[arg-type]

    activations = kept(trunk)
    if setting.recompute:  # the input of every block, and one block whole
        inputs = trunk.depth if sizes.train == "all" else trunk.adapted
        activations = kept(replace(trunk, depth=1, trained_blocks=1))
        activations += each * inputs * trunk.width * 2 * trunk.tokens(sizes.views[0])
    dense = 0.0 if setting.trunk_bits is None else (4.0 + each) * trunk.width * trunk.hidden
    waiting = setting.batch * held_per_image(
        sizes.head, rows, sizes=sizes.views, num_local=sizes.num_local, bytes_each=each
    )
    parts = {
        "trunk": 0.0 if sizes.train == "all" else frozen,
        "trained": float(sizes.trained * (16 + copies)),
        "activations": setting.micro_batch * activations,
        "gradients": kept_besides(trunk, sizes.head, train=sizes.train, bytes_each=each),
        "temporary": setting.micro_batch * one_block + dense,
        "waiting": waiting,
    }
    return Memory(library=LIBRARY_BYTES[sizes.device], slack=SLACK * sum(parts.values()), **parts)


@dataclass(frozen=True)
class Fit:
    """One set of measures: the largest micro-batch with which it fits, and what it then takes; of one image where none fits."""

    setting: Setting
    memory: Memory
    fits: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        parts = {name: round(value) for name, value in self.memory.to_dict().items()}
        setting = asdict(self.setting)
        return {
            "fits": self.fits,
            "told": self.setting.told(),
            "options": self.setting.arguments(),
            "total_bytes": round(self.memory.total),
            "bytes": parts,
            "setting": setting,
        }


def fits_into(sizes: Sizes, asked: Setting, free_bytes: float, *, may_pack: bool) -> list[Fit]:
    """Return the sets of measures from the cheapest on, each with the largest micro-batch that fits.

    Cheap is what changes least: first a trunk of 16 bits (where the run computes in bfloat16, no number changes), then of 8, then
    recomputation (no number changes, and a step takes a forward pass of the student more), then 4 bits.
    Args: asked, with the largest micro-batch, of which others are a half, a quarter, ...; what it has already stays; may_pack,
    whether there are weights that stand still and can be packed.
    """
    return [_largest(sizes, setting, free_bytes) for setting in _ladder(asked, may_pack)]


def _ladder(asked: Setting, may_pack: bool) -> Iterator[Setting]:
    yield asked
    packs: list[tuple[Literal[16, 8, 4] | None, bool]] = [(16, False), (8, False), (8, True), (4, False), (4, True)]
    for bits, recompute in packs if may_pack else [(None, True)]:
        kept = bits if asked.trunk_bits is None or bits is None else min(asked.trunk_bits, bits)
        setting = replace(asked, trunk_bits=kept or asked.trunk_bits, recompute=recompute or asked.recompute)
        if setting != asked:
            yield setting


def _largest(sizes: Sizes, setting: Setting, free_bytes: float) -> Fit:
    micro = setting.micro_batch
    while True:
        sized = replace(setting, micro_batch=micro)
        memory = memory_of(sizes, sized)
        if memory.total <= free_bytes or micro == 1:
            return Fit(sized, memory, memory.total <= free_bytes)
        micro = (micro + 1) // 2
