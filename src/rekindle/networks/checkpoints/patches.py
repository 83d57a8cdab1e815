# SPDX-License-Identifier: Apache-2.0
"""The patch of a network, read off its name or files without building it and without a connection."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from rekindle.networks.checkpoints.architecture import is_grammar, parse_arch
from rekindle.networks.checkpoints.conversion import ANCHORS
from rekindle.networks.checkpoints.facts import CONFIG, patch_in_config
from rekindle.networks.checkpoints.folders import is_model_folder, model_folder
from rekindle.networks.checkpoints.named import HUB
from rekindle.networks.checkpoints.reading import read_checkpoint


def patch_of(name: str) -> int | None:
    """Return the side of a patch in px of what `create_backbone` takes; None if that needs a download.

    Raises: RequestError for an architecture or a file that cannot be read.
    """
    if is_grammar(name):
        return parse_arch(name).patch
    path = Path(name).expanduser()
    if is_model_folder(path):
        return patch_in_config(model_folder(path)) or _in_name(str(path))
    if path.is_file():
        tensors = read_checkpoint(path).tensors
        kernels = {tensors[n].shape[-1] for n in tensors for a in ANCHORS if n == a or n.endswith(f".{a}")}
        return kernels.pop() if len(kernels) == 1 else None
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        try:
            cached = try_to_load_from_cache(repository, CONFIG, revision=revision or None)
        except HFValidationError:
            return None  # loading it says how such names are written
        return patch_in_config(Path(cached).parent) if isinstance(cached, str) else _in_name(name)
    return _in_name(name)


def _in_name(name: str) -> int | None:
    """What timm's names of plain vision transformers say."""
    found = re.search(r"_patch(\d+)", name)
    return None if found is None else int(found[1])
