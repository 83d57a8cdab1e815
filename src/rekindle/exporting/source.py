# SPDX-License-Identifier: Apache-2.0
"""Source and result of an export: what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from rekindle.adapters.options import AdapterOptions
from rekindle.exporting.parity import Parity
from rekindle.networks.backbone import Backbone


def short_name(name: str) -> str:
    """Return a model's name, of a path only the last part: what is published tells nothing of this computer."""
    is_hub = name.startswith("hf-hub:")
    is_path = not is_hub and ("/" in name or "\\" in name)
    return (PurePath(name.replace("\\", "/")).name or name) if is_path else name


@dataclass(frozen=True)
class Source:
    """The model to export.

    Attributes:
        name: what the user called it.
        backbone: float32, on the CPU, in evaluation mode; never changed by an export.
        model_hash: content hash of its tensors as loaded.
        adapter: options of its adapters, None without.
        description: model.json of a run, {} for other models.
        config: config.yaml of a run, {} where there is none.

    """

    name: str
    backbone: Backbone
    model_hash: str
    adapter: AdapterOptions | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What a format's `write` says of the folder that it wrote and checked.

    Attributes:
        parity: measured on the files as written.
        library: the program that reads them, as model hubs call it.
        usage: Python that loads them, with paths relative to the folder.
        notes: what the reader must know, a paragraph each.
        tags: for the model card.

    """

    parity: Parity
    library: str
    usage: str
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
