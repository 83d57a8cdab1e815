# SPDX-License-Identifier: Apache-2.0
"""The backbone that a protocol trained on labels, kept as a MODEL like any other; the head that it had is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rekindle.adapters.attach import is_adapted
from rekindle.adapters.options import AdapterOptions
from rekindle.adapters.saved import DESCRIPTION, Lineage, recorded_adapters, save_model
from rekindle.core.errors import RequestError
from rekindle.core.tables import import_named
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.protocol import Protocol
from rekindle.measuring.models import LoadedModel
from rekindle.measuring.options import EvaluateOptions
from rekindle.networks.backbone import Backbone


def check_saving(options: EvaluateOptions, protocol: Protocol[Any, Any], model: LoadedModel) -> None:
    """Refuse, before anything is computed, what --save-model cannot do.

    Raises: RequestError for a protocol that trains no backbone, a folder that holds something, adapters of unknown options.
    """
    folder = Path(options.save_model).expanduser()
    reason = protocol.nothing_to_save()
    if reason:
        able = [name for name in PROTOCOLS if _can_save(name)]
        raise RequestError(
            f"--save-model {folder}: {options.protocol} leaves no fine-tuned backbone, for {reason}; protocols that may: "
            f"{', '.join(able)}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"--save-model {folder} is not an empty folder; choose another one, or clear it")
    _adapters_of(options.model, model.extractor.trainable_copy())


def save_fine_tuned(options: EvaluateOptions, model: LoadedModel, backbone: Backbone, steps: int) -> Path:
    """Write the backbone of a measured protocol, base and adapters together, weights first. Returns the folder."""
    folder = Path(options.save_model).expanduser()
    path = Path(options.model).expanduser()
    lineage = Lineage(
        base=str(path.resolve()) if path.exists() else options.model,
        base_hash=model.hash,
        base_licence=backbone.identity.licence,
        train="all",
        adapter=_adapters_of(options.model, backbone),
        network=options.network,
        method=options.protocol,
        steps=steps,
    )
    save_model(folder, backbone, (), lineage, with_base=True)
    return folder / DESCRIPTION


def _can_save(name: str) -> bool:
    return import_named(PROTOCOLS, "protocol", name).nothing_to_save is not Protocol.nothing_to_save


def _adapters_of(name: str, backbone: Backbone) -> AdapterOptions | None:
    """Options of a model's adapters, from its folder; None without adapters."""
    if not is_adapted(backbone):
        return None
    folder = Path(name).expanduser()
    found = recorded_adapters(folder) if folder.is_dir() else None
    if found is None:
        raise RequestError(
            f"--save-model: {name} has adapters, and only a folder says how they are built; give the folder as MODEL"
        )
    return found
