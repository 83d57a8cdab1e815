# SPDX-License-Identifier: Apache-2.0
"""Comparison: models against their base on the same items and seeds, and a verdict for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rekindle.core.errors import RekindleError
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.bootstrap import Verdict, paired_bootstrap
from rekindle.evaluation.scores.overall import overall
from rekindle.evaluation.scores.result import EvalResult, write_json
from rekindle.measuring.clock import Clock
from rekindle.measuring.comparison import Comparison, ModelOverall, Row
from rekindle.measuring.measurement import LabelledData, Measurement, build_protocol
from rekindle.measuring.models import load_model, slug
from rekindle.measuring.options import (
    CompareOptions,
    require,
)


def run_compare(options: CompareOptions, *, watcher: Watcher | None = None) -> Comparison:
    """Do what `rekindle compare` does: check, measure every model with the same seeds, compare, write."""
    watcher = watcher or LoggingWatcher()
    require("compare", BASE=options.base, MODEL=options.models, data=options.data, protocol=options.protocol)
    data = LabelledData(options.data, options.train_split, options.split, options.protocol)
    models = [load_model(name, options, watcher) for name in (options.base, *options.models)]
    for name in options.protocol:  # every request is checked before the first feature
        for model in models:
            build_protocol(name, options, model, data, watcher.message).check()
    out, clock = comparison_folder(options), Clock(len(options.protocol) * len(models) * options.seeds, watcher)
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
                path = out / f"{name}-{number}-{slug(model.name)}-s{seed}.json"
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
    return Path("results") / f"compare-{slug(options.base)}-{slug(options.models[0])}"


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
