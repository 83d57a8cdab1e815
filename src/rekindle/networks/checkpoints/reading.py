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


@dataclass(frozen=True)
class CheckpointFile:
    """The tensors of one entry of a file.

    Attributes:
        tensors: by the file's own names.
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
        key: entry to read; None takes the first of `ENTRIES` that is there, else the file itself.

    Raises:
        RequestError: if the file is missing, damaged, would run code, or has no such entry.

    """
    if not path.is_file():
        raise RequestError(f"checkpoint file {path} does not exist; check the path (relative to {Path.cwd()})")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise RequestError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return _pick(path, content, key)


def _read_safetensors(path: Path) -> CheckpointFile:
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
    return CheckpointFile(tensors, description=description)


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
        raise RequestError(
            f"{path} was refused: it asks to run {refused[1].rstrip('.')}, and a checkpoint's code is "
            "never run. If you trust the file, convert it where you do: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], "
            "'model.safetensors')"
        ) from error
    return content


def _pick(path: Path, content: Mapping[str, object], key: str | None) -> CheckpointFile:
    entries = {str(name): value for name, value in content.items()}
    if key is not None and key not in entries and not _names_an_encoder(entries, key):
        raise RequestError(
            f"{path} has no entry '{key}' (--network.checkpoint-key); it has {', '.join(list(entries)[:12])}"
        )
    nested = [name for name in ENTRIES if isinstance(entries.get(name), Mapping)]
    chosen = key if key in entries else next(iter(nested), None)
    if chosen is None:
        return CheckpointFile({name: v for name, v in entries.items() if isinstance(v, Tensor)})
    inner = entries[chosen]
    if not isinstance(inner, Mapping):
        raise RequestError(f"{path}: entry '{chosen}' holds a {type(inner).__name__}, not a dictionary of tensors")
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    return CheckpointFile(tensors, chosen, tuple(name for name in entries if name != chosen))


def _names_an_encoder(entries: Mapping[str, object], key: str) -> bool:
    """MoCo-v3 keeps both networks in one entry: `key` may name one of them."""
    inner = entries.get("state_dict")
    return isinstance(inner, Mapping) and any(MOCO_ENCODERS.get(key, key) in str(name).split(".") for name in inner)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
