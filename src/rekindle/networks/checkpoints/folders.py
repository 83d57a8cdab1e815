# SPDX-License-Identifier: Apache-2.0
"""Folders that transformers or timm wrote, and huggingface_hub's cache: weights in one file or many, and facts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import read_json
from rekindle.networks.checkpoints.facts import CONFIG
from rekindle.networks.checkpoints.reading import CheckpointFile, read_checkpoint

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of whole files, the first that is there is read; `NAME.index.json` lists the parts of one that was cut."""
STANDARD_STEMS = ("model", "pytorch_model", "open_clip_model")


def is_model_folder(path: Path) -> bool:
    """Whether a folder is another program's model (it has config.json), or a repository in huggingface_hub's cache."""
    has_own = (path / "model.json").is_file() or (path / "adapter_config.json").is_file()
    return not has_own and ((path / CONFIG).is_file() or (path / "snapshots").is_dir())


def model_folder(path: Path) -> Path:
    """Return the folder that holds config.json: itself, or of the hub's cache the snapshot that `main` names, or the only one.

    Raises: RequestError if the cache holds several and does not say which.
    """
    snapshots = path / "snapshots"
    if (path / CONFIG).is_file() or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    found = sorted(entry for entry in snapshots.iterdir() if (entry / CONFIG).is_file())
    if main.is_file():
        named = snapshots / main.read_text(encoding="utf-8").strip()
        found = [entry for entry in found if entry == named] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise RequestError(f"{path} holds no snapshot with {CONFIG}; download the model again")
    raise RequestError(f"{path} holds several snapshots; give one of them, as in {found[0]}")


def read_model_folder(folder: Path, key: str | None = None) -> CheckpointFile:
    """Read the weights of a folder: model.safetensors or pytorch_model.bin, or the parts that their index names.

    Raises: RequestError if there are none, or a part is missing or lies elsewhere.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_checkpoint(folder / name, key)
        if (folder / f"{name}.index.json").is_file():
            return _read_parts(folder / f"{name}.index.json")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    hint = f"; it has {', '.join(others[:3])}: give that file" if others else "; download the weights too"
    raise RequestError(f"{folder} has {CONFIG} and neither {' nor '.join(WEIGHTS)}{hint}")


def stands_in_model_folder(path: Path) -> bool:
    """Whether config.json beside a weights file is about it: the file has a name that such folders give."""
    stem = path.name.split(".")[0].split("-000")[0]
    return stem in STANDARD_STEMS and is_model_folder(path.parent)


def parts_of(index: Path) -> list[str]:
    """Return the names of the files that an index joins.

    Raises: RequestError for an index that is damaged or names a file outside of its folder.
    """
    try:
        content = read_json(index)
        parts = content["weight_map"]
        if not isinstance(parts, Mapping) or not parts:
            raise ValueError("its weight_map names no tensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{index} cannot be read ({error!r}); restore it from a copy") from error
    names = sorted({str(part) for part in parts.values()})
    for name in names:
        if Path(name).name != name:
            raise RequestError(f"{index} names a part outside of its folder ({name}); its parts lie beside it")
    return names


def _read_parts(index: Path) -> CheckpointFile:
    tensors: dict[str, Tensor] = {}
    for name in parts_of(index):
        if not (index.parent / name).is_file():
            raise RequestError(f"{index} names {name}, which is not there; download all parts of the weights")
        tensors |= read_checkpoint(index.parent / name).tensors
    return CheckpointFile(tensors)
