# SPDX-License-Identifier: Apache-2.0
"""Backbone creation from the name of a published model, a checkpoint file or an architecture; for any MODEL, `adapters.saved`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from rekindle.core.errors import RekindleError, RequestError, unknown_name
from rekindle.core.rng import derived_seed
from rekindle.core.text_files import read_json
from rekindle.networks.backbone import Backbone, BackboneIdentity, Triple, check_plain_vit
from rekindle.networks.checkpoints.architecture import (
    Architecture,
    bare,
    build_vit,
    infer_arch,
    is_grammar,
    parse_arch,
    sincos_rows,
)
from rekindle.networks.checkpoints.conversion import Converted, to_timm_names
from rekindle.networks.checkpoints.fixed_positions import fix_positions
from rekindle.networks.checkpoints.reading import CheckpointFile, read_checkpoint
from rekindle.networks.checkpoints.tensors import MatchReport, load_matching, require_complete, tensors_hash
from rekindle.networks.options import NetworkOptions
from rekindle.networks.position import PositionMode

HUB = "hf-hub:"
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
        name: a checkpoint file, `hf-hub:owner/name`, a timm name (`vit_small_patch16_224.dino`), or an
            architecture (`vit:width=128,depth=8,heads=4,patch=8,img=64`; random weights only).
        options: see `NetworkOptions`.
        init: `random` builds the architecture and draws its weights.
        seed: for random weights, and for tokens that a checkpoint does not bring along.
        drop_path: stochastic depth of the last block; None takes the option's.

    Raises:
        RequestError: for an unknown name, a missing file, a checkpoint that does not fit, or fixed positions beside one.
        RekindleError: if the model hub cannot be reached.

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
        return _random(name, parse_arch(name), options, rate), None
    path = Path(name).expanduser()
    if path.is_file() or _looks_like_path(name):
        return _from_file(name, read_checkpoint(path, options.checkpoint_key), options, rate, init)
    if name.startswith(HUB):
        return _from_hub(name, options, rate, init)
    return _from_timm(name, options, rate, init)


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
    return _wrap(
        vit,
        arch,
        backbone.pos_interp,
        name=backbone.identity.name,
        source=backbone.identity.source,
        licence=backbone.identity.licence,
        patch_norm=backbone.patch_norm,
        mean_as_cls=backbone.mean_as_cls,
        mean=backbone.mean,
        std=backbone.std,
        fresh=(*backbone.fresh, "vit.reg_token"),
    )


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


def _random(name: str, arch: Architecture, options: NetworkOptions, drop_path: float) -> Backbone:
    _refuse_udi_norm(name, options)
    return _wrap(build_vit(arch, drop_path=drop_path), arch, options.pos_interp, name=name, source="random")


def _from_file(
    name: str,
    file: CheckpointFile,
    options: NetworkOptions,
    drop_path: float,
    init: Literal["pretrained", "random"],
    *,
    heads: int | None = None,
    source: Literal["file", "hub"] = "file",
    licence: str | None = None,
) -> tuple[Backbone, MatchReport | None]:
    if file.description is not None and options.arch is None:
        return _from_own_file(name, file, options, drop_path, init)
    converted = to_timm_names(file, options.checkpoint_key)
    arch = _architecture(converted, options, heads)
    new_cls = converted.untrained_cls and options.flsl_cls == "new"
    if converted.untrained_cls:  # a fresh token needs no row: only the sum of token and row is ever seen
        arch = replace(arch, class_token=new_cls, no_embed_class=True)
    if init == "random":
        return _random(name, arch, options, drop_path), None
    vit = build_vit(arch, drop_path=drop_path)
    if new_cls:
        nn.init.trunc_normal_(vit.cls_token, std=0.02)
    norm = _udi_norm(name, converted) if options.patch_norm == "udi_norm1" else None
    fresh = ("cls_token",) if new_cls else ()
    report = load_matching(vit, converted.state, converted.ignored, fresh)
    if not options.allow_partial:
        require_complete(report, name)
    backbone = _wrap(
        vit,
        arch,
        options.pos_interp,
        name=name,
        source=source,
        licence=licence,
        patch_norm=norm,
        mean_as_cls=converted.untrained_cls and not new_cls,
        fresh=tuple(f"vit.{tensor}" for tensor in fresh),
    )
    return backbone, report


def _from_own_file(
    name: str,
    file: CheckpointFile,
    options: NetworkOptions,
    drop_path: float,
    init: Literal["pretrained", "random"],
) -> tuple[Backbone, MatchReport | None]:
    """Read what `write_checkpoint` wrote: the file describes itself, and nothing is guessed."""
    assert file.description is not None
    backbone = backbone_from_description(file.description, drop_path=drop_path)
    if "pos_interp" in options.model_fields_set:
        backbone.pos_interp = options.pos_interp
    report = None
    if init == "pretrained":
        report = load_matching(backbone, file.tensors)
        if not options.allow_partial:
            require_complete(report, name)
    backbone.identity = replace(
        backbone.identity,
        name=name,
        source="file" if init == "pretrained" else "random",
        sha256=tensors_hash(_hashed_tensors(backbone.vit, backbone.patch_norm)),
        arch=dict(backbone.identity.arch) | {"pos_interp": backbone.pos_interp},
    )
    return backbone, report


def _architecture(converted: Converted, options: NetworkOptions, heads: int | None) -> Architecture:
    if options.arch is None:
        return infer_arch(converted.state, heads=heads, layout=converted.layout)
    if is_grammar(options.arch):
        return parse_arch(options.arch)
    if not timm.is_model(options.arch.split(".")[0]):
        raise unknown_model(options.arch, "architecture (--network.arch)")
    vit: Any = timm.create_model(options.arch, pretrained=False, num_classes=0)
    check_plain_vit(vit)
    base = _timm_architecture(vit, options.arch.split(".")[0])
    told = infer_arch(converted.state, heads=vit.blocks[0].attn.num_heads, layout=converted.layout)
    if "pos_embed" not in converted.state:
        return base
    return replace(base, img=told.img, registers=told.registers, no_embed_class=told.no_embed_class)


def _from_hub(
    name: str, options: NetworkOptions, drop_path: float, init: Literal["pretrained", "random"]
) -> tuple[Backbone, MatchReport | None]:
    """Load from the hub: timm's repositories through timm, transformers' as a file."""
    repository = name.removeprefix(HUB)
    config = read_json(Path(_download(name, repository, "config.json")))
    if "architecture" in config:
        return _from_timm(name, options, drop_path, init)
    weights = Path(_download(name, repository, "model.safetensors"))
    heads = config.get("num_attention_heads")
    file = read_checkpoint(weights)
    return _from_file(name, file, options, drop_path, init, heads=heads, source="hub", licence=config.get("license"))


def _download(name: str, repository: str, filename: str) -> str:
    try:
        return hf_hub_download(repository, filename)
    except HFValidationError as error:
        raise RequestError(f"'{name}' is not a hub name; write hf-hub:owner/name") from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error


def _from_timm(
    name: str, options: NetworkOptions, drop_path: float, init: Literal["pretrained", "random"]
) -> tuple[Backbone, MatchReport | None]:
    _refuse_udi_norm(name, options)
    base = name.split(".")[0]
    if not name.startswith(HUB) and not timm.is_model(base):
        raise unknown_model(name)
    try:
        vit: Any = timm.create_model(
            name,
            pretrained=init == "pretrained",
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
        )
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error
    except TypeError as error:  # a convolutional network knows no dynamic_img_size
        raise RequestError(f"'{name}' is not a plain vision transformer ({error})") from error
    except (ValueError, RuntimeError) as error:
        known = [n for n in timm.list_models(pretrained=True) if n.split(".")[0] == base]
        raise RequestError(f"timm cannot load '{name}': {error} Weights of this model: {', '.join(known)}") from error
    check_plain_vit(vit)
    config = vit.pretrained_cfg
    vit, arch = bare(vit), _timm_architecture(vit, config["architecture"])
    backbone = _wrap(
        vit,
        arch,
        options.pos_interp,
        name=name,
        source="random" if init == "random" else ("hub" if name.startswith(HUB) else "timm"),
        licence=config.get("license") if init == "pretrained" else None,
        mean=config["mean"],
        std=config["std"],
    )
    # timm loads strictly: it would have raised above if a tensor had been missing
    return backbone, MatchReport(matched=tuple(vit.state_dict())) if init == "pretrained" else None


def _timm_architecture(vit: Any, name: str) -> Architecture:
    return Architecture(
        family="timm",
        timm_name=name,
        img=vit.patch_embed.img_size[0],
        registers=0 if vit.reg_token is None else vit.reg_token.shape[1],
        no_embed_class=vit.no_embed_class,
    )


def unknown_model(name: str, kind: str = "model") -> RequestError:
    """Return the error for a name that is neither a file nor a model of timm, with timm's nearest name."""
    names = {*timm.list_models("*vit*", pretrained=True), *timm.list_models("*vit*")}
    text = str(unknown_name(kind, name, names)).partition("Known: ")[0]
    return RequestError(
        f"{text}No such file either. "
        "Use a timm name (`rekindle list backbones`), hf-hub:owner/name, or a checkpoint file"
    )


def _unreachable(name: str, error: Exception) -> RekindleError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, RepositoryNotFoundError | EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return RequestError(f"'{name}' is not on the model hub, or needs an account with access: {reason}")
    return RekindleError(
        f"cannot get '{name}': the model hub could not be reached ({reason}). Connect and try again, "
        "or download the weights elsewhere and give the file: --backbone path/to/model.safetensors"
    )


def _looks_like_path(name: str) -> bool:
    return name.endswith(FILE_SUFFIXES) or name.startswith(("/", "./", "../", "~"))


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


def _wrap(
    vit: Any,
    arch: Architecture,
    pos_interp: PositionMode,
    *,
    name: str,
    source: Literal["timm", "file", "hub", "random"],
    licence: str | None = None,
    patch_norm: nn.Module | None = None,
    mean_as_cls: bool = False,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    fresh: tuple[str, ...] = (),
) -> Backbone:
    rows = 0 if vit.no_embed_class else vit.num_prefix_tokens
    fixed_positions = vit.pos_embed is not None and sincos_rows(vit.pos_embed.detach()[:, rows:])
    details = {
        "network": arch.to_dict(),
        "mean": list(mean),
        "std": list(std),
        "pos_interp": pos_interp,
        "patch_norm": patch_norm is not None,
        "mean_as_cls": mean_as_cls,
        "fixed_positions": fixed_positions,
    }
    return Backbone(
        vit,
        mean=cast(Triple, tuple(mean)),
        std=cast(Triple, tuple(std)),
        identity=BackboneIdentity(name, source, tensors_hash(_hashed_tensors(vit, patch_norm)), licence, details),
        pos_interp=pos_interp,
        fresh=fresh,
        patch_norm=patch_norm,
        mean_as_cls=mean_as_cls,
        fixed_positions=fixed_positions,
    )


def _hashed_tensors(vit: Any, patch_norm: nn.Module | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(vit.state_dict())
    if patch_norm is not None:
        tensors |= {f"patch_norm.{key}": value for key, value in patch_norm.state_dict().items()}
    return tensors
