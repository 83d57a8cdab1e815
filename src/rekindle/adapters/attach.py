# SPDX-License-Identifier: Apache-2.0
"""Attachment of adapters: what trains and what is frozen, decided in one place and told by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from rekindle.adapters import ADAPTERS
from rekindle.adapters.options import AdapterOptions, Train
from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.networks.backbone import Backbone
from rekindle.networks.blocks import ComposedBlock

ADAPTER_NAMES = "vit.blocks.*.adapter.*"
BASE_NAMES = ("vit.*", "patch_norm.*")


@dataclass(frozen=True)
class Attachment:
    """Names of the backbone's parameters: each is in exactly one of the two."""

    trained: tuple[str, ...]
    frozen: tuple[str, ...]


def is_adapted(backbone: Backbone) -> bool:
    """Tell whether something was put around the blocks."""
    return any(isinstance(block, ComposedBlock) for block in backbone.vit.blocks)


def attach(
    backbone: Backbone,
    options: AdapterOptions,
    *,
    train: Train,
    with_adapters: bool | None = None,
    also_trainable: Sequence[str] = (),
) -> Attachment:
    """Put adapters in (where wanted) and set `requires_grad` of every parameter. Outputs do not change.

    Attach after the weights are loaded: a fresh adapter is the identity only if nobody initialises it again. Adapters that
    are there already are trained on.

    Args:
        backbone: changed in place; its blocks become `ComposedBlock`s.
        options: kind, place, number and size of the adapters.
        train: `adapters` trains only them; `all` every weight (a fixed position table stays); `norm` the
            LayerNorms.
        with_adapters: None puts adapters in for `adapters`, and elsewhere if the options ask. Adapters that are there
            always train.
        also_trainable: patterns (`fnmatch`) of further parameters to train, e.g. "vit.cls_token".

    Raises:
        RequestError: for adapters that are there and are not what the options ask for.
        ValueError: if adapters are attached already or `adapters` should train without any, if a pattern hits
            no parameter, or if a parameter belongs to neither base nor adapters.

    """
    if with_adapters is None:
        with_adapters = train == "adapters" or options.in_full_training
    if train == "adapters" and not with_adapters:
        raise ValueError("train='adapters' with with_adapters=False would train nothing; use train='all' or 'norm'")
    adapted = [block for block in backbone.vit.blocks if isinstance(block, ComposedBlock)]
    if adapted and train != "adapters":
        raise RequestError(
            f"this backbone has adapters, and train={train} would leave them behind; go on with train=adapters, or start "
            "from the base that the adapters stand on"
        )
    wrapper = import_named(ADAPTERS, "adapter", options.kind)
    if adapted:
        _require_places(backbone, options)
        for block in adapted:
            wrapper.require_fit(block, options)
    elif with_adapters:
        for i in _places(backbone, options):
            backbone.vit.blocks[i] = wrapper.wrap(backbone.vit.blocks[i], backbone.width, options)
    parameters = dict(backbone.named_parameters())
    for pattern in also_trainable:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(f"also_trainable pattern '{pattern}' hits no parameter; known are {_few(parameters)}")
    stray = [n for n in parameters if not any(fnmatchcase(n, p) for p in (*BASE_NAMES, ADAPTER_NAMES))]
    if stray:
        raise ValueError(f"parameters that belong to neither base nor adapters: {_few(stray)}")
    norms = {
        f"{prefix}.{name}"
        for prefix, module in backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in parameters.items():
        parameter.requires_grad_(
            fnmatchcase(name, ADAPTER_NAMES)
            or any(fnmatchcase(name, pattern) for pattern in (*also_trainable, *backbone.fresh))
            or (train == "all" and not (backbone.fixed_positions and name == "vit.pos_embed"))
            or (train == "norm" and name in norms)
        )
    backbone.set_stem()
    return Attachment(
        trained=tuple(n for n, p in parameters.items() if p.requires_grad),
        frozen=tuple(n for n, p in parameters.items() if not p.requires_grad),
    )


@contextmanager
def adapters_enabled(backbone: Backbone, enabled: bool) -> Iterator[None]:
    """Switch all adapters on or off for a while; off, the outputs are the base's bit for bit."""
    blocks = [block for block in backbone.vit.blocks if isinstance(block, ComposedBlock)]
    before = [block.enabled for block in blocks]
    try:
        for block in blocks:
            block.enabled = enabled
        yield
    finally:
        for block, state in zip(blocks, before, strict=True):
            block.enabled = state


def _places(backbone: Backbone, options: AdapterOptions) -> range:
    """Numbers of the blocks that get an adapter. Raises RequestError for more blocks than there are."""
    wanted = backbone.depth if options.blocks is None else options.blocks
    if wanted > backbone.depth:
        raise RequestError(
            f"--adapter.blocks {wanted}: this backbone has {backbone.depth} blocks; give 1 to {backbone.depth}, or leave it out "
            "for all of them"
        )
    return range(backbone.depth - wanted, backbone.depth)


def _require_places(backbone: Backbone, options: AdapterOptions) -> None:
    """Check that the blocks with an adapter are those that `options` ask for. Raises RequestError."""
    found = [i for i, block in enumerate(backbone.vit.blocks) if isinstance(block, ComposedBlock)]
    if found != list(_places(backbone, options)):
        asked = "all of them" if options.blocks is None else f"the last {options.blocks}"
        raise RequestError(
            f"this backbone has adapters in {len(found)} of its {backbone.depth} blocks, not in {asked}; go on with the same "
            f"(--adapter.blocks {len(found)}), or start from the base they stand on"
        )


def _few(names: Sequence[str] | dict[str, nn.Parameter]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (f", ... ({len(listed)} in all)" if len(listed) > 6 else "")
