# SPDX-License-Identifier: Apache-2.0
"""The model of a run: what training changed, and where the base that it stands on comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rekindle.adapters.attach import attach
from rekindle.adapters.options import AdapterOptions, Train
from rekindle.adapters.peft_folder import is_peft_folder, read_folder
from rekindle.adapters.peft_format import read_peft
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import write_atomically
from rekindle.core.option_trees import checked
from rekindle.core.rng import seeded_default
from rekindle.core.text_files import read_json
from rekindle.networks.backbone import Backbone
from rekindle.networks.checkpoints.create import FILE_SUFFIXES, add_register, backbone_from_description, create_backbone
from rekindle.networks.checkpoints.folders import is_model_folder, read_model_folder
from rekindle.networks.checkpoints.patches import patch_of
from rekindle.networks.checkpoints.tensors import require_finite, tensors_hash
from rekindle.networks.checkpoints.wrapping import told
from rekindle.networks.options import NetworkOptions

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = 1


@dataclass(frozen=True)
class Lineage:
    """What a saved model says of itself.

    Attributes:
        base: the MODEL that training started from (made absolute if it is a file or folder).
        base_hash: content hash of that model's tensors.
        base_licence: licence of its weights, where known.
        train: what was trained.
        adapter: the adapter's options, None without adapters.
        network: how the base was read.
        method: the method's name.
        steps: optimizer steps done.
        chosen: what chose the step, where labelled data did (`rekindle.measuring.choosing.Chosen`).

    """

    base: str
    base_hash: str
    base_licence: str | None
    train: Train
    adapter: AdapterOptions | None
    network: NetworkOptions
    method: str
    steps: int
    chosen: Mapping[str, Any] | None = None


def save_model(
    folder: Path, backbone: Backbone, trained: tuple[str, ...], lineage: Lineage, *, with_base: bool = False
) -> None:
    """Write model.safetensors and then model.json, each atomically.

    With adapters the file holds the trained tensors alone; with `all` or `norm`, or `with_base`, it holds the whole network, so
    that it needs no base.
    """
    state = backbone.state_dict()
    is_whole = with_base or lineage.adapter is None
    kept = {n: t.detach().cpu().contiguous() for n, t in state.items() if is_whole or n in trained}
    description = {
        "format": FORMAT,
        "is_whole": is_whole,
        "identity": backbone.identity.to_dict(),
        "weights_hash": tensors_hash(kept),
        "model_hash": tensors_hash(state),
        "base": {"name": lineage.base, "sha256": lineage.base_hash, "licence": lineage.base_licence},
        "train": lineage.train,
        "adapter": None if lineage.adapter is None else lineage.adapter.model_dump(mode="json"),
        "network": lineage.network.model_dump(mode="json"),
        "method": lineage.method,
        "steps": lineage.steps,
    }
    if lineage.chosen is not None:
        description["chosen"] = dict(lineage.chosen)
    write_atomically(folder / WEIGHTS, lambda stream: stream.write(save(kept)))
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(folder / DESCRIPTION, lambda stream: stream.write(text.encode()))


def copy_model(source: Path, target: Path) -> None:
    """Copy the model of one folder into another, weights first, each file atomically."""
    weights, description = (source / WEIGHTS).read_bytes(), (source / DESCRIPTION).read_bytes()
    write_atomically(target / WEIGHTS, lambda stream: stream.write(weights))
    write_atomically(target / DESCRIPTION, lambda stream: stream.write(description))


def load_backbone(
    name: str | Path,
    network: NetworkOptions | None = None,
    *,
    init: str = "pretrained",
    seed: int = 0,
    drop_path: float = 0.0,
    base: str | None = None,
) -> tuple[Backbone, str]:
    """Return any MODEL as a backbone, and a line on how its tensors matched and which facts beside them are used.

    Args:
        name: a run folder, a folder that PEFT, transformers or timm saved, a checkpoint file, `hf-hub:owner/name`, a timm name,
            or an architecture with init="random".
        network: how to read it, or the base under PEFT's updates; of a run folder, which knows, `add_register` alone counts.
        base: where the base of a folder lies now, if it has moved.
    Raises: RequestError for what is not there, not finished or does not match; RekindleError if a hub cannot be reached.

    """
    network = network or NetworkOptions()
    path = Path(name).expanduser()
    own = _own_class(path)
    if own is not None and init == "pretrained":
        return _load_own_class(path, own, drop_path=drop_path)
    if path.is_dir() and not is_model_folder(path):
        if init == "random":
            raise RequestError(f"{path} is a run with weights; --init random needs a timm name or an architecture")
        if network.add_register:
            _refuse_adapters(path)
        if is_peft_folder(path):
            return _load_peft(path, network, drop_path=drop_path, base=base)
        backbone, message = _load_run(path, drop_path=drop_path, base=base)
        if network.add_register:
            with seeded_default(0, "register"):
                backbone = add_register(backbone, str(path), drop_path=drop_path)
        return backbone, message
    backbone, report = create_backbone(
        str(name),
        network,
        init="random" if init == "random" else "pretrained",
        seed=seed if init == "random" else 0,  # what a checkpoint leaves out must come out alike at every load
        drop_path=drop_path,
    )
    return backbone, f"{name}: random weights" if report is None else f"{name}: {report}; {told(backbone)}"


def patch_of_model(name: str | Path) -> int | None:
    """Side of a patch in px of any MODEL; None if that needs a download. Raises RequestError for what cannot be read."""
    path = Path(name).expanduser()
    if is_peft_folder(path):
        return patch_of_model(read_folder(path).base_model())
    if not path.is_dir() or is_model_folder(path):
        return patch_of(str(name))
    network = read_description(path)["identity"]["arch"]["network"]
    return patch_of(str(network["timm_name"])) if network["family"] == "timm" else int(network["patch"])


def read_description(folder: Path) -> dict[str, Any]:
    """Read model.json of a run. Raises RequestError if the folder holds no finished run."""
    path = folder / DESCRIPTION
    if not path.exists():
        what = (
            "is a run that has not finished (continue it with --resume)"
            if (folder / "config.yaml").exists()
            else "holds neither model.json (a run) nor config.json (transformers, timm) nor adapter_config.json (PEFT)"
        )
        files = sorted(p for p in folder.iterdir() if p.suffix in FILE_SUFFIXES) if folder.is_dir() else []
        whole = [p for p in files if p.stem != "adapter_model"]  # that one is nothing without its configuration
        mend = f"give the file: {whole[0]}" if whole else "give a finished run, a folder of those, a file or a name"
        raise RequestError(f"{folder} {what}; {mend}")
    try:
        description = read_json(path)
        if not isinstance(description, dict) or description["format"] != FORMAT:
            raise ValueError(f"format {description.get('format')!r} is not known here")
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise RequestError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    return description


def recorded_adapters(folder: Path) -> AdapterOptions | None:
    """Return the options of the adapters that a run folder, or one that PEFT saved, says it has; None for none."""
    if is_peft_folder(folder):
        return read_folder(folder).options
    description = read_description(folder)
    return None if description["adapter"] is None else _adapter_options(folder, description)


def _load_run(folder: Path, *, drop_path: float, base: str | None) -> tuple[Backbone, str]:
    description = read_description(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{folder / WEIGHTS} is missing or damaged ({error}); restore it from a copy") from error
    if tensors_hash(tensors) != description["weights_hash"]:
        raise RequestError(f"{folder / WEIGHTS} does not match the hash in {DESCRIPTION}; restore both from one copy")
    require_finite(tensors, str(folder))
    if description["is_whole"]:
        backbone = backbone_from_description(description["identity"], drop_path=drop_path)
        if description["adapter"] is not None:  # an export holds base and adapters in one file
            attach(backbone, _adapter_options(folder, description), train="adapters")
        backbone.load_state_dict(tensors, strict=True)
        return backbone, f"{folder}: matched {len(tensors)} of {len(tensors)} tensors"
    backbone = _load_base(folder, description["base"], description["network"], drop_path, base)
    attach(backbone, _adapter_options(folder, description), train="adapters")
    result = backbone.load_state_dict(tensors, strict=False)
    absent = [n for n in result.missing_keys if ".adapter." in n]
    if absent or result.unexpected_keys:
        raise RequestError(
            f"{folder}: its adapters do not fit its base (first: {(absent + result.unexpected_keys)[0]})"
        )
    return (
        backbone,
        f"{folder}: matched {len(tensors)} of {len(tensors)} trained tensors, base {description['base']['name']}",
    )


def _own_class(folder: Path) -> dict[str, Any] | None:
    """config.json of a folder that `rekindle export --format hf` wrote around our own class, else None."""
    path = folder / "config.json"
    try:
        config = read_json(path) if path.is_file() and is_model_folder(folder) else {}
    except (OSError, ValueError):
        return None  # reading it as another program's folder says what is wrong
    return config if isinstance(config, dict) and config.get("model_type") == "rekindle" else None


def _load_own_class(folder: Path, config: Mapping[str, Any], *, drop_path: float) -> tuple[Backbone, str]:
    tensors = {name.removeprefix("backbone."): t for name, t in read_model_folder(folder).tensors.items()}
    require_finite(tensors, str(folder))
    try:
        backbone = backbone_from_description(config["identity"], drop_path=drop_path)
        if config["adapter"] is not None:
            attach(
                backbone,
                checked(AdapterOptions, config["adapter"], f"{folder / 'config.json'}: adapter"),
                train="adapters",
            )
        backbone.load_state_dict(tensors, strict=True)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"{folder}: config.json and weights do not fit ({reason}); export the model again"
        ) from error
    return backbone, f"{folder}: matched {len(tensors)} of {len(tensors)} tensors; {told(backbone)}"


def _adapter_options(folder: Path, description: Mapping[str, Any]) -> AdapterOptions:
    return checked(AdapterOptions, description["adapter"], f"{folder / DESCRIPTION}: adapter")


def _load_peft(folder: Path, network: NetworkOptions, *, drop_path: float, base: str | None) -> tuple[Backbone, str]:
    stored = read_folder(folder)
    name = base or stored.base_model()
    try:
        backbone, _ = load_backbone(name, network, drop_path=drop_path)
    except RekindleError as error:
        raise type(error)(f"{folder} stands on the base {name}, which could not be loaded: {error}") from error
    read_peft(folder, backbone)
    count = len(stored.names)
    return backbone, f"{folder}: matched {count} of {count} tensors of LoRA (rank {stored.options.rank}), base {name}"


def _refuse_adapters(folder: Path) -> None:
    if is_peft_folder(folder) or read_description(folder)["adapter"] is not None:
        raise RequestError(
            f"--network.add-register: {folder} has adapters, which learned among tokens without a register; start from its "
            "base, or from a run with train=all"
        )


def _load_base(
    folder: Path, record: Mapping[str, Any], network: Mapping[str, Any], drop_path: float, base: str | None
) -> Backbone:
    name = base or str(record["name"])
    try:
        backbone, _ = load_backbone(name, NetworkOptions.model_validate(network), drop_path=drop_path)
    except RekindleError as error:
        raise type(error)(f"{folder} stands on the base {name}, which could not be loaded: {error}") from error
    found = tensors_hash(backbone.state_dict())
    if found != record["sha256"]:
        raise RequestError(
            f"{folder} was trained on a base with hash {record['sha256'][:12]}, and {name} now has {found[:12]}; "
            "give the base it was trained on"
        )
    return backbone


def model_hash(backbone: torch.nn.Module) -> str:
    """Content hash of all tensors of a model."""
    return tensors_hash(backbone.state_dict())
