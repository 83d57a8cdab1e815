# SPDX-License-Identifier: Apache-2.0
"""Models to measure: a name or a network becomes a `LoadedModel` on its device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from rekindle.adapters.saved import load_backbone, model_hash
from rekindle.core.errors import RequestError
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.measuring.options import (
    ModelOptions,
)
from rekindle.networks.backbone import Backbone


@dataclass(frozen=True)
class LoadedModel:
    """A network with its name and content hash."""

    name: str
    hash: str
    extractor: FeatureExtractor
    features: SharedFeatures


def load_model(name: str, options: ModelOptions, watcher: Watcher, backbone: Backbone | None = None) -> LoadedModel:
    """Read a MODEL (or take `backbone`) and put it where the options say. Raises RequestError, RekindleError."""
    if backbone is None:
        backbone, match = load_backbone(name, options.network, init=options.init)
        watcher.message(match)
    extractor = FeatureExtractor(backbone, device=device_of(options.device), bf16=options.precision == "bf16")
    return LoadedModel(name, model_hash(backbone), extractor, SharedFeatures(extractor))


def device_of(name: str) -> torch.device:
    """Device that `device` names. Raises RequestError for a GPU that is not there."""
    if name == "gpu" and not torch.cuda.is_available():
        raise RequestError("--device gpu: no GPU is visible to torch; use --device cpu, or mend the driver")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def slug(name: str) -> str:
    """Turn a model's name into a file name."""
    parts = Path(name).parts[-2:] if Path(name).exists() else (name,)
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join(parts)).strip("-")[:80]
