# SPDX-License-Identifier: Apache-2.0
"""The Python calls, behind the thin functions of `rekindle` that import nothing until they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rekindle.adapters.saved import load_backbone
from rekindle.core.errors import RequestError
from rekindle.core.option_trees import checked
from rekindle.data.decoding import read_image
from rekindle.engine.watcher import Watcher
from rekindle.evaluation.features.dense_features import fitted_size, resize_image
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.scores.result import EvalResult
from rekindle.exporting.job import ExportResult, run_export
from rekindle.exporting.options import ExportOptions
from rekindle.matrix.recipe import compare as run_compare
from rekindle.measuring.comparison import Comparison
from rekindle.measuring.evaluate import run_evaluate
from rekindle.measuring.options import compare_options, evaluate_options
from rekindle.networks.backbone import Backbone
from rekindle.networks.options import NetworkOptions
from rekindle.networks.tokens import Tokens
from rekindle.pretraining.options import read_run_file, resolve
from rekindle.pretraining.requests import resolve_resumed
from rekindle.pretraining.run import PretrainResult
from rekindle.pretraining.run import pretrain as run_pretrain


def pretrain(*, resume: bool, watcher: Watcher | None, options: Mapping[str, Any]) -> PretrainResult:
    """See `rekindle.pretrain`."""
    asked = _paths(options)
    config = asked.pop("config", None)
    if config is not None:
        resolved = resolve(read_run_file(config), asked, file_name=str(config))
    elif resume:
        resolved = resolve_resumed(str(asked.get("out", "")), asked)
    else:
        resolved = resolve({}, asked)
    return run_pretrain(resolved, resume=resume, watcher=watcher)


def load(model: str | PathLike[str], *, base: str | None, network: Mapping[str, Any]) -> Backbone:
    """See `rekindle.load`."""
    backbone, _ = load_backbone(fspath(model), checked(NetworkOptions, network, "network"), base=base)
    return backbone.eval().requires_grad_(False)


def extract(
    model: Backbone | str | PathLike[str], image: str | PathLike[str] | Image.Image | Tensor, *, size_px: int | None
) -> Tokens:
    """See `rekindle.extract`."""
    backbone = model if isinstance(model, Backbone) else load(model, base=None, network={})
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image tensor is uint8 [3, H, W]; got {image.dtype} {list(image.shape)}")
        pixels = image
    else:
        pixels = read_image(fspath(image))
    height, width = pixels.shape[-2:]
    size = fitted_size(height, width, size_px or min(height, width), backbone.patch_size)
    was_training = backbone.training
    extractor = FeatureExtractor(backbone, device=next(backbone.parameters()).device)
    tokens = extractor.extract(resize_image(pixels, size)[None])[0]
    backbone.train(was_training)
    return Tokens(None if tokens.cls is None else tokens.cls[0], tokens.registers[0], tokens.patches[0])


def evaluate(
    model: Backbone | str | PathLike[str],
    protocol: str,
    data: str | PathLike[str],
    *,
    watcher: Watcher | None,
    options: Mapping[str, Any],
) -> EvalResult:
    """See `rekindle.evaluate`."""
    backbone = model if isinstance(model, Backbone) else None
    name = model.identity.name if isinstance(model, Backbone) else fspath(model)
    request = evaluate_options({"model": name, "protocol": protocol, "data": fspath(data), **_paths(options)})
    return run_evaluate(request, backbone=backbone, watcher=watcher)


def compare(
    base: str | PathLike[str],
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    data: str | PathLike[str],
    *,
    watcher: Watcher | None,
    options: Mapping[str, Any],
) -> Comparison:
    """See `rekindle.compare`."""
    listed = [models] if isinstance(models, str | PathLike) else models
    for model in (base, *listed) if isinstance(listed, Sequence) else (listed,):
        if not isinstance(model, str | PathLike):
            raise RequestError(
                f"compare takes names and folders of models, not a {type(model).__name__}: a verdict has to say what was "
                "compared. Save it (a run folder, or rekindle.export) and name that; rekindle.evaluate takes a loaded model"
            )
    names = tuple(fspath(model) for model in listed)
    request = compare_options({"base": fspath(base), "models": names, "data": fspath(data), **_paths(options)})
    return run_compare(request, watcher=watcher)


def _paths(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: fspath(v) if isinstance(v, PathLike) else v for k, v in options.items()}


def export(
    model: str | PathLike[str],
    *,
    format: str,
    out: str | PathLike[str],
    watcher: Watcher | None,
    options: Mapping[str, Any],
) -> ExportResult:
    """See `rekindle.export`."""
    tree = {"model": fspath(model), "format": format, "out": fspath(out), **_paths(options)}
    return run_export(checked(ExportOptions, tree, "export"), watcher=watcher)
