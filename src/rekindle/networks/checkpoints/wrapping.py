# SPDX-License-Identifier: Apache-2.0
"""A timm model becomes a `Backbone` that knows where it comes from, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.architecture import Architecture, sincos_rows
from rekindle.networks.checkpoints.facts import Pixels
from rekindle.networks.checkpoints.tensors import require_finite, tensors_hash
from rekindle.networks.identity import BackboneIdentity
from rekindle.networks.options import NetworkOptions
from rekindle.networks.position import PositionMode

Origin = Literal["timm", "file", "hub", "random"]


def wrap(
    vit: Any,
    arch: Architecture,
    options: NetworkOptions,
    pixels: Pixels,
    *,
    name: str,
    source: Origin,
    licence: str | None = None,
    patch_norm: nn.Module | None = None,
    mean_as_cls: bool = False,
    grid_source: str = "",
    fresh: tuple[str, ...] = (),
) -> Backbone:
    """Return the backbone of a timm model without classifier; arguments as in `Backbone` and `BackboneIdentity`.

    Args: options, which may ask for a rule for positions; grid_source, what says the native grid, where that is in doubt.
    Raises: RequestError for a tensor that is not finite.
    """
    tensors = hashed_tensors(vit, patch_norm)
    require_finite(tensors, name)
    rows = 0 if vit.no_embed_class else vit.num_prefix_tokens
    fixed_positions = vit.pos_embed is not None and sincos_rows(vit.pos_embed.detach()[:, rows:])
    rule, why = position_rule(options, arch)
    details = {
        "network": arch.to_dict(),
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "pos_interp": rule,
        "patch_norm": patch_norm is not None,
        "mean_as_cls": mean_as_cls,
        "fixed_positions": fixed_positions,
        "told_by": {"pixels": pixels.source, "grid": grid_source, "pos_interp": why},
    }
    return Backbone(
        vit,
        mean=pixels.mean,
        std=pixels.std,
        identity=BackboneIdentity(name, source, tensors_hash(tensors), licence, details),
        pos_interp=rule,
        fresh=fresh,
        patch_norm=patch_norm,
        mean_as_cls=mean_as_cls,
        fixed_positions=fixed_positions,
    )


def position_rule(options: NetworkOptions, arch: Architecture) -> tuple[PositionMode, str]:
    """Return how positions follow the image size, and why.

    Registers without rows in the table are DINOv2's (Darcet et al., arXiv:2309.16588) or timm's own: both resize with a
    low-pass filter and without DINO's 0.1.
    """
    if options.pos_interp != "auto":
        return options.pos_interp, "as asked for"
    if arch.registers and arch.no_embed_class:
        return "antialias", "as DINOv2 with registers"
    return "dino", "as DINO and DINOv2"


def told(backbone: Backbone) -> str:
    """One sentence: the pixel constants in use, the native grid, the rule for other sizes, and what says each."""
    sources, pixels = sources_of(backbone), pixels_of(backbone)
    if backbone.vit.pos_embed is None:
        return f"{pixels}; positions: rotary" if backbone.is_rotary else str(pixels)
    height, width = backbone.vit.patch_embed.grid_size
    doubt = f" ({sources['grid']})" if sources.get("grid") else ""
    why = f" ({sources['pos_interp']})" if sources.get("pos_interp") else ""
    return f"{pixels}; positions: {height} x {width}{doubt}, at other sizes by the rule {backbone.pos_interp}{why}"


def hashed_tensors(vit: Any, patch_norm: nn.Module | None) -> dict[str, Tensor]:
    """The tensors that a backbone's identity is the hash of."""
    tensors: dict[str, Tensor] = dict(vit.state_dict())
    if patch_norm is not None:
        tensors |= {f"patch_norm.{key}": value for key, value in patch_norm.state_dict().items()}
    return tensors


def pixels_of(backbone: Backbone) -> Pixels:
    """The constants of a backbone, and what said them."""
    return Pixels(backbone.mean, backbone.std, sources_of(backbone).get("pixels", "as the model says itself"))


def sources_of(backbone: Backbone) -> Mapping[str, str]:
    """What said pixel constants, grid and rule; nothing of a description that was written before this was kept."""
    known = backbone.identity.arch.get("told_by")
    return {str(k): str(v) for k, v in known.items()} if isinstance(known, Mapping) else {}
