# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step, from sizes alone: bytes that autograd keeps for the way back. Torch-free.

The model is held against counted steps in tests/bench/test_step_cost.py; tests/bench/step_flops.py has the FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.adapters.options import Train


@dataclass(frozen=True)
class Trunk:
    """A plain vision transformer, with adapters.

    Attributes:
        width: D.
        depth: number of blocks.
        heads: attention heads.
        hidden: width of the MLP.
        patch: side of a patch, in pixels.
        prefix: class and register tokens.
        rank: of the adapters; 0 without.
        mlp_maps: matrices of an MLP: 2, or 3 where it is gated (SwiGLU).
        trained_blocks: blocks with adapters, the last ones; those before keep nothing for the way back. None: all.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    prefix: int = 1
    rank: int = 0
    mlp_maps: int = 2
    trained_blocks: int | None = None

    @property
    def block_maps(self) -> int:
        """Numbers in the weights of one block's linear maps."""
        return self.width * (4 * self.width + self.mlp_maps * self.hidden)

    @property
    def adapted(self) -> int:
        """Blocks with adapters."""
        return self.depth if self.trained_blocks is None else min(self.depth, self.trained_blocks)

    def tokens(self, size_px: int) -> int:
        """Tokens of a square view."""
        return (size_px // self.patch) ** 2 + self.prefix

    def kept(self, size_px: int, train: Train, *, bytes_each: int) -> float:
        """Bytes that one view's forward pass keeps for the way back, in numbers of `bytes_each`.

        Per token and block: inputs of both norms, q, k, v, what attention read, the MLP's hidden layer before its
        activation, and what the adapter needs; with all weights training also the inputs of the maps.
        """
        t, d = self.tokens(size_px), self.width
        per_token = d * (2 + 3 + 1) + (self.mlp_maps - 1) * self.hidden
        if self.rank:
            per_token += d + self.rank
        if train == "all":
            per_token += 2 * d + self.hidden
        depth = self.depth if train == "all" else self.adapted
        return float(bytes_each * depth * t * per_token)


@dataclass(frozen=True)
class Head:
    """DINO's head: width -> hidden -> hidden -> bottleneck -> prototypes."""

    width: int
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192


@dataclass(frozen=True)
class Rows:
    """Rows of one image that the losses on patches and regions use. What crops do to them varies from image to image.

    Attributes:
        student_patch: patches of the student that eq. 8 or 9 of GLARE uses.
        teacher_patch: patches of the teacher that they are compared with.
        student_region: patches of the student that a region uses, each once.
        teacher_region: usable patches of all regions.
        region_slots: places in the padded table of regions: views x regions x longest region.
    """

    student_patch: float = 0.0
    teacher_patch: float = 0.0
    student_region: float = 0.0
    teacher_region: float = 0.0
    region_slots: float = 0.0


def kept_per_image(
    trunk: Trunk,
    head: Head,
    rows: Rows,
    *,
    sizes: tuple[int, int],
    num_local: int,
    train: Train,
    bytes_each: int,
) -> float:
    """Largest number of bytes that a step's forward passes keep at one time, per image.

    The small views' part is gone before the large views' exists. A row in the head keeps the inputs of its activations and
    of its maps.
    """
    large = 2 * trunk.kept(sizes[0], train, bytes_each=bytes_each)
    small = num_local * trunk.kept(sizes[1], train, bytes_each=bytes_each)
    per_row = bytes_each * (4 * head.hidden + head.width + 2 * head.bottleneck)
    return max(large + per_row * (2 + rows.student_patch + rows.student_region), small + per_row * num_local)


def held_per_image(head: Head, rows: Rows, *, sizes: tuple[int, int], num_local: int, bytes_each: int) -> float:
    """Bytes that wait for an image's step to end: its views in float32 and the teacher's unit rows.

    Args: rows, of one image; sizes, sides of large and small views in pixels.
    """
    large, small = sizes
    pixels = 3 * (2 * large**2 + num_local * small**2)
    return float(4 * pixels + bytes_each * head.bottleneck * (2 + rows.student_patch + rows.student_region))


def kept_besides(trunk: Trunk, head: Head, *, train: Train, bytes_each: int) -> float:
    """Bytes that a step keeps whatever the number of images.

    The gradient of the small views' part, that of the large views' prototypes (both in float32 as far as prototypes go),
    and in low precision the weights that it computes with.
    """
    maps = head.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    trained = trunk.adapted * 2 * trunk.width * trunk.rank
    if train == "all":
        trained += trunk.depth * trunk.block_maps
    copies = 2 if bytes_each == 2 else 1  # low precision also keeps its copies of what trains
    return copies * bytes_each * (maps + trained) + 4 * 2 * head.prototypes * head.bottleneck


def fitting_micro_batch(free_bytes: float, per_image: float, besides: float, *, at_most: int) -> int:
    """Images that fit into memory at a time: at_most, or a half, a quarter ... of it; at least 1.

    Half of what is free is left to temporary tensors, the allocator and others.
    """
    size = at_most
    while size > 1 and besides + size * per_image > free_bytes / 2:
        size = (size + 1) // 2
    return size
