# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a training step, from sizes alone (2 for a multiply-add): what counted steps are held against.

Counted are matrix products, convolutions and attention; norms, activations and softmaxes are bytes, not FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rekindle.adapters.options import Train
from rekindle.pretraining.costs import Head, Rows, Trunk

FUSED_BACKWARD, PLAIN_BACKWARD = 2.5, 2.0
"""Products of an attention's way back over those of its way forward: the fused kernel computes the scores again."""


@dataclass(frozen=True)
class TrunkFlops:
    """FLOPs of a vision transformer with adapters.

    Attributes:
        sizes: of the transformer.
        skipped: rate of stochastic depth in the last block, falling linearly to 0 in the first, where what the student drops
            is not computed (a CPU in full precision); 0 where it is.
    """

    sizes: Trunk
    skipped: float = 0.0

    def linear(self, tokens: float) -> float:
        """FLOPs of the frozen maps of one block, forward: q, k, v, projection, MLP."""
        return 2 * tokens * self.sizes.width * (4 * self.sizes.width + self.sizes.mlp_maps * self.sizes.hidden)

    def attention(self, queries: float, keys: float) -> float:
        """FLOPs of scores and reading, forward, of all heads."""
        return 4 * queries * keys * self.sizes.width

    def adapter(self, tokens: float) -> float:
        """FLOPs of an adapter, forward."""
        return 4 * tokens * self.sizes.width * self.sizes.rank

    def embed(self, size_px: int) -> float:
        """FLOPs of the patch embedding."""
        return 2 * (size_px // self.sizes.patch) ** 2 * 3 * self.sizes.patch**2 * self.sizes.width

    def forward(self, size_px: int, *, class_only: bool = False) -> float:
        """FLOPs of a forward pass of one view; class_only, the last block gives the class token alone."""
        t = self.sizes.tokens(size_px)
        early = self._kept_blocks * (self.linear(t) + self.attention(t, t)) + (self.sizes.depth - 1) * self.adapter(t)
        branches, rows = (self._class_block(t), 1) if class_only else (self.linear(t) + self.attention(t, t), t)
        return self.embed(size_px) + early + (1 - self.skipped) * branches + self.adapter(rows)

    @property
    def _kept_blocks(self) -> float:
        """Branches of all blocks but the last that are computed, in blocks."""
        return (self.sizes.depth - 1) - self.skipped * (self.sizes.depth - 2) / 2

    def backward(
        self, size_px: int, train: Train, *, class_only: bool = False, attention: float = FUSED_BACKWARD
    ) -> float:
        """FLOPs of the way back of one view.

        A frozen map costs one product (to its input), one that trains costs two. Below the first adapter nothing is
        computed: the attention of the first block, and the embedding. attention: factor of its way back.
        """
        t = self.sizes.tokens(size_px)
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
        return first + (self._kept_blocks - 1) * branches + (self.sizes.depth - 2) * own_adapter + last + embed

    def mlp(self, tokens: float) -> float:
        """FLOPs of a block's MLP, forward."""
        return 2 * tokens * self.sizes.width * self.sizes.mlp_maps * self.sizes.hidden

    def _class_block(self, t: int) -> float:
        """Branches of a last block of which only the class token is wanted: keys and values of all, the rest of one."""
        keys_values = 2 * t * self.sizes.width * 2 * self.sizes.width
        own = 2 * self.sizes.width * (2 * self.sizes.width + self.sizes.mlp_maps * self.sizes.hidden)
        return keys_values + own + self.attention(1, t)


@dataclass(frozen=True)
class HeadFlops:
    """FLOPs of DINO's head."""

    sizes: Head

    def project(self, rows: float) -> float:
        """FLOPs up to the bottleneck, forward."""
        return (
            2
            * rows
            * (self.sizes.width * self.sizes.hidden + self.sizes.hidden**2 + self.sizes.hidden * self.sizes.bottleneck)
        )

    def logits(self, rows: float) -> float:
        """FLOPs of the last layer, forward."""
        return 2 * rows * self.sizes.bottleneck * self.sizes.prototypes

    def student(self, rows: float) -> float:
        """Forward and back: two products per map on the way back."""
        return 3 * (self.project(rows) + self.logits(rows))

    def teacher(self, rows: float, used: float) -> float:
        """Forward: every row to the bottleneck, logits where a loss uses them."""
        return self.project(rows) + self.logits(used)


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
    trunk: TrunkFlops,
    head: HeadFlops,
    *,
    sizes: tuple[int, int],
    num_local: int,
    train: Train,
    attention: float = FUSED_BACKWARD,
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
    trunk: TrunkFlops,
    head: HeadFlops,
    rows: Rows,
    *,
    sizes: tuple[int, int],
    num_local: int,
    train: Train,
    attention: float = FUSED_BACKWARD,
) -> StepCost:
    """FLOPs of one image of a GLARE step with its default options; the rows that its losses use are given."""
    large = sizes[0]
    patches, d = trunk.sizes.tokens(large) - trunk.sizes.prefix, trunk.sizes.width
    # Cross-attention of eqs. 5 and 6: three maps, scores, reading; of the teacher, the region's slots are the queries.
    student_ca = 2 * (6 * patches * d**2 + 4 * patches * patches * d)
    teacher_ca = 2 * 4 * patches * d**2 + rows.region_slots * (2 * d**2 + 4 * patches * d)
    one_row = 2 * (
        2 * trunk.sizes.tokens(large) * d * d + 2 * d * d + 2 * trunk.sizes.tokens(large) * d
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
