# SPDX-License-Identifier: Apache-2.0
"""Models by name: timm's, and repositories of the hub, online or from its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from rekindle.core.errors import RekindleError, RequestError, unknown_name
from rekindle.networks.backbone import Backbone, check_plain_vit
from rekindle.networks.checkpoints.architecture import Architecture, bare
from rekindle.networks.checkpoints.facts import CONFIG, PREPROCESSORS, Facts, Pixels, facts_of_folder, pixels_for
from rekindle.networks.checkpoints.folders import WEIGHTS, parts_of
from rekindle.networks.checkpoints.tensors import MatchReport
from rekindle.networks.checkpoints.wrapping import wrap
from rekindle.networks.options import NetworkOptions

HUB = "hf-hub:"


def from_timm(
    name: str, options: NetworkOptions, drop_path: float, init: Literal["pretrained", "random"]
) -> tuple[Backbone, MatchReport | None]:
    """Return timm's model of this name (or `hf-hub:` repository of timm's), with the constants of its configuration.

    Raises: RequestError for a name that timm does not know or a network that is no plain ViT; RekindleError without a connection.
    """
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
    vit, arch = bare(vit), timm_architecture(vit, config["architecture"])
    own = Pixels(tuple(config["mean"]), tuple(config["std"]), f"timm's {name}")
    backbone = wrap(
        vit,
        arch,
        options,
        pixels_for(options, Facts(pixels=own), None),
        name=name,
        source="random" if init == "random" else ("hub" if name.startswith(HUB) else "timm"),
        licence=config.get("license") if init == "pretrained" else None,
    )
    # timm loads strictly: it would have raised above if a tensor had been missing
    return backbone, MatchReport(matched=tuple(vit.state_dict())) if init == "pretrained" else None


def timm_architecture(vit: Any, name: str) -> Architecture:
    """Describe a model that timm made under this name."""
    height, width = vit.patch_embed.img_size
    return Architecture(
        family="timm",
        timm_name=name,
        img=height,
        img_width=0 if width == height else width,
        registers=0 if vit.reg_token is None else vit.reg_token.shape[1],
        no_embed_class=vit.no_embed_class,
    )


def hub_folder(name: str) -> Path:
    """Return the folder of a repository of the hub, with what loading needs; without a connection, from the cache.

    Args: name, `hf-hub:owner/name`, with `@revision` behind it for another one than `main`.
    Raises: RequestError for what is not there; RekindleError if the hub cannot be reached and the cache has no copy.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    folder = Path(_download(name, repository, CONFIG, revision)).parent
    if facts_of_folder(folder).is_timm:
        return folder  # timm gets the weights itself
    for preprocessor in PREPROCESSORS:
        if _download_if_there(name, repository, preprocessor, revision):
            break
    for weights in WEIGHTS:
        if _download_if_there(name, repository, weights, revision):
            return folder
        index = f"{weights}.index.json"
        if _download_if_there(name, repository, index, revision):
            for part in parts_of(folder / index):
                _download(name, repository, part, revision)
            return folder
    _download(name, repository, WEIGHTS[0], revision)  # says why it cannot be had
    return folder


def unknown_model(name: str, kind: str = "model") -> RequestError:
    """Return the error for a name that is neither a file nor a model of timm, with timm's nearest name."""
    names = {*timm.list_models("*vit*", pretrained=True), *timm.list_models("*vit*")}
    text = str(unknown_name(kind, name, names)).partition("Known: ")[0]
    return RequestError(
        f"{text}No such file either. "
        "Use a timm name (`rekindle list backbones`), hf-hub:owner/name, a checkpoint file, or a folder of transformers"
    )


def _download(name: str, repository: str, filename: str, revision: str) -> str:
    try:
        return hf_hub_download(repository, filename, revision=revision or None)
    except HFValidationError as error:
        raise RequestError(f"'{name}' is not a hub name; write hf-hub:owner/name") from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error


def _download_if_there(name: str, repository: str, filename: str, revision: str) -> bool:
    """Get a file that a repository may lack; without a connection, one that the cache lacks counts as lacking."""
    try:
        hf_hub_download(repository, filename, revision=revision or None)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return False
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error
    return True


def _unreachable(name: str, error: Exception) -> RekindleError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, RepositoryNotFoundError | EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return RequestError(f"'{name}' is not on the model hub, or needs an account with access: {reason}")
    return RekindleError(
        f"cannot get '{name}': the model hub could not be reached ({reason}). Connect and try again, "
        "or download the weights elsewhere and give the file or its folder (with config.json and preprocessor_config.json, which "
        "say what no tensor does): --backbone path/to/model.safetensors"
    )
