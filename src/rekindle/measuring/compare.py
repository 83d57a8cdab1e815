# SPDX-License-Identifier: Apache-2.0
"""Comparison: models against their base on the same items and seeds, and a verdict for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.adapters.saved import DESCRIPTION
from rekindle.core.errors import RekindleError
from rekindle.core.tables import import_named
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.result import EvalResult, write_json
from rekindle.evaluation.scores.score import Rows
from rekindle.evaluation.verdict.difference import Difference, difference_of
from rekindle.evaluation.verdict.joint import joint_verdicts
from rekindle.evaluation.verdict.judging import margin_in, verdict_of
from rekindle.evaluation.verdict.overall import overall
from rekindle.measuring.belonging import notes_on_groups
from rekindle.measuring.choosing import Choice, LeftOut, choices_of, flattered, kept_groups, left_out
from rekindle.measuring.clock import Clock
from rekindle.measuring.comparison import Comparison, ModelOverall, Row, notes_on_trainings
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
    choices = {model.name: choices_of(model.name) for model in models}
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
    chosen = {name: _chosen(name, own, choices, data, options) for name, own in sides.items()}
    rows, overalls = _judged(options, names, sides, chosen)
    records = [found.record for found in chosen.values() if found.record is not None]
    comparison = Comparison(
        base=options.base,
        data=options.data,
        split=options.split,
        seeds=list(range(options.seeds)),
        rows=rows,
        overall=overalls,
        left_out=records,
        results=results,
        notes=notes_on_groups(data, names, sides) + notes_on_trainings(rows, records),
    )
    write_json(out / "comparison.json", comparison.model_dump(mode="json"))
    return comparison


def comparison_folder(options: CompareOptions) -> Path:
    """Where `run_compare` writes."""
    if options.out:
        return Path(options.out)
    return Path("results") / f"compare-{slug(options.base)}-{slug(options.models[0])}"


@dataclass(frozen=True)
class _Chosen:
    """Items of a protocol that had chosen a model: what is done about it, which items judge [n], and the groups of these."""

    record: LeftOut | None
    judges: NDArray[np.bool_]
    groups: NDArray[np.int64] | None


def _chosen(
    name: str,
    sides: list[list[Outcome]],
    choices: dict[str, list[Choice]],
    data: LabelledData,
    options: CompareOptions,
) -> _Chosen:
    items = sides[0][0].items
    if any(outcome.items != items for side in sides for outcome in side):
        raise RekindleError("the models were not evaluated on the same items; did the data change meanwhile?")
    grouping = data.grouping(name)
    groups = None if grouping is None else grouping.names(items)
    draws_items = bool(import_named(PROTOCOLS, "protocol", name).UNGROUPED)
    record, judges = left_out(
        name,
        items,
        choices,
        options.data,
        options.split,
        groups=groups,
        test_items=data.test(name).items if draws_items else None,
    )
    return _Chosen(record, judges, kept_groups(groups, judges))


@dataclass(frozen=True)
class _Subject:
    """What a verdict is about: its name, and which of the models are its trainings."""

    name: str
    kind: Literal["model", "run", "recipe"]
    numbers: list[int]


def _subjects(options: CompareOptions) -> list[_Subject]:
    if options.pool:
        count = len(options.models)
        trainings = f"{count} training{'s' if count > 1 else ''}"
        told = f"{options.recipe} ({trainings})" if options.recipe else " + ".join(options.models)
        return [_Subject(told, "recipe", list(range(1, 1 + count)))]
    return [
        _Subject(name, "run" if (Path(name).expanduser() / DESCRIPTION).is_file() else "model", [number])
        for number, name in enumerate(options.models, start=1)
    ]


def _judged(
    options: CompareOptions, names: list[str], sides: dict[str, list[list[Outcome]]], chosen: dict[str, _Chosen]
) -> tuple[list[Row], list[ModelOverall]]:
    """Judge every model, or the recipe that they are trainings of, under every protocol, alone and all of them together."""
    subjects = dict(enumerate(_subjects(options)))
    looks = [(protocol, place) for protocol in sides for place in subjects]
    rows: dict[tuple[str, int], tuple[list[Rows], list[Rows]]] = {}
    found: dict[tuple[str, int], Difference] = {}
    for look in looks:
        (base, *_), judges = sides[look[0]], chosen[look[0]].judges
        numbers, score = subjects[look[1]].numbers, base[0].score
        start, own = [_rows(base, judges)], [_rows(sides[look[0]][number], judges) for number in numbers]
        groups = chosen[look[0]].groups
        plain = difference_of(start, own, score, groups=groups, resamples=options.resamples)
        rows[look] = start, own
        models = [names[n] for n in numbers]
        found[look] = flattered(plain, chosen[look[0]].record, rows[look], names[0], models, groups)
    margins = {look: margin_in(own.score, options.margin) for look, own in found.items()}
    joint = joint_verdicts(found, options.level, margins)
    told = {
        look: Row(
            protocol=look[0],
            metric=found[look].score.name,
            score=sides[look[0]][0][0].score,
            model=subjects[look[1]].name,
            verdict=verdict_of(
                found[look], *rows[look], level=options.level, margin=margins[look], joint=joint.get(look)
            ),
            subject=subjects[look[1]].kind,
            trainings=[names[n] for n in subjects[look[1]].numbers] if options.pool else [],
        )
        for look in looks
    }
    overalls = [
        ModelOverall(
            model=subject.name,
            overall=overall(
                {protocol: told[protocol, place].verdict.verdict for protocol in sides},
                {protocol: joint[protocol, place] for protocol in sides if (protocol, place) in joint},
                options.level,
            ),
        )
        for place, subject in subjects.items()
    ]
    return list(told.values()), overalls


def _rows(outcomes: list[Outcome], judges: NDArray[np.bool_]) -> Rows:
    return np.stack([outcome.rows[judges] for outcome in outcomes])
