# SPDX-License-Identifier: Apache-2.0
"""Checkpoint reading: named tensors from a file, without ever running code that it brings along."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.core.text_files import parse_json

ENTRIES = ("teacher", "student", "state_dict", "model", "model_state_dict", "module", "encoder")
OWN_KEY = "rekindle"
MOCO_ENCODERS = {"teacher": "momentum_encoder", "student": "base_encoder"}
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Words that DDP, torch.compile, FSDP, activation checkpointing and Fabric put into names, at any place."""
SHARDED = (
    "is one process's share of a sharded training (FSDP): its tensors are cut into flat pieces that only all shares together "
    "make whole. Give the whole teacher, which DINOv2 and DINOv3 write beside it: eval/training_*/teacher_checkpoint.pth"
)


@dataclass(frozen=True)
class CheckpointFile:
    """The tensors of one entry of a file.

    Attributes:
        tensors: by the file's own names, without the words of `WRAPPERS`.
        entry: the entry that was read; "" for a flat file.
        siblings: names of the file's other top-level entries.
        description: what our own files say about their architecture, else None.

    """

    tensors: Mapping[str, Tensor]
    entry: str = ""
    siblings: tuple[str, ...] = ()
    description: Mapping[str, object] | None = None


def read_checkpoint(path: Path, key: str | None = None) -> CheckpointFile:
    """Read a `.safetensors` file, or a pickle that holds nothing but data.

    Args:
        path: the file.
        key: entry to read, or a network inside an entry (`teacher`, `student.backbone`); None takes the first of `ENTRIES`
            that is there, else the file itself.

    Raises:
        RequestError: if the file is missing, damaged, would run code, or has no such entry.

    """
    if not path.is_file():
        raise RequestError(f"checkpoint file {path} does not exist; check the path (relative to {Path.cwd()})")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, key)
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise RequestError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return _pick(path, content, key)


def names_network(name: str, key: str) -> bool:
    """Whether the words of `key` (`teacher`, `student.backbone`) stand in a tensor's name, one after another."""
    return f".{key}." in f".{name}"


def unwrapped(name: str) -> str:
    """A tensor's name without what training put around modules."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _read_safetensors(path: Path, key: str | None) -> CheckpointFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    try:
        description = parse_json(metadata[OWN_KEY]) if OWN_KEY in metadata else None
    except ValueError as error:
        raise RequestError(f"{path}: its description cannot be read ({error}); restore it from a copy") from error
    if key is not None and not _names_an_encoder(tensors, key):
        raise _no_such_entry(path, tensors, key)
    return CheckpointFile(_cleaned(tensors), description=description)


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything: UnpicklingError, IndexError, MemoryError, ...
        refused = re.search(r"(?:GLOBAL|global|function|class)[:\s]+`?([A-Za-z_][\w.]*\.[\w.]+)", str(error))
        if refused is None:
            # torch's own sentence advises to read it with code allowed, which is no advice for a stranger's file
            why = "not plain tensors" if "Weights only load failed" in str(error) else _first_line(error)
            raise RequestError(f"{path} is not a PyTorch checkpoint, or is damaged: {why}") from error
        if "ShardedTensor" in str(error) or "DTensor" in str(error):
            raise RequestError(f"{path} {SHARDED}") from error
        raise RequestError(
            f"{path} was refused: it asks to run {refused[1].rstrip('.')}, and a checkpoint's code is "
            "never run. If you trust the file, convert it where you do: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], "
            "'model.safetensors')"
        ) from error
    return content


def _pick(path: Path, content: Mapping[str, object], key: str | None) -> CheckpointFile:
    entries = {str(name): value for name, value in content.items()}
    nested = [name for name in ENTRIES if isinstance(entries.get(name), Mapping)]
    if key is None or key in entries:
        chosen = key or next(iter(nested), None)
    else:
        chosen = next((name for name in nested if _names_an_encoder(entries[name], key)), None)
        if chosen is None and not _names_an_encoder(entries, key):
            raise _no_such_entry(path, entries, key)
    if chosen is None:
        return CheckpointFile(_whole(path, entries))
    inner = entries[chosen]
    if not isinstance(inner, Mapping):
        raise RequestError(f"{path}: entry '{chosen}' holds a {type(inner).__name__}, not a dictionary of tensors")
    tensors = _whole(path, inner)
    if not tensors and any(isinstance(value, Mapping) for value in inner.values()):
        found = _pick(path, inner, None if key == chosen else key)
        return CheckpointFile(found.tensors, f"{chosen}.{found.entry}", found.siblings)
    return CheckpointFile(tensors, chosen, tuple(name for name in entries if name != chosen))


def _whole(path: Path, entries: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of an entry. Raises RequestError for a share of a sharded training."""
    tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    if any(name.endswith("_flat_param") for name in tensors):
        raise RequestError(f"{path} {SHARDED}")
    return _cleaned(tensors)


def _cleaned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without wrappers in their names; with them where two would become one."""
    cleaned = {unwrapped(name): tensor for name, tensor in tensors.items()}
    return cleaned if len(cleaned) == len(tensors) else dict(tensors)


def _names_an_encoder(entries: object, key: str) -> bool:
    """Whether `key` names one of several networks in an entry: `teacher`, `student.backbone`, or MoCo-v3's encoders."""
    if not isinstance(entries, Mapping):
        return False
    words = {key, MOCO_ENCODERS.get(key, key)}
    return any(
        names_network(unwrapped(str(name)), word) or (isinstance(value, Mapping) and str(name) == key)
        for name, value in entries.items()
        for word in words
    )


def _no_such_entry(path: Path, entries: Mapping[str, object], key: str) -> RequestError:
    networks = {unwrapped(str(n)).split(".")[0] for e in entries.values() if isinstance(e, Mapping) for n in e}
    inside = sorted(n for n in networks & {"teacher", "student", *MOCO_ENCODERS.values()} if n not in entries)
    also = f"; inside: {', '.join(inside)}" if inside else ""
    return RequestError(
        f"{path} has no entry '{key}' (--network.checkpoint-key); it has {', '.join(list(entries)[:12])}{also}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
