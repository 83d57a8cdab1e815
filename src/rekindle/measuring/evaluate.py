# SPDX-License-Identifier: Apache-2.0
"""Where the names of models, protocols and data become measurements: evaluate, compare, extract."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.adapters.saved import load_backbone, model_hash
from rekindle.core.errors import RekindleError, RequestError
from rekindle.core.files import write_atomically
from rekindle.data.films import is_film, write_frames
from rekindle.data.images import UnreadableImage, find_images
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.features.dense_features import extract_each, fitted_size, resize_image
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.bootstrap import Verdict, paired_bootstrap
from rekindle.evaluation.scores.overall import overall
from rekindle.evaluation.scores.result import EvalResult, write_json
from rekindle.measuring.comparison import Comparison as Comparison
from rekindle.measuring.comparison import ModelOverall as ModelOverall
from rekindle.measuring.comparison import Row as Row
from rekindle.measuring.measurement import LabelledData, LoadedModel, Measurement, build_protocol
from rekindle.measuring.options import (
    CompareOptions,
    EvaluateOptions,
    ExtractOptions,
    ModelOptions,
    compare_options,
    evaluate_options,
)
from rekindle.measuring.pictures import check_pictures, draw_pictures
from rekindle.networks.backbone import Backbone


@dataclass(frozen=True)
class Extracted:
    """What `extract` wrote."""

    out: Path
    images: int
    skipped: int


def evaluate(
    model: str | Path | Backbone,
    protocol: str,
    data: str | Path,
    *,
    watcher: Watcher | None = None,
    **options: object,
) -> EvalResult:
    """Measure one model with one protocol; the options are those of `rekindle evaluate`.

    Example: `evaluate("runs/mine", "linear-seg", "my_data", seed=1, linear_seg={"steps": 300})`.
    """
    backbone = model if isinstance(model, Backbone) else None
    name = backbone.identity.name if backbone is not None else str(model)
    request = evaluate_options({"model": name, "protocol": protocol, "data": str(data), **options})
    return run_evaluate(request, backbone=backbone, watcher=watcher)


def compare(
    base: str | Path,
    models: Sequence[str | Path],
    data: str | Path,
    *,
    watcher: Watcher | None = None,
    **options: object,
) -> Comparison:
    """Compare models with a base; the options are those of `rekindle compare`."""
    request = compare_options({"base": str(base), "models": tuple(map(str, models)), "data": str(data), **options})
    return run_compare(request, watcher=watcher)


def run_evaluate(
    options: EvaluateOptions, *, backbone: Backbone | None = None, watcher: Watcher | None = None
) -> EvalResult:
    """Do what `rekindle evaluate` does: check, measure, write the result file."""
    watcher = watcher or LoggingWatcher()
    _require("evaluate", MODEL=options.model, data=options.data)
    data = LabelledData(options.data, options.train_split, options.split, [options.protocol])
    model = load_model(options.model, options, watcher, backbone)
    protocol = build_protocol(options.protocol, options, model, data, watcher.message)
    protocol.check()
    protocol.prepare()
    measurement = Measurement(options.protocol, protocol, model, data, options)
    return measurement.of_seed(options.seed, result_path(options))[0]


def result_path(options: EvaluateOptions) -> Path:
    """Where `run_evaluate` writes."""
    if not options.out:
        return Path("results") / f"{options.protocol}-{_slug(options.model)}-s{options.seed}.json"
    if not options.out.endswith(".json"):
        raise RequestError(f"--out {options.out}: the result is one file; give a name that ends in .json")
    return Path(options.out)


def run_compare(options: CompareOptions, *, watcher: Watcher | None = None) -> Comparison:
    """Do what `rekindle compare` does: check, measure every model with the same seeds, compare, write."""
    watcher = watcher or LoggingWatcher()
    _require("compare", BASE=options.base, MODEL=options.models, data=options.data, protocol=options.protocol)
    data = LabelledData(options.data, options.train_split, options.split, options.protocol)
    models = [load_model(name, options, watcher) for name in (options.base, *options.models)]
    for name in options.protocol:  # every request is checked before the first feature
        for model in models:
            build_protocol(name, options, model, data, watcher.message).check()
    out, clock = comparison_folder(options), _Clock(len(options.protocol) * len(models) * options.seeds, watcher)
    sides: dict[str, list[list[Outcome]]] = {name: [] for name in options.protocol}
    results: list[EvalResult] = []
    for number, model in enumerate(models):
        for name in options.protocol:
            watcher.message(f"{name}: features of {model.name}")
            protocol = build_protocol(name, options, model, data, watcher.message)
            protocol.prepare()
            measurement = Measurement(name, protocol, model, data, options)
            outcomes = []
            for seed in range(options.seeds):
                path = out / f"{name}-{number}-{_slug(model.name)}-s{seed}.json"
                result, outcome = measurement.of_seed(seed, path, draw=seed == 0)
                outcomes.append(outcome)
                results.append(result)
                clock.tick(f"{name}: {model.name}, seed {seed}: {outcome.shown}")
            sides[name].append(outcomes)
        model.features.forget()
    rows = [
        Row(
            protocol=name,
            metric=base[0].score.name,
            score=base[0].score,
            model=model.name,
            verdict=_verdict(base, side, options),
        )
        for name, (base, *others) in sides.items()
        for model, side in zip(models[1:], others, strict=True)
    ]
    count = len(models) - 1
    overalls = [
        ModelOverall(
            model=model.name,
            overall=overall({row.protocol: row.verdict.verdict for row in rows[place::count]}, options.level),
        )
        for place, model in enumerate(models[1:])
    ]
    comparison = Comparison(
        base=options.base,
        data=options.data,
        split=options.split,
        seeds=list(range(options.seeds)),
        rows=rows,
        overall=overalls,
        results=results,
    )
    write_json(out / "comparison.json", comparison.model_dump(mode="json"))
    return comparison


def comparison_folder(options: CompareOptions) -> Path:
    """Where `run_compare` writes."""
    if options.out:
        return Path(options.out)
    return Path("results") / f"compare-{_slug(options.base)}-{_slug(options.models[0])}"


def run_extract(options: ExtractOptions, *, watcher: Watcher | None = None) -> Extracted:
    """Do what `rekindle extract` does: an NPZ of patches per image, and one of descriptors and paths."""
    watcher = watcher or LoggingWatcher()
    _require("extract", MODEL=options.model, images=options.images, out=options.out)
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"--out {out} is not an empty folder; choose another one, or clear it")
    source = None if is_film(options.images) else find_images(options.images)
    extractor = load_model(options.model, options, watcher).extractor
    check_pictures(options, extractor)
    if source is None:
        frames = out / "frames"
        watcher.message(f"{write_frames(options.images, frames)} frames of {options.images} in {frames}")
        source = find_images(frames)
    skipped: list[str] = []
    kept: list[int] = []

    def images() -> Iterator[torch.Tensor]:
        for index in range(len(source)):
            try:
                image = source.read(index)
            except UnreadableImage as error:
                skipped.append(f"{error.name}: {error.reason}")
                continue
            kept.append(index)
            size = fitted_size(image.shape[1], image.shape[2], options.size_px, extractor.patch_size)
            yield resize_image(image, size)

    cls, means, files = [], [], []
    clock = _Clock(len(source), watcher, every_s=10.0)
    for number, tokens in enumerate(extract_each(extractor, images())):
        patches = tokens[0].patches[0].cpu().numpy()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.name(kept[number])).stem)[:80]
        files.append(f"patches/{kept[number]:06}-{stem}.npz")
        _write_npz(out / files[-1], patches=patches.astype(np.float16))
        means.append(patches.mean(axis=(0, 1)))
        if tokens[0].cls is not None:
            cls.append(tokens[0].cls[0].cpu().numpy())
        clock.tick(f"{number + 1} of {len(source)} images")
    if skipped:
        text = "\n".join(skipped) + "\n"
        write_atomically(out / "skipped.txt", lambda stream: stream.write(text.encode()))
        watcher.message(f"{len(skipped)} of {len(source)} images could not be read; see {out / 'skipped.txt'}")
    if not kept:
        raise RekindleError(f"none of the {len(source)} images in {options.images} could be read")
    arrays = {
        "mean": np.stack(means),
        "paths": np.array([source.name(i) for i in kept]),
        "files": np.array(files),
    }
    _write_npz(out / "features.npz", **arrays, **({"cls": np.stack(cls)} if cls else {}))
    if options.pictures:
        drawn = draw_pictures(options, source, extractor, out)
        watcher.message(f"pictures: {', '.join(map(str, drawn))}")
    return Extracted(out, len(kept), len(skipped))


class _Clock:
    """Says how far the work is and when it will be done."""

    def __init__(self, total: int, watcher: Watcher, *, every_s: float = 0.0) -> None:
        self._total, self._watcher, self._every_s = total, watcher, every_s
        self._start = self._last = time.monotonic()
        self._done = 0

    def tick(self, text: str) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < self._every_s and self._done < self._total:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / self._done * (self._total - self._done)
        self._watcher.message(f"[{self._done}/{self._total}] {text} ({elapsed:.0f} s, about {left:.0f} s left)")


def _require(command: str, **values: object) -> None:
    for name, value in values.items():
        if not value:
            shown = name if name.isupper() else f"--{name}"
            raise RequestError(f"{shown} is missing; `rekindle {command} --help` says what it may be")


def load_model(name: str, options: ModelOptions, watcher: Watcher, backbone: Backbone | None = None) -> LoadedModel:
    """Read a MODEL (or take `backbone`) and put it where the options say. Raises RequestError, RekindleError."""
    if backbone is None:
        backbone, match = load_backbone(name, options.network, init=options.init)
        watcher.message(match)
    extractor = FeatureExtractor(backbone, device=_device(options.device), bf16=options.precision == "bf16")
    return LoadedModel(name, model_hash(backbone), extractor, SharedFeatures(extractor))


def _device(name: str) -> torch.device:
    if name == "gpu" and not torch.cuda.is_available():
        raise RequestError("--device gpu: no GPU is visible to torch; use --device cpu, or mend the driver")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _verdict(base: list[Outcome], model: list[Outcome], options: CompareOptions) -> Verdict:
    if any(outcome.items != base[0].items for outcome in [*base, *model]):
        raise RekindleError("the models were not evaluated on the same items; did the data change meanwhile?")
    return paired_bootstrap(
        np.stack([outcome.rows for outcome in base]),
        np.stack([outcome.rows for outcome in model]),
        base[0].score,
        level=options.level,
        resamples=options.resamples,
    )


def _write_npz(path: Path, **arrays: Any) -> None:
    write_atomically(path, lambda stream: np.savez(stream, **arrays))


def _slug(name: str) -> str:
    """Turn a model's name into a file name."""
    parts = Path(name).parts[-2:] if Path(name).exists() else (name,)
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join(parts)).strip("-")[:80]
