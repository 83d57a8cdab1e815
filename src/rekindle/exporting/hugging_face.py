# SPDX-License-Identifier: Apache-2.0
"""transformers: its own model class where it has one, else a small class that imports Rekindle."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rekindle.core.errors import RekindleError
from rekindle.exporting.hf_names import to_transformers
from rekindle.exporting.needed import needed
from rekindle.exporting.parity import Parity, check_parity, native_size, other_size
from rekindle.exporting.plain import Obstacle, as_plain
from rekindle.exporting.source import Exported, Source
from rekindle.exporting.timm_model import split_tokens
from rekindle.exporting.whole import public_identity, whole_tensors
from rekindle.networks.backbone import Backbone
from rekindle.networks.tokens import Tokens

CODE = "modeling_rekindle.py"


def write(source: Source, folder: Path) -> Exported:
    """Write config.json, model.safetensors and preprocessor_config.json, and load them with transformers.

    Raises: RequestError if transformers is not installed; RekindleError if the features differ.
    """
    needed("transformers", "--format hf")
    _write_json(folder / "preprocessor_config.json", _preprocessor(source.backbone))
    try:
        plain = as_plain(source.backbone)
        config, tensors = to_transformers(plain)
    except Obstacle as obstacle:
        return _write_own_class(source, folder, str(obstacle))
    _write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return _check_native(source, plain, config, folder)


def _check_native(source: Source, plain: Backbone, config: dict[str, Any], folder: Path) -> Exported:
    side, other, is_vit = native_size(plain), other_size(plain), config["model_type"] == "vit"
    model = _load(importlib.import_module("transformers").AutoModel, folder, **_no_pooler(is_vit))
    parity = _checked(source.backbone, model, resize={"interpolate_pos_encoding": True} if is_vit else {})
    kind = config["architectures"][0]
    usage = (
        "from transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("THIS_FOLDER"{", add_pooling_layer=False" if is_vit else ""})  # {kind}\n'
        "tokens = model(pixel_values=pixels).last_hidden_state  # [images, tokens, width]: class, registers, patches\n"
    )
    notes = [f"`last_hidden_state` is after the final norm. The class is transformers' own {kind}."]
    if is_vit:
        notes.append(
            "Without add_pooling_layer=False transformers adds a pooler with random weights, which is not ours."
        )
    if not plain.is_rotary:
        argument = " (pass interpolate_pos_encoding=True)" if is_vit else ""
        notes.append(
            f"The parity holds at {side} x {side} px. At other sizes{argument} transformers resizes positions with its own "
            f"rule; this model was trained with the rule `{plain.pos_interp}`. At {other[0]} x {other[1]} px the largest "
            f"difference is {parity.elsewhere[other]:.1e}."
        )
    return Exported(parity, "transformers", usage, tuple(notes))


def _write_own_class(source: Source, folder: Path, obstacle: str) -> Exported:
    backbone = source.backbone
    config = {
        "model_type": "rekindle",
        "architectures": ["RekindleModel"],
        "auto_map": {
            "AutoConfig": "modeling_rekindle.RekindleConfig",
            "AutoModel": "modeling_rekindle.RekindleModel",
        },
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.num_heads,
        "patch_size": backbone.patch_size,
        "image_size": native_size(backbone),
        "identity": public_identity(backbone),
        "adapter": None if source.adapter is None else source.adapter.model_dump(mode="json"),
    }
    _write_json(folder / "config.json", config)
    tensors = {f"backbone.{name}": tensor for name, tensor in whole_tensors(backbone).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(__file__).with_name(CODE), folder / CODE)
    own_class = importlib.import_module("rekindle.exporting.modeling_rekindle").RekindleModel
    parity = _checked(backbone, _load(own_class, folder), everywhere=True)
    return Exported(
        parity=parity,
        library="transformers",
        usage=(
            "from transformers import AutoModel  # needs: pip install rekindle\n\n"
            'model = AutoModel.from_pretrained("THIS_FOLDER", trust_remote_code=True)\n'
            "tokens = model(pixel_values=pixels).last_hidden_state  # [images, tokens, width]: class, registers, patches\n"
        ),
        notes=(
            f"transformers has no class of its own for this model: {obstacle}. The folder brings a "
            f"short {CODE}, which imports rekindle; trust_remote_code=True lets transformers run it.",
            f"Height and width may be any multiples of {backbone.patch_size}.",
        ),
        tags=("custom_code",),
    )


def _checked(
    original: Backbone, model: Any, *, resize: dict[str, bool] | None = None, everywhere: bool = False
) -> Parity:
    side, other = native_size(original), other_size(original)

    def forward(pixels: Tensor) -> Tokens:
        is_native = tuple(pixels.shape[-2:]) == (side, side)
        sequence = model(pixel_values=pixels, **({} if is_native else resize or {})).last_hidden_state
        if original.mean_as_cls:
            tokens = split_tokens(sequence[:, 1:], original, pixels)
            return Tokens(sequence[:, 0], tokens.registers, tokens.patches)
        return split_tokens(sequence, original, pixels)

    if everywhere or original.is_rotary:
        return check_parity(original, forward, [(2, side, side), (1, *other)])
    return check_parity(original, forward, [(2, side, side)], elsewhere=[other])


def _load(kind: Any, folder: Path, **arguments: Any) -> Any:
    with _no_bars():
        model, report = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True, **arguments)
    wrong = {what: sorted(map(str, report[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    for what, names in wrong.items():
        if names:
            raise RekindleError(
                f"transformers reports {what.replace('_', ' ')} ({', '.join(names[:3])}); nothing was kept. Please report it"
            )
    return model.eval()


def _no_pooler(is_vit: bool) -> dict[str, bool]:
    return {"add_pooling_layer": False} if is_vit else {}


@contextmanager
def _no_bars() -> Iterator[None]:
    """Progress bars of transformers, off for the few files here."""
    settings = importlib.import_module("transformers.utils.logging")
    was_on = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            settings.enable_progress_bar()


def _preprocessor(backbone: Backbone) -> dict[str, Any]:
    side = native_size(backbone)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
