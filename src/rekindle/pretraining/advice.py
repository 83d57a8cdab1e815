# SPDX-License-Identifier: Apache-2.0
"""Advice on memory: the cheapest settings with which a run fits, found before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rekindle.adapters import ADAPTERS
from rekindle.core.devices import has_gpu
from rekindle.core.errors import RequestError
from rekindle.data.images import chosen_images
from rekindle.data.memory import free_bytes
from rekindle.pretraining.costs import Head
from rekindle.pretraining.memory import Fit, Setting, Sizes, fits_into
from rekindle.pretraining.network_sizes import trunk_of, vit_without_weights
from rekindle.pretraining.options import Resolved
from rekindle.pretraining.recipes import with_recipe, with_view_sizes
from rekindle.pretraining.requests import check_trunk_bits, required


@dataclass(frozen=True)
class Advice:
    """What fits into so much memory.

    Attributes:
        backbone: as it was named.
        network: its sizes, in words.
        device: `cpu` or `gpu`; precision, `fp32` or `bf16`.
        views: sides of large and small views, px.
        memory_bytes: what there is.
        sets: of measures, the cheapest first.
    """

    backbone: str
    network: str
    device: str
    precision: str
    views: tuple[int, int]
    memory_bytes: int
    sets: list[Fit]

    @property
    def proposal(self) -> Fit | None:
        """The cheapest set that fits, if one does."""
        return next((fit for fit in self.sets if fit.fits), None)

    @property
    def as_asked(self) -> Fit:
        """The settings that are asked for, whether they fit or not."""
        return self.sets[0]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "backbone": self.backbone,
            "network": self.network,
            "device": self.device,
            "precision": self.precision,
            "views": list(self.views),
            "memory_bytes": self.memory_bytes,
            "proposal": None if self.proposal is None else self.proposal.to_dict(),
            "sets": [fit.to_dict() for fit in self.sets],
        }


def advise(resolved: Resolved, memory_bytes: float | None = None) -> Advice:
    """Say with which settings a run of these options fits. Weights are not loaded, and nothing is written.

    Where images are named, the recipe chooses for so many; without, what nobody set has its default.
    Args: memory_bytes, of the device; None: what is free now. Raises: RequestError for a network that cannot be told.
    """
    required("backbone", resolved.options.backbone)
    check_trunk_bits(resolved.options)
    count = None
    if resolved.options.images:
        count = len(chosen_images(resolved.options.images, resolved.options.data))
        resolved = with_recipe(resolved, count)
    vit = vit_without_weights(resolved.options)
    trunk = trunk_of(vit, resolved.options)
    options = with_view_sizes(resolved, trunk.patch).options
    method = resolved.method_options().model_dump()
    head = Head(trunk.width)
    named = {"hidden": "head_hidden", "bottleneck": "head_bottleneck", "prototypes": "num_prototypes"}
    head = Head(trunk.width, **{name: method.get(option) or getattr(head, name) for name, option in named.items()})
    is_gpu = has_gpu(options.accelerator)
    sizes = Sizes(
        trunk,
        sum(p.numel() for p in vit.parameters()) - trunk.depth * trunk.block_maps,
        head,
        train=options.train,
        views=(options.views.global_size_px, options.views.local_size_px),
        num_local=options.views.num_local,
        device="gpu" if is_gpu else "cpu",
    )
    batch = max(1, options.batch_size // options.devices if count is None else min(options.batch_size, count))
    asked = Setting(
        is_bf16=options.precision == "bf16" or (options.precision == "auto" and is_gpu),
        trunk_bits=options.engine.trunk_bits,
        recompute=options.engine.recompute_blocks,
        micro_batch=options.engine.micro_batch_size or min(batch, 64 if is_gpu else 16),
        batch=batch,
    )
    if memory_bytes is None:
        memory_bytes = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() and is_gpu else free_bytes()
    may_pack = options.train == "adapters" and not ADAPTERS[options.adapter.kind].moves_base
    gated = ", gated MLP" if trunk.mlp_maps > 2 else ""
    return Advice(
        backbone=options.backbone,
        network=f"{trunk.depth} blocks of width {trunk.width}{gated}, patches of {trunk.patch} px",
        device=sizes.device,
        precision="bf16" if asked.is_bf16 else "fp32",
        views=sizes.views,
        memory_bytes=int(memory_bytes),
        sets=fits_into(sizes, asked, memory_bytes, may_pack=may_pack),
    )


def memory_asked(text: str) -> float | None:
    """Bytes of `--memory-gib`; None for `free`. Raises RequestError for what is no size."""
    if text == "free":
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise RequestError(f"--memory-gib {text}: give a size in GiB above 0, as in --memory-gib 8, or free")
    return size * 2**30
