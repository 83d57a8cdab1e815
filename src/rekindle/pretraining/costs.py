# SPDX-License-Identifier: Apache-2.0
"""What a training step costs, from sizes alone: FLOPs (2 for a multiply-add) and bytes that autograd keeps. Torch-free.

Counted are matrix products, convolutions and attention; norms, activations and softmaxes are bytes, not FLOPs. The model is
held against counted steps in tests/bench/test_step_cost.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Train = Literal["adapters", "all", "norm"]

FUSED_BACKWARD, PLAIN_BACKWARD = 2.5, 2.0
"""Products of an attention's way back over those of its way forward: the fused kernel computes the scores again."""


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
        skipped: rate of stochastic depth in the last block, falling linearly to 0 in the first, where what the student drops
            is not computed (a CPU in full precision); 0 where it is.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    prefix: int = 1
    rank: int = 0
    mlp_maps: int = 2
    skipped: float = 0.0

    def tokens(self, size_px: int) -> int:
        """Tokens of a square view."""
        return (size_px // self.patch) ** 2 + self.prefix

    def linear(self, tokens: float) -> float:
        """FLOPs of the frozen maps of one block, forward: q, k, v, projection, MLP."""
        return 2 * tokens * self.width * (4 * self.width + self.mlp_maps * self.hidden)

    def attention(self, queries: float, keys: float) -> float:
        """FLOPs of scores and reading, forward, of all heads."""
        return 4 * queries * keys * self.width

    def adapter(self, tokens: float) -> float:
        """FLOPs of an adapter, forward."""
        return 4 * tokens * self.width * self.rank

    def embed(self, size_px: int) -> float:
        """FLOPs of the patch embedding."""
        return 2 * (size_px // self.patch) ** 2 * 3 * self.patch**2 * self.width

    def forward(self, size_px: int, *, class_only: bool = False) -> float:
        """FLOPs of a forward pass of one view; class_only, the last block gives the class token alone."""
        t = self.tokens(size_px)
        early = self._kept_blocks * (self.linear(t) + self.attention(t, t)) + (self.depth - 1) * self.adapter(t)
        branches, rows = (self._class_block(t), 1) if class_only else (self.linear(t) + self.attention(t, t), t)
        return self.embed(size_px) + early + (1 - self.skipped) * branches + self.adapter(rows)

    @property
    def _kept_blocks(self) -> float:
        """Branches of all blocks but the last that are computed, in blocks."""
        return (self.depth - 1) - self.skipped * (self.depth - 2) / 2

    def backward(
        self, size_px: int, train: Train, *, class_only: bool = False, attention: float = FUSED_BACKWARD
    ) -> float:
        """FLOPs of the way back of one view.

        A frozen map costs one product (to its input), one that trains costs two. Below the first adapter nothing is
        computed: the attention of the first block, and the embedding. attention: factor of its way back.
        """
        t = self.tokens(size_px)
        maps = 2 if train == "all" else 1
        branches, own_adapter = maps * self.linear(t) + attention * self.attention(t, t), 2 * self.adapter(t)
        last = (1 - self.skipped) * branches + own_adapter
        if class_only:
            frozen = self._class_block(t) - self.attention(1, t)
            last = (1 - self.skipped) * (maps * frozen + attention * self.attention(1, t)) + 2 * self.adapter(1)
        first = branches + own_adapter
        if train == "adapters":
            first = self.mlp(t) + own_adapter - self.adapter(t) / 2
        embed = self.embed(size_px) if train == "all" else 0.0
        return first + (self._kept_blocks - 1) * branches + (self.depth - 2) * own_adapter + last + embed

    def mlp(self, tokens: float) -> float:
        """FLOPs of a block's MLP, forward."""
        return 2 * tokens * self.width * self.mlp_maps * self.hidden

    def _class_block(self, t: int) -> float:
        """Branches of a last block of which only the class token is wanted: keys and values of all, the rest of one."""
        keys_values = 2 * t * self.width * 2 * self.width
        own = 2 * self.width * (2 * self.width + self.mlp_maps * self.hidden)
        return keys_values + own + self.attention(1, t)

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
        return float(bytes_each * self.depth * t * per_token)


@dataclass(frozen=True)
class Head:
    """DINO's head: width -> hidden -> hidden -> bottleneck -> prototypes."""

    width: int
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192

    def project(self, rows: float) -> float:
        """FLOPs up to the bottleneck, forward."""
        return 2 * rows * (self.width * self.hidden + self.hidden**2 + self.hidden * self.bottleneck)

    def logits(self, rows: float) -> float:
        """FLOPs of the last layer, forward."""
        return 2 * rows * self.bottleneck * self.prototypes

    def student(self, rows: float) -> float:
        """Forward and back: two products per map on the way back."""
        return 3 * (self.project(rows) + self.logits(rows))

    def teacher(self, rows: float, used: float) -> float:
        """Forward: every row to the bottleneck, logits where a loss uses them."""
        return self.project(rows) + self.logits(used)


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


@dataclass(frozen=True)
class StepCost:
    """GFLOP and so on are for the reader; these are FLOPs of one image, by part."""

    teacher: float
    student_forward: float
    student_backward: float
    heads: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.teacher + self.student_forward + self.student_backward + self.heads


def dino_step(
    trunk: Trunk, head: Head, *, sizes: tuple[int, int], num_local: int, train: Train, attention: float = FUSED_BACKWARD
) -> StepCost:
    """FLOPs of one image of a DINO step: two large views of sizes[0] pixels, num_local small ones of sizes[1]."""
    large, small = sizes
    views = [(large, 2), (small, num_local)]
    return StepCost(
        teacher=2 * replace(trunk, skipped=0.0).forward(large, class_only=True),
        student_forward=sum(n * trunk.forward(s, class_only=True) for s, n in views),
        student_backward=sum(n * trunk.backward(s, train, class_only=True, attention=attention) for s, n in views),
        heads=head.student(2 + num_local) + head.project(2) + 2 * head.logits(2),
    )


def glare_step(
    trunk: Trunk,
    head: Head,
    rows: Rows,
    *,
    sizes: tuple[int, int],
    num_local: int,
    train: Train,
    attention: float = FUSED_BACKWARD,
) -> StepCost:
    """FLOPs of one image of a GLARE step with its default options; the rows that its losses use are given."""
    large = sizes[0]
    patches, d = trunk.tokens(large) - trunk.prefix, trunk.width
    # Cross-attention of eqs. 5 and 6: three maps, scores, reading; of the teacher, the region's slots are the queries.
    student_ca = 2 * (6 * patches * d**2 + 4 * patches * patches * d)
    teacher_ca = 2 * 4 * patches * d**2 + rows.region_slots * (2 * d**2 + 4 * patches * d)
    one_row = 2 * (
        2 * trunk.tokens(large) * d * d + 2 * d * d + 2 * trunk.tokens(large) * d
    )  # attention of the class token
    dino = dino_step(trunk, head, sizes=sizes, num_local=num_local, train=train, attention=attention)
    heads = head.student(2 + num_local + rows.student_patch + rows.student_region)
    heads += head.project(2 + 2 * patches + rows.teacher_region) + head.logits(
        2 * 2 + rows.teacher_patch + rows.teacher_region
    )
    return StepCost(
        teacher=2 * replace(trunk, skipped=0.0).forward(large) + teacher_ca + one_row,
        student_forward=dino.student_forward
        + 2 * (trunk.forward(large) - trunk.forward(large, class_only=True))
        + student_ca,
        student_backward=dino.student_backward
        + 2
        * (
            trunk.backward(large, train, attention=attention)
            - trunk.backward(large, train, class_only=True, attention=attention)
        )
        + 2 * student_ca,
        heads=heads,
    )


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

    The small views' share is gone before the large views' exists. A row in the head keeps the inputs of its activations and
    of its maps.
    """
    large = 2 * trunk.kept(sizes[0], train, bytes_each=bytes_each)
    small = num_local * trunk.kept(sizes[1], train, bytes_each=bytes_each)
    per_row = bytes_each * (4 * head.hidden + head.width + 2 * head.bottleneck)
    return max(large + per_row * (2 + rows.student_patch + rows.student_region), small + per_row * num_local)


def kept_besides(trunk: Trunk, head: Head, *, train: Train, bytes_each: int) -> float:
    """Bytes that a step keeps whatever the number of images.

    The gradient of the small views' share, that of the large views' prototypes (both in float32 as far as prototypes go),
    and in low precision the weights that it computes with.
    """
    maps = head.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    trained = trunk.depth * 2 * trunk.width * trunk.rank
    if train == "all":
        trained += trunk.depth * trunk.width * (4 * trunk.width + trunk.mlp_maps * trunk.hidden)
    copies = 2 if bytes_each == 2 else 1  # low precision also keeps its copies of what trains
    return copies * bytes_each * (maps + trained) + 4 * 2 * head.prototypes * head.bottleneck


def fitting_share(free_bytes: float, per_image: float, besides: float, *, at_most: int) -> int:
    """Images that fit into memory at a time: at_most, or a half, a quarter ... of it; at least 1.

    Half of what is free is left to temporary tensors, the allocator and others.
    """
    share = at_most
    while share > 1 and besides + share * per_image > free_bytes / 2:
        share = (share + 1) // 2
    return share
