# SPDX-License-Identifier: Apache-2.0
"""Comparison: models against their base on the same items and seeds, and a verdict for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rekindle.core.errors import RekindleError
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.result import EvalResult, write_json
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.groups import Grouping
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import margin_in, verdict_of
from rekindle.evaluation.verdict.overall import overall
from rekindle.measuring.belonging import notes_on_groups
from rekindle.measuring.clock import Clock
from rekindle.measuring.comparison import Comparison, ModelOverall, Row
from rekindle.measuring.measurement import LabelledData, Measurement, build_protocol, open_labelled
from rekindle.measuring.models import load_model, slug
from rekindle.measuring.options import (
    CompareOptions,
    require,
)


def run_compare(options: CompareOptions, *, watcher: Watcher | None = None) -> Comparison:
    """Do what `rekindle compare` does: check, measure every model with the same seeds, compare, write."""
    watcher = watcher or LoggingWatcher()
    require("compare", BASE=options.base, MODEL=options.models, data=options.data, protocol=options.protocol)
    data = open_labelled(options, options.protocol)
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
    names = [model.name for model in models]
    rows, overalls = _judged(options, names, sides, data)
    comparison = Comparison(
        base=options.base,
        data=options.data,
        split=options.split,
        seeds=list(range(options.seeds)),
        rows=rows,
        overall=overalls,
        results=results,
        notes=notes_on_groups(data, names, sides),
    )
    write_json(out / "comparison.json", comparison.model_dump(mode="json"))
    return comparison


def comparison_folder(options: CompareOptions) -> Path:
    """Where `run_compare` writes."""
    if options.out:
        return Path(options.out)
    return Path("results") / f"compare-{slug(options.base)}-{slug(options.models[0])}"


def _judged(
    options: CompareOptions, names: list[str], sides: dict[str, list[list[Outcome]]], data: LabelledData
) -> tuple[list[Row], list[ModelOverall]]:
    """Judge every model under every protocol, alone and all of them together."""
    looks = [(protocol, number) for protocol in sides for number in range(1, len(names))]
    rows = {look: (_rows(sides[look[0]][0]), _rows(sides[look[0]][look[1]])) for look in looks}
    groupings = {protocol: data.grouping(protocol) for protocol in sides}
    found = {
        look: _difference(sides[look[0]][0], sides[look[0]][look[1]], options, groupings[look[0]]) for look in looks
    }
    margins = {look: margin_in(own.score, options.margin) for look, own in found.items()}
    joint = joint_verdicts(found, options.level, margins)
    told = [
        Row(
            protocol=look[0],
            metric=found[look].score.name,
            score=sides[look[0]][0][0].score,
            model=names[look[1]],
            verdict=verdict_of(
                found[look],
                [rows[look][0]],
                [rows[look][1]],
                level=options.level,
                margin=margins[look],
                joint=joint.get(look),
            ),
        )
        for look in looks
    ]
    words = {look: row.verdict.verdict for look, row in zip(looks, told, strict=True)}
    overalls = [
        ModelOverall(
            model=names[number],
            overall=overall(
                {protocol: words[protocol, number] for protocol in sides},
                {protocol: joint[protocol, number] for protocol in sides if (protocol, number) in joint},
                options.level,
            ),
        )
        for number in range(1, len(names))
    ]
    return told, overalls


def _difference(
    base: list[Outcome], model: list[Outcome], options: CompareOptions, grouping: Grouping | None
) -> Difference:
    if any(outcome.items != base[0].items for outcome in [*base, *model]):
        raise RekindleError("the models were not evaluated on the same items; did the data change meanwhile?")
    groups = None if grouping is None else grouping.indices(base[0].items)
    return difference_of([_rows(base)], [_rows(model)], base[0].score, groups=groups, resamples=options.resamples)


def _rows(outcomes: list[Outcome]) -> Rows:
    return np.stack([outcome.rows for outcome in outcomes])
