# SPDX-License-Identifier: Apache-2.0
"""The projection head that a full checkpoint of DINO, iBOT, UDI or FLSL brings beside its backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rekindle.core.errors import RequestError
from rekindle.networks.checkpoints.reading import names_network, read_checkpoint
from rekindle.networks.parts.heads import DinoHead

NAME = re.compile(r"(?:^|\.)head\.(?:0\.)?(mlp\.\d+\.(?:weight|bias)|last_layer\.\S+)$")
"""Names of a head's tensors; UDI holds the same head three times, and the first is read."""
MODERN = {
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}


def load_stored_head(name: str, student: DinoHead, teacher: DinoHead) -> tuple[bool, str | None]:
    """Load both heads from the checkpoint file `name`, each from its own entry where there are two.

    Returns: whether the heads were loaded, and a line about it; (False, None) for what is no such file or holds no head.
    """
    path = Path(name).expanduser()
    if not path.is_file() or path.suffix == ".safetensors":
        return False, None
    found = {entry: _head_of(path, entry) for entry in ("student", "teacher")}
    states = {entry: state or found["teacher"] or found["student"] for entry, state in found.items()}
    if not states["teacher"]:
        return False, None
    for head, entry in ((student, "student"), (teacher, "teacher")):
        difference = _difference(head, states[entry])
        if difference is not None:
            return False, f"{name} brings a head, but {difference}: the head starts new"
    for head, entry in ((student, "student"), (teacher, "teacher")):
        head.load_state_dict(states[entry], strict=False)
    num_prototypes = len(states["teacher"]["last_layer.parametrizations.weight.original1"])
    return True, f"{name}: its head was loaded too (K = {num_prototypes})"


def _head_of(path: Path, entry: str) -> dict[str, Tensor]:
    try:
        tensors = read_checkpoint(path, entry).tensors
    except RequestError:  # no such entry, or a file that loading the backbone has judged already
        return {}
    other = {"student": "teacher", "teacher": "student"}[entry]  # where one entry holds both
    matches = ((NAME.search(name), t) for name, t in tensors.items() if not names_network(name, other))
    return {MODERN.get(m[1], m[1]): tensor for m, tensor in matches if m is not None}


def _difference(head: DinoHead, state: Mapping[str, Tensor]) -> str | None:
    own = head.state_dict()
    for name, tensor in own.items():
        if name not in state:
            if name.endswith("original0"):  # a gain that was never trained is 1
                continue
            return f"without {name}"
        if state[name].shape != tensor.shape:
            theirs, ours = list(state[name].shape), list(tensor.shape)
            if "last_layer" in name and theirs[1:] == ours[1:]:
                return f"with K = {theirs[0]} and not {ours[0]}"
            return f"{name} has the shape {theirs} and not {ours}"
    return None
