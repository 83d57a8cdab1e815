# SPDX-License-Identifier: Apache-2.0
"""Backbone creation from the name of a published model, a checkpoint file or an architecture; for any MODEL, `adapters.saved`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn

from rekindle.core.errors import RequestError
from rekindle.core.rng import derived_seed
from rekindle.networks.backbone import Backbone, Triple, check_plain_vit
from rekindle.networks.checkpoints.architecture import Architecture, build_vit, infer_arch, is_grammar, parse_arch
from rekindle.networks.checkpoints.conversion import Converted, to_timm_names
from rekindle.networks.checkpoints.facts import Facts, facts_of_folder, pixels_for
from rekindle.networks.checkpoints.fixed_positions import fix_positions
from rekindle.networks.checkpoints.folders import (
    is_model_folder,
    model_folder,
    read_model_folder,
    stands_in_model_folder,
)
from rekindle.networks.checkpoints.named import HUB, from_timm, hub_folder, timm_architecture, unknown_model
from rekindle.networks.checkpoints.reading import CheckpointFile, read_checkpoint
from rekindle.networks.checkpoints.tensors import (
    MatchReport,
    load_matching,
    require_complete,
    require_finite,
    tensors_hash,
)
from rekindle.networks.checkpoints.wrapping import hashed_tensors, pixels_of, sources_of, wrap
from rekindle.networks.identity import BackboneIdentity
from rekindle.networks.options import NetworkOptions

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


def create_backbone(
    name: str,
    options: NetworkOptions,
    *,
    init: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
    drop_path: float | None = None,
) -> tuple[Backbone, MatchReport | None]:
    """Return the network that `name` stands for, and how its checkpoint matched (None for random weights).

    Args:
        name: a checkpoint file, a folder of transformers or timm, `hf-hub:owner/name`, a timm name
            (`vit_small_patch16_224.dino`), or an architecture (`vit:width=128,depth=8,heads=4,patch=8,img=64`; random weights
            only).
        options: see `NetworkOptions`.
        init: `random` builds the architecture and draws its weights.
        seed: for random weights, and for tokens that a checkpoint does not bring along.
        drop_path: stochastic depth of the last block; None takes the option's.

    Raises:
        RequestError: for an unknown name, a missing file, a checkpoint that does not fit, or fixed positions beside one.
        RekindleError: if the model hub cannot be reached and its cache has no copy.

    """
    if init == "pretrained" and options.positions != "learnt":
        raise RequestError("--network.positions sincos is for --init random; a checkpoint brings its own positions")
    rate = options.drop_path if drop_path is None else drop_path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "backbone"))
        backbone, report = _create(name, options, rate, init)
        if init == "random" and (options.positions == "sincos" or backbone.fixed_positions):
            fix_positions(backbone, "--network.positions sincos")
        return (add_register(backbone, name, drop_path=rate) if options.add_register else backbone), report


def _create(
    name: str, options: NetworkOptions, rate: float, init: Literal["pretrained", "random"]
) -> tuple[Backbone, MatchReport | None]:
    if is_grammar(name):
        if init == "pretrained":
            raise RequestError(f"'{name}' is an architecture without weights; use --init random, or name a model")
        return _random(name, parse_arch(name), options, rate, Facts()), None
    path = Path(name).expanduser()
    if is_model_folder(path):
        folder = model_folder(path)
        file = read_model_folder(folder, options.checkpoint_key)
        return _from_file(name, file, facts_of_folder(folder), options, rate, init)
    if path.is_file() or _looks_like_path(name):
        file = read_checkpoint(path, options.checkpoint_key)
        facts = facts_of_folder(path.parent) if stands_in_model_folder(path) else Facts()
        return _from_file(name, file, facts, options, rate, init)
    if name.startswith(HUB):
        folder = hub_folder(name)
        facts = facts_of_folder(folder)
        if facts.is_timm:
            return from_timm(name, options, rate, init)
        return _from_file(
            name, read_model_folder(folder, options.checkpoint_key), facts, options, rate, init, source="hub"
        )
    _refuse_for_timm(name, options)
    return from_timm(name, options, rate, init)


def add_register(backbone: Backbone, name: str, *, drop_path: float = 0.0) -> Backbone:
    """Return the network with a fresh register, drawn from torch's default generator; the rest keeps its weights.

    Its row in the position table is zero: only the sum of token and row is ever seen. Raises: RequestError if the network has
    registers already.
    """
    if backbone.num_registers:
        raise RequestError(
            f"--network.add-register: '{name}' has {backbone.num_registers} register(s) already; leave the option out"
        )
    details = dict(backbone.identity.arch)
    arch = replace(Architecture.from_dict(cast(Any, details["network"])), registers=1)
    vit = build_vit(arch, drop_path=drop_path)
    state = dict(backbone.vit.state_dict())
    state["reg_token"] = nn.init.trunc_normal_(torch.empty(1, 1, backbone.width), std=0.02)
    if backbone.vit.pos_embed is not None and not backbone.vit.no_embed_class:
        table, first = state["pos_embed"], int(backbone.has_class_token)
        state["pos_embed"] = torch.cat([table[:, :first], torch.zeros_like(table[:, :1]), table[:, first:]], dim=1)
    vit.load_state_dict(state, strict=True)
    extended = wrap(
        vit,
        arch,
        NetworkOptions(pos_interp=backbone.pos_interp),
        pixels_of(backbone),
        name=backbone.identity.name,
        source=backbone.identity.source,
        licence=backbone.identity.licence,
        patch_norm=backbone.patch_norm,
        mean_as_cls=backbone.mean_as_cls,
        fresh=(*backbone.fresh, "vit.reg_token"),
    )
    known = dict(extended.identity.arch) | {"told_by": dict(sources_of(backbone))}
    extended.identity = replace(extended.identity, arch=known)
    return extended


def backbone_from_description(description: Mapping[str, object], *, drop_path: float = 0.0) -> Backbone:
    """Build the network that `BackboneIdentity.to_dict()` describes; the caller loads its weights."""
    details = dict(cast(Mapping[str, Any], description["arch"]))
    vit = build_vit(Architecture.from_dict(details["network"]), drop_path=drop_path)
    norm = nn.LayerNorm(vit.embed_dim, eps=1e-6) if details["patch_norm"] else None
    identity = BackboneIdentity(
        name=str(description["name"]),
        source=cast(Any, description["source"]),
        sha256=str(description["sha256"]),
        licence=cast("str | None", description.get("licence")),
        arch=details,
    )
    return Backbone(
        vit,
        mean=cast(Triple, tuple(details["mean"])),
        std=cast(Triple, tuple(details["std"])),
        identity=identity,
        pos_interp=details["pos_interp"],
        patch_norm=norm,
        mean_as_cls=details["mean_as_cls"],
        fixed_positions=details["fixed_positions"],
    )


def _random(name: str, arch: Architecture, options: NetworkOptions, drop_path: float, facts: Facts) -> Backbone:
    _refuse_udi_norm(name, options)
    if options.native_grid is not None and arch.family == "vit":
        arch = arch.with_grid(options.native_grid, arch.patch)
    vit = build_vit(arch, drop_path=drop_path)
    return wrap(vit, arch, options, pixels_for(options, facts, options.arch), name=name, source="random")


def _from_file(
    name: str,
    file: CheckpointFile,
    facts: Facts,
    options: NetworkOptions,
    drop_path: float,
    init: Literal["pretrained", "random"],
    *,
    source: Literal["file", "hub"] = "file",
) -> tuple[Backbone, MatchReport | None]:
    if file.description is not None and options.arch is None:
        return _from_own_file(name, file, options, drop_path, init)
    converted = to_timm_names(file, options.checkpoint_key)
    arch, grid_source = _architecture(converted, options, facts)
    _refuse_other_sizes(name, arch, facts)
    new_cls = converted.untrained_cls and options.flsl_cls == "new"
    if converted.untrained_cls:  # a fresh token needs no row: only the sum of token and row is ever seen
        arch = replace(arch, class_token=new_cls, no_embed_class=True)
    if init == "random":
        return _random(name, arch, options, drop_path, facts), None
    vit = build_vit(arch, drop_path=drop_path)
    if new_cls:
        nn.init.trunc_normal_(vit.cls_token, std=0.02)
    norm = _udi_norm(name, converted) if options.patch_norm == "udi_norm1" else None
    fresh = ("cls_token",) if new_cls else ()
    require_finite(converted.state, name)
    report = load_matching(vit, converted.state, converted.ignored, fresh)
    if not options.allow_partial:
        require_complete(report, name)
    backbone = wrap(
        vit,
        arch,
        options,
        pixels_for(options, facts, options.arch or facts.arch),
        name=name,
        source=source,
        licence=facts.licence,
        patch_norm=norm,
        mean_as_cls=converted.untrained_cls and not new_cls,
        grid_source=grid_source,
        fresh=tuple(f"vit.{tensor}" for tensor in fresh),
    )
    return backbone, report


def _refuse_other_sizes(name: str, arch: Architecture, facts: Facts) -> None:
    """Refuse a config.json of another network: what it says beside the sizes (heads, epsilon) would be wrong as well."""
    for key, (attribute, told) in facts.sizes.items():
        found = getattr(arch, attribute)
        if found != told:
            raise RequestError(
                f"{name}: config.json says {key} = {told}, and the weights beside it have {found}; put the config.json of "
                "these weights there, or the weights of this config.json"
            )


def _from_own_file(
    name: str,
    file: CheckpointFile,
    options: NetworkOptions,
    drop_path: float,
    init: Literal["pretrained", "random"],
) -> tuple[Backbone, MatchReport | None]:
    """Read what `write_checkpoint` wrote: the file describes itself, and nothing is guessed."""
    assert file.description is not None
    if options.native_grid is not None:
        raise RequestError(f"--network.grid: {name} says its own grid; leave the option out")
    backbone = backbone_from_description(file.description, drop_path=drop_path)
    details = dict(backbone.identity.arch)
    if options.pos_interp != "auto":
        backbone.pos_interp = details["pos_interp"] = options.pos_interp
    if options.pixel_mean is not None and options.pixel_std is not None:
        backbone.mean, backbone.std = options.pixel_mean, options.pixel_std
        details |= {"mean": list(backbone.mean), "std": list(backbone.std)}
        details["told_by"] = {**sources_of(backbone), "pixels": "as asked for"}
    report = None
    if init == "pretrained":
        require_finite(file.tensors, name)
        report = load_matching(backbone, file.tensors)
        if not options.allow_partial:
            require_complete(report, name)
    backbone.identity = replace(
        backbone.identity,
        name=name,
        source="file" if init == "pretrained" else "random",
        sha256=tensors_hash(hashed_tensors(backbone.vit, backbone.patch_norm)),
        arch=details,
    )
    return backbone, report


def _architecture(converted: Converted, options: NetworkOptions, facts: Facts) -> tuple[Architecture, str]:
    """Return the architecture: as named, else as the tensors and the facts say; and what says the native grid."""
    grid = options.native_grid
    grid_source = "as asked for" if grid is not None else ""
    state, named = converted.state, options.arch or facts.arch
    if "pos_embed" not in state and grid is not None:
        raise RequestError(
            "--network.grid: this network has no position table, so it has no grid of its own; leave it out"
        )
    if grid is None and facts.grid is not None and _fits(facts.grid, state):
        grid = facts.grid
    if named is not None and is_grammar(named):
        arch = parse_arch(named)
        return (arch if options.native_grid is None else arch.with_grid(options.native_grid, arch.patch)), grid_source
    if named is not None and not timm.is_model(named.split(".")[0]):
        raise unknown_model(named, "architecture (--network.arch)")
    vit: Any = None if named is None else timm.create_model(named, pretrained=False, num_classes=0)
    if vit is not None:
        check_plain_vit(vit)
    heads = facts.heads if vit is None else vit.blocks[0].attn.num_heads
    if vit is not None and grid is None and _fits(vit.patch_embed.grid_size, state):
        grid = vit.patch_embed.grid_size
    told = infer_arch(state, heads=heads, layout=converted.layout, grid=grid)
    if grid is None and "pos_embed" in state:
        grid_source = "assumed square; --network.grid states another"
    if vit is None or named is None:
        return _with_facts(told, facts), grid_source
    base = timm_architecture(vit, named.split(".")[0])
    if "pos_embed" not in state:
        return base, grid_source
    sized = base.with_grid((told.img_size[0] // told.patch, told.img_size[1] // told.patch), told.patch)
    return replace(sized, registers=told.registers, no_embed_class=told.no_embed_class), grid_source


def _with_facts(arch: Architecture, facts: Facts) -> Architecture:
    """What no tensor tells of an architecture, where something beside them does and it is not the usual."""
    usual_act = "silu" if arch.swiglu else "gelu"
    usual_eps = 1e-5 if arch.family == "dinov3" else 1e-6
    return replace(
        arch,
        eps=0.0 if facts.eps in (None, usual_eps) else facts.eps,
        act="" if facts.act in (None, usual_act) else facts.act,
        rope_theta=facts.rope_theta or arch.rope_theta,
    )


def _fits(grid: tuple[int, int], state: Mapping[str, Tensor]) -> bool:
    """Whether a position table may have this grid: its rows, with or without prefix tokens."""
    if "pos_embed" not in state:
        return False
    prefix = sum(state[name].shape[1] for name in ("cls_token", "reg_token") if name in state)
    return state["pos_embed"].shape[1] - grid[0] * grid[1] in (0, prefix)


def _looks_like_path(name: str) -> bool:
    return name.endswith(FILE_SUFFIXES) or name.startswith(("/", "./", "../", "~"))


def _refuse_for_timm(name: str, options: NetworkOptions) -> None:
    _refuse_udi_norm(name, options)
    if options.native_grid is not None:
        raise RequestError(f"--network.grid is for the position table of a checkpoint file; '{name}' says its own")


def _refuse_udi_norm(name: str, options: NetworkOptions) -> None:
    if options.patch_norm == "udi_norm1":
        raise RequestError(f"--network.patch-norm udi_norm1 needs a UDI checkpoint file; '{name}' holds no such norm")


def _udi_norm(name: str, converted: Converted) -> nn.LayerNorm:
    if converted.udi_norm is None:
        raise RequestError(f"--network.patch-norm udi_norm1 needs a UDI checkpoint file; '{name}' holds no such norm")
    weight, bias = converted.udi_norm
    norm = nn.LayerNorm(len(weight), eps=1e-6)
    norm.load_state_dict({"weight": weight, "bias": bias})
    return norm
