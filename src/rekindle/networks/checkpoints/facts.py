# SPDX-License-Identifier: Apache-2.0
"""Facts that stand beside weights and are in no tensor: pixel constants, heads, epsilons, the grid of the positions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.networks.backbone import Triple
from rekindle.networks.options import NetworkOptions

CONFIG, PREPROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
EPS = {"vit": 1e-12, "deit": 1e-12, "vit_mae": 1e-12, "ijepa": 1e-12, "vit_msn": 1e-6, "dinov3_vit": 1e-5}
"""Epsilon of the layer norms where a config.json of transformers leaves it out; 1e-6 for the others."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Transformers' names of activations, in ours."""


SIZES = {"hidden_size": "width", "num_hidden_layers": "depth"}
"""Keys of a config.json of transformers -> the attribute of the architecture that the tensors say as well."""


@dataclass(frozen=True)
class Pixels:
    """Normalisation that a network expects of levels in [0, 1], and what says so."""

    mean: Triple
    std: Triple
    source: str

    def __str__(self) -> str:
        mean, std = (" ".join(f"{x:.4g}" for x in values) for values in (self.mean, self.std))
        return f"pixels: mean {mean}, deviation {std} ({self.source})"


@dataclass(frozen=True)
class Facts:
    """What was found beside the weights; None where nothing says it.

    Attributes:
        pixels: their normalisation.
        heads: of the attention.
        eps: of the layer norms.
        act: of the MLPs, by a name of `architecture.ACTIVATIONS`.
        grid: (gh, gw) of the position table.
        rope_theta: base of rotary frequencies.
        arch: a name of timm that says the architecture.
        is_timm: timm wrote them.
        licence: of the weights.
        sizes: numbers that tensors have too, by their key in config.json -> (attribute of the architecture, value).
    """

    pixels: Pixels | None = None
    heads: int | None = None
    eps: float | None = None
    act: str | None = None
    grid: tuple[int, int] | None = None
    rope_theta: float | None = None
    arch: str | None = None
    is_timm: bool = False
    licence: str | None = None
    sizes: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def facts_of_folder(folder: Path) -> Facts:
    """Read config.json and preprocessor_config.json of transformers' or timm's layout; nothing where they are not.

    Raises: RequestError for a file that is damaged or says what cannot be.
    """
    config = _json(folder / CONFIG)
    facts = _of_timm(config, folder / CONFIG) if "architecture" in config else _of_transformers(config, folder / CONFIG)
    for name in PREPROCESSORS:
        content = _json(folder / name)
        content = content.get("image_processor", content)
        if isinstance(content, Mapping) and "image_mean" in content:
            facts = replace(facts, pixels=_of_preprocessor(content, folder / name))
            break
    return facts


def patch_in_config(folder: Path) -> int | None:
    """The patch that config.json says; None where it does not (timm's says the name of the architecture)."""
    path = folder / CONFIG
    config = _json(path)
    patch = _pair(config.get("patch_size"), path, "patch_size")
    named = re.search(r"_patch(\d+)", str(config.get("architecture", "")))
    if patch is None and named is not None:
        return int(named[1])
    return None if patch is None else patch[0]


def pixels_for(options: NetworkOptions, facts: Facts, arch: str | None) -> Pixels:
    """Return the pixel constants: as asked for, else as the source says, else of timm's configuration `arch`, else assumed."""
    if options.pixel_mean is not None and options.pixel_std is not None:
        return Pixels(options.pixel_mean, options.pixel_std, "as asked for")
    if facts.pixels is not None:
        return facts.pixels
    why = "nothing beside the weights says them"
    if arch is not None and timm.is_model(arch.split(".")[0]):
        found = _of_timm_name(arch)
        if len(found) == 1:
            mean, std = found.pop()
            return Pixels(mean, std, f"timm's {arch}")
        why = f"timm has {arch} with several, so name one, as in {_tagged(arch)}"
    assumed = f"assumed, ImageNet's: {why}; --network.pixel-mean and --network.pixel-std state others"
    return Pixels(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, assumed)


def _of_timm_name(name: str) -> set[tuple[Triple, Triple]]:
    """The constants of a configuration, or of all configurations of an architecture without a tag."""
    names = [name] if "." in name else _configurations(name)
    found = [timm.models.get_pretrained_cfg(n) for n in names or [name]]
    return {(cast(Triple, tuple(c.mean)), cast(Triple, tuple(c.std))) for c in found if c is not None}


def _configurations(architecture: str) -> list[str]:
    return [n for n in timm.list_models(f"{architecture}.*", pretrained=True) if n.split(".")[0] == architecture]


def _tagged(architecture: str) -> str:
    return " or ".join(_configurations(architecture)[:2])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}); restore it from a copy") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds a {type(content).__name__}, and names with values are expected")
    return content


def _of_transformers(config: Mapping[str, Any], path: Path) -> Facts:
    kind = str(config.get("model_type", ""))
    if not kind:
        return Facts(licence=_text(config.get("license")))
    is_gated = bool(config.get("use_swiglu_ffn"))  # Dinov2's gated MLP has silu, whatever hidden_act says
    act = "silu" if is_gated else str(config.get("hidden_act", "gelu"))
    if act not in ACTIVATIONS:
        raise RequestError(f"{path}: hidden_act = {act} is not supported; known are {', '.join(sorted(ACTIVATIONS))}")
    patch = _pair(config.get("patch_size"), path, "patch_size")
    image = _pair(config.get("image_size"), path, "image_size")
    grid = None if patch is None or image is None else (image[0] // patch[0], image[1] // patch[1])
    sizes = {key: (attribute, _whole(config.get(key), path, key)) for key, attribute in SIZES.items()}
    return Facts(
        sizes={key: (attribute, size) for key, (attribute, size) in sizes.items() if size is not None},
        heads=_whole(config.get("num_attention_heads"), path, "num_attention_heads"),
        eps=_number(config.get("layer_norm_eps", EPS.get(kind, 1e-6)), path, "layer_norm_eps"),
        act=ACTIVATIONS[act],
        grid=grid,
        rope_theta=_number(config.get("rope_theta", 100.0), path, "rope_theta") if kind == "dinov3_vit" else None,
        licence=_text(config.get("license")),
    )


def _of_timm(config: Mapping[str, Any], path: Path) -> Facts:
    own = config.get("pretrained_cfg")
    own = own if isinstance(own, Mapping) else config
    given = config.get("model_args")
    arguments: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    name = str(config["architecture"])
    is_plain = not {"embed_dim", "depth", "num_heads", "patch_size"} & {*arguments}
    pixels = None
    if "mean" in own and "std" in own:
        mean, std = (_triple(own[key], path, key) for key in ("mean", "std"))
        pixels = Pixels(mean, std, path.name)
    return Facts(
        pixels=pixels,
        heads=_whole(arguments.get("num_heads"), path, "num_heads"),
        arch=name if is_plain and timm.is_model(name.split(".")[0]) else None,
        is_timm=True,
        licence=_text(own.get("license")),
    )


def _of_preprocessor(content: Mapping[str, Any], path: Path) -> Pixels:
    """The constants for levels in [0, 1]; the file's are for levels 0 to 255 times its factor."""
    if not content.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = (_triple(content.get(key), path, key) for key in ("image_mean", "image_std"))
    scale = 255.0
    if content.get("do_rescale", True):
        scale *= _number(content.get("rescale_factor", 1 / 255), path, "rescale_factor")
    if abs(scale - 1.0) > 1e-6:
        mean, std = (cast(Triple, tuple(x / scale for x in values)) for values in (mean, std))
    return Pixels(mean, std, path.name)


def _triple(value: object, path: Path, key: str) -> Triple:
    numbers = value if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3:
        raise RequestError(f"{path}: {key} = {value!r} must be three numbers, one for each channel")
    return cast(Triple, tuple(_number(x, path, key, at_least=0.0) for x in numbers))


def _number(value: object, path: Path, key: str, *, at_least: float = 1e-20) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < math.inf:
        raise RequestError(f"{path}: {key} = {value!r} must be a finite number of at least {at_least:g}")
    return float(value)


def _whole(value: object, path: Path, key: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{path}: {key} = {value!r} must be a whole number of at least 1")
    return value


def _pair(value: object, path: Path, key: str) -> tuple[int, int] | None:
    parts = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    height, width = (_whole(part, path, key) for part in parts)
    return None if height is None or width is None else (height, width)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
