# SPDX-License-Identifier: Apache-2.0
"""Options of the adapters. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rekindle.adapters import ADAPTERS
from rekindle.core.options import Options
from rekindle.core.tables import known_name

Train = Literal["adapters", "all", "norm"]
"""What trains: adapters on a frozen backbone, all weights (HPT), or the layer norms alone."""

LoraTarget = Literal["qkv", "proj", "fc1", "fc2"]
LORA_MAPS: dict[LoraTarget, tuple[str, ...]] = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
"""What a target is called in timm's blocks: one joint map, or one for each part."""


class AdapterOptions(Options):
    """Which adapter goes where, and its size. Defaults: GLARE with UniAdapter."""

    kind: str = Field("uniadapter", description=f"Kind of adapter: {', '.join(ADAPTERS)} (`rekindle list adapters`).")
    position: Literal["after_attn", "after_block", "parallel_mlp", "attn_branch"] = "after_attn"
    """Place: after the attention residual, after the block, beside the MLP, or in the attention branch. For `uniadapter`
    alone: the other kinds have one place each and do not read it."""
    rank: int | None = Field(default=None, ge=1)
    """Width r of the bottleneck or of the update; None: what is usual for the kind (`rekindle list adapters`). `lora` takes 256
    at most; `norm` and `bias` have none."""
    blocks: int | None = Field(default=None, ge=1)
    """Adapters in this many of the last blocks; None: in all. What lies before them stays frozen: nothing of it is kept for the
    way back, and student and teacher share what it computes where they see the same."""
    scale: float = Field(default=0.1, gt=0.0)
    """Factor s on the output of `uniadapter` and `adaptformer` (the default of both)."""
    learn_scale: bool = False
    """Train s, starting from `scale` (`uniadapter` and `adaptformer`)."""
    in_full_training: bool = False
    """Put adapters in with train=all or norm as well; GLARE's 34 M parameters of HPT count them."""
    layernorm: bool | None = None
    """LayerNorm before the down-projection; None: as in the published code, for `uniadapter` at `parallel_mlp` alone."""
    lora_alpha: float = Field(default=8.0, gt=0.0)
    """alpha of `lora`, whose update is (alpha / rank) B A; with PEFT's defaults, alpha = rank = 8, the factor is 1."""
    lora_targets: tuple[LoraTarget, ...] = ("qkv", "proj")
    """Maps that `lora` updates: queries, keys and values, the attention's projection, the MLP's first and second map."""

    @property
    def width(self) -> int:
        """The rank that is asked for, or that suits the kind; 0 for a kind without."""
        usual = ADAPTERS[self.kind].usual_rank
        if usual is None:
            return 0
        return usual if self.rank is None else self.rank

    @field_validator("kind")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(ADAPTERS, "adapter", name)

    @model_validator(mode="after")
    def _possible(self) -> AdapterOptions:
        if not self.lora_targets or len(set(self.lora_targets)) < len(self.lora_targets):
            raise ValueError(
                f"lora_targets = {list(self.lora_targets)} must name at least one map, each once, of qkv, proj, fc1, fc2"
            )
        kind = ADAPTERS[self.kind]
        if kind.most_rank is not None and self.width > kind.most_rank:
            raise ValueError(
                f"rank = {self.rank} is not low; name one for kind = {self.kind}, {kind.most_rank} at most (usually "
                f"{kind.usual_rank})"
            )
        if self.in_full_training and kind.moves_base:
            raise ValueError(
                f"in_full_training with kind = {self.kind} would train the same numbers twice; leave in_full_training out"
            )
        return self
