# SPDX-License-Identifier: Apache-2.0
"""Rekindle: continual self-supervised pre-training of vision transformers for dense prediction.

>>> import rekindle
>>> run = rekindle.pretrain(images="my_images", backbone="vit_small_patch16_224.dino", out="runs/mine")
>>> print(rekindle.compare("vit_small_patch16_224.dino", [run], "my_labelled_data"))  # doctest: +ELLIPSIS
runs/mine, linear-seg, mIoU: ...
>>> model = rekindle.load("runs/mine")
>>> tokens = rekindle.extract(model, "image.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rekindle.core.errors import RekindleError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from PIL.Image import Image
    from torch import Tensor

    from rekindle.engine.watcher import Watcher
    from rekindle.evaluation.scores.result import EvalResult
    from rekindle.exporting.job import ExportResult
    from rekindle.measuring.comparison import Comparison
    from rekindle.networks.backbone import Backbone
    from rekindle.networks.tokens import Tokens
    from rekindle.pretraining.run import PretrainResult

__version__ = "0.1.0"
__all__ = [
    "RekindleError",
    "RequestError",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "extract",
    "load",
    "pretrain",
]


def pretrain(*, resume: bool = False, watcher: Watcher | None = None, **options: Any) -> PretrainResult:
    """Continue self-supervised pre-training on your own images; the same names as `rekindle pretrain`.

    Args:
        resume: go on with the run in `out`.
        watcher: who is told how it goes; by default the logger "rekindle".
        options: `images`, `backbone`, `method`, `out`, `steps`, ...; groups are mappings, for example
            `views={"num_local": 4}`, and so are a method's options: `glare={"num_regions": 3}`.
    Returns: the run's folder (usable as a path) and what happened.
    Raises: RequestError for a wrong request, RekindleError if the run fails.
    """
    from rekindle import api

    return api.pretrain(resume=resume, watcher=watcher, options=options)


def load(
    model: str | PathLike[str],
    *,
    base: str | None = None,
    arch: str | None = None,
    network: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load any MODEL (folder of a run, of transformers, timm or PEFT, checkpoint file, hub or timm name) in evaluation mode.

    Args:
        model: what to load.
        base: for a folder whose base has moved: where it is now.
        arch: for a checkpoint file that does not tell its architecture: a timm name.
        network: further options of `--network`, such as {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)}.
    Returns: an nn.Module that maps normalised pixels [N, 3, H, W] to `Tokens`, with timm's forward_features and
        forward_intermediates; `mean` and `std` say how pixels are normalised.
    """
    from rekindle import api

    return api.load(model, base=base, network={**(network or {}), **({} if arch is None else {"arch": arch})})


def extract(
    model: Backbone | str | PathLike[str], image: str | PathLike[str] | Image | Tensor, *, size_px: int | None = None
) -> Tokens:
    """Features of one image: tokens.cls [D] (None without a class token) and tokens.patches [gh, gw, D].

    Args:
        model: a loaded model, or what `load` takes.
        image: a path, a PIL image, or a uint8 tensor [3, H, W].
        size_px: short side to resize to; None keeps the image's size. Sides are rounded to multiples of the patch.
    """
    from rekindle import api

    return api.extract(model, image, size_px=size_px)


def evaluate(
    model: Backbone | str | PathLike[str],
    protocol: str,
    data: str | PathLike[str],
    *,
    watcher: Watcher | None = None,
    **options: Any,
) -> EvalResult:
    """Measure one model with one protocol; the same names as `rekindle evaluate`.

    Args:
        model: a loaded model, or what `load` takes.
        protocol: `rekindle list protocols` names them.
        data: folder of labelled data, or NAME:ROOT of a published data set.
        watcher: who is told how it goes; by default the logger "rekindle".
        options: `split`, `seed`, `preset`, `out`, `save_model`, ...; a protocol's own are a mapping, for example
            `linear_seg={"steps": 300}`.
    Returns: metrics, values of every image, and where the result file lies. Metrics are fractions unless their name has a unit.
    Raises: RequestError for a wrong request, RekindleError if measuring fails.
    """
    from rekindle import api

    return api.evaluate(model, protocol, data, watcher=watcher, options=options)


def compare(
    base: str | PathLike[str],
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    data: str | PathLike[str],
    *,
    watcher: Watcher | None = None,
    **options: Any,
) -> Comparison:
    """Tell whether models are better than their base, no different, or worse; the same names as `rekindle compare`.

    Args:
        base: the model to compare with, as `load` takes it.
        models: one or more of the same kind, such as the run that `pretrain` returned; with `recipe`, none: [].
        data: folder of labelled data, or NAME:ROOT of a published data set.
        watcher: who is told how it goes; by default the logger "rekindle".
        options: `protocol` (a list), `seeds`, `level`, `out`, `pool`, `recipe`, ...; a protocol's own are a mapping, for example
            `linear_seg={"steps": 300}`.
    Returns: `rows` (one per protocol and model: the difference to the base, its interval, its verdict), `overall` (one word
        per model), every single result. Printed, it says all verdicts, a line each.
    Raises: RequestError for a wrong request, RekindleError if measuring fails.
    """
    from rekindle import api

    return api.compare(base, models, data, watcher=watcher, options=options)


def export(
    model: str | PathLike[str],
    *,
    format: str,
    out: str | PathLike[str],
    watcher: Watcher | None = None,
    **options: Any,
) -> ExportResult:
    """Write a model for another program, checked against the original; the same names as `rekindle export`.

    Args:
        model: what `load` takes.
        format: for which program; `rekindle list formats` tells the names.
        out: new or empty folder.
        watcher: who is told how it goes; by default the logger "rekindle".
        options: `base`, `arch`, `verdict`.
    Returns: the folder (usable as a path), its files, and how far the exported model is from the original.
    Raises: RequestError for what the format cannot hold, RekindleError if the check fails.
    """
    from rekindle import api

    return api.export(model, format=format, out=out, watcher=watcher, options=options)
