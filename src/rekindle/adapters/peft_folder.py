# SPDX-License-Identifier: Apache-2.0
"""The folder of a LoRA that Hugging Face's `peft` saved: what it says of itself, before any tensor is read. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rekindle.adapters.options import LORA_MAPS, AdapterOptions, LoraTarget
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import checked
from rekindle.core.text_files import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_PLAIN: dict[str, tuple[object, ...]] = {
    "use_rslora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
"""Keys of PEFT's configuration that change what is computed, with the values that mean plain LoRA."""
_BASE_STAYS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights`, beside True and False, that leave the base as it is. The others (pissa, olora, corda, loftq,
lora_ga, ...) take from it what the first updates hold, each time that PEFT loads them."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class PeftFolder:
    """What a folder of PEFT holds.

    Attributes:
        path: the folder.
        options: of our adapters that do the same.
        base: PEFT's `base_model_name_or_path`, "" where it names none.
        names: of its tensors.
    """

    path: Path
    options: AdapterOptions
    base: str
    names: tuple[str, ...]

    def base_model(self) -> str:
        """The base as a MODEL: a path as it stands or seen from the folder, else a name, `owner/name` of the hub.

        Raises: RequestError if the folder names no base.
        """
        if not self.base:
            raise RequestError(
                f"{self.path / CONFIG}: base_model_name_or_path is empty, so the base is not known; put its MODEL there (a timm "
                'name, hf-hub:owner/name, a file), or give it: rekindle.load(..., base="...")'
            )
        for place in (Path(self.base).expanduser(), self.path / self.base):
            if place.exists():
                return str(place)
        is_on_hub = _HUB_NAME.fullmatch(self.base) and Path(self.base).suffix not in (".safetensors", ".pth", ".pt")
        return f"hf-hub:{self.base}" if is_on_hub else self.base


def is_peft_folder(path: Path) -> bool:
    """Tell whether a folder is one that PEFT saved; a run's model.json beside such files says more than they do."""
    return (path / CONFIG).is_file() and not (path / "model.json").is_file()


def read_folder(path: Path) -> PeftFolder:
    """Read what a folder of PEFT says of itself.

    Raises: RequestError for a file that is missing or damaged, and for what is not plain LoRA on a vision transformer.
    """
    config, names = _read_config(path / CONFIG), _tensor_names(path)
    changed = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names}
    targets: list[LoraTarget] = [
        t for t, maps in LORA_MAPS.items() if any(n.endswith(f".{m}") for n in changed for m in maps)
    ]
    if not targets:
        raise RequestError(
            f"{path / TENSORS} updates none of the maps of a vision transformer's blocks, by timm's names "
            f"({', '.join(maps[0] for maps in LORA_MAPS.values())}); it has {names[0] if names else 'no tensors'}"
        )
    asked = {"kind": "lora", "rank": config["r"], "lora_alpha": config["lora_alpha"], "lora_targets": tuple(targets)}
    options = checked(AdapterOptions, asked, str(path / CONFIG))
    return PeftFolder(path, options, str(config.get("base_model_name_or_path") or ""), names)


def _tensor_names(folder: Path) -> tuple[str, ...]:
    path = folder / TENSORS
    try:
        with safe_open(path, framework="np") as file:
            return tuple(file.keys())
    except (OSError, SafetensorError) as error:
        mend = "restore it from a copy"
        if (folder / "adapter_model.bin").is_file():
            mend = "save it again with safe_serialization=True: adapter_model.bin is a pickle"
        raise RequestError(f"{path} is missing or damaged ({error}); {mend}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
        kind, _, _ = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} cannot be read ({error!r}); give the folder of a LoRA that PEFT saved") from error
    if kind != "LORA":
        raise RequestError(f"{path}: peft_type = {kind} is not supported; only LORA is")
    for name, plain in _PLAIN.items():
        if name in config and config[name] not in plain:
            raise RequestError(
                f"{path}: {name} = {config[name]!r} is not supported; merge it with PEFT (merge_and_unload) and give the result "
                f"as a checkpoint, or train with {name} = {plain[0]!r}"
            )
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool | None) and str(start).lower() not in _BASE_STAYS:
        raise RequestError(
            f"{path}: init_lora_weights = {start!r} changes the base when PEFT loads it, so these updates are of another base "
            "than the one that is named; merge them with PEFT (merge_and_unload) and give the result as a checkpoint, or save "
            "them with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of them"
        )
    return dict(config)
