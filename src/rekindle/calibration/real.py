# SPDX-License-Identifier: Apache-2.0
"""Real trials: small models measured by every protocol once, of which every trial takes items and seeds of its own.

What is real: networks, trainings, heads, protocols and images (drawn, with exact labels). What is reused: the rows. A model
is measured once on all crops under each evaluation seed, so trials share models (eight trainings, six evaluation seeds) and
some items; their rates are less certain than their intervals say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from rekindle.calibration.real_data import Sizes, Version, write_pool
from rekindle.calibration.real_models import NoisyExtractor, base, trained
from rekindle.calibration.real_rows import FREE_OF_CHANCE, Table, measured
from rekindle.calibration.rules import Pair, Rule
from rekindle.calibration.simulate import Measured, duration, source_of
from rekindle.calibration.tally import Tally
from rekindle.data.scenes import write_scenes
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.features.shared_features import SharedFeatures
from rekindle.evaluation.scores.score import Rows

TRAININGS, SEEDS = 8, 6
ITEMS, GROUPS = 40, 12
NOISES = (0.3, 0.7)
"""Shares of the variance of every token that is noise."""
Message = Callable[[str], None]
Taken = tuple[list[Rows], list[Rows]]


@dataclass(frozen=True)
class Tables:
    """Rows of one protocol.

    Attributes:
        base: of the base, under all evaluation seeds.
        trainings: of each training of the base, under evaluation seed 0.
        spoilt: by what was done to it, of the base under the first two evaluation seeds.

    """

    base: Table
    trainings: list[Table]
    spoilt: dict[str, Table]


def real_cells(
    protocols: Sequence[str], trials: int, seed: int, rules: Sequence[Rule], message: Message
) -> Iterator[Measured]:
    """Yield the cells of some protocols: no difference, with other evaluation seeds or other trainings, and planted effects."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        message("drawing scenes, and training the base on some of them")
        models = _models(root, seed)
        for version in ("plain", "labels flipped", "class blurred"):
            write_pool(root / version, Sizes(), version, seed)
        began = time.monotonic()
        for number, protocol in enumerate(protocols):
            left = duration((time.monotonic() - began) / number * (len(protocols) - number)) if number else "unknown"
            message(f"real: {protocol} ({number + 1} of {len(protocols)}), {len(models)} models; ETA {left}")
            tables = _tables(protocol, models, root)
            for is_grouped in (False, True) if protocol != "one-shot" else (False,):
                yield from _of_protocol(protocol, tables, is_grouped, trials, seed, rules)


def _models(root: Path, seed: int) -> list[FeatureExtractor]:
    """The base, then its trainings."""
    write_scenes(root / "unlabelled", "field", {"all": 96}, size_px=64, seed=seed + 1, with_masks=False)
    runs = [trained(root / "unlabelled", root / f"run-{number}", 100 * seed + number) for number in range(TRAININGS)]
    return [FeatureExtractor(backbone) for backbone in (base(), *runs)]


def _tables(protocol: str, models: Sequence[FeatureExtractor], root: Path) -> Tables:
    def table(extractor: FeatureExtractor, version: Version, seeds: int) -> Table:
        return measured(protocol, extractor, SharedFeatures(extractor), root / version, range(seeds))

    spoilt = {
        f"{share:.0%} of the features noise": table(NoisyExtractor(base(), share), "plain", 2) for share in NOISES
    }
    spoilt |= {version: table(models[0], version, 2) for version in ("labels flipped", "class blurred")}
    return Tables(table(models[0], "plain", SEEDS), [table(model, "plain", 1) for model in models[1:]], spoilt)


def _of_protocol(
    protocol: str, tables: Tables, is_grouped: bool, trials: int, seed: int, rules: Sequence[Rule]
) -> Iterator[Measured]:
    """Cells of one protocol, with independent or with grouped items."""
    kind = f"{GROUPS} scenes of {Sizes().members}" if is_grouped else f"{ITEMS} scenes"

    def other_seeds(source: np.random.Generator) -> Taken:
        order = source.permutation(SEEDS)
        return [tables.base.rows[order[:3]]], [tables.base.rows[order[3:]]]

    def other_trainings(source: np.random.Generator) -> Taken:
        order = source.permutation(TRAININGS)
        sides = [[tables.trainings[k].rows for k in part] for part in (order[:3], order[3:6])]
        return sides[0], sides[1]

    drawn = _eligible(tables.base, is_grouped)
    cases: list[tuple[str, Callable[[np.random.Generator], Taken], float]] = []
    if protocol not in FREE_OF_CHANCE:
        cases.append((f"other evaluation seeds, {kind}", other_seeds, 0.0))
    cases.append((f"other training seeds, {kind}", other_trainings, 0.0))
    for name, spoilt in tables.spoilt.items():
        start = tables.base.rows[: len(spoilt.rows)]
        truth = _value(tables.base, spoilt.rows[:, drawn]) - _value(tables.base, start[:, drawn])
        if truth != 0.0:
            cases.append((f"{name}, {kind}", partial(_both, [start], [spoilt.rows]), truth))
    for label, take, truth in cases:
        yield _cell(protocol, tables.base, label, take, truth, is_grouped, trials, seed, rules)


def _cell(
    protocol: str,
    table: Table,
    label: str,
    take: Callable[[np.random.Generator], Taken],
    truth: float,
    is_grouped: bool,
    trials: int,
    seed: int,
    rules: Sequence[Rule],
) -> Measured:
    """Judge the trials of one cell."""
    source, score = source_of(seed, "real", protocol, label), table.score
    sign = 1 if score.higher_is_better else -1
    tallies, values = [Tally(rule.name, truth) for rule in rules], []
    for _ in range(trials):
        items, groups = _drawn(table, is_grouped, source)
        base, model = ([rows[:, items] for rows in side] for side in take(source))
        means = [np.mean([score.value(rows) for training in side for rows in training]) for side in (base, model)]
        values.append(float(means[1] - means[0]))
        for rule, tally in zip(rules, tallies, strict=True):
            found = rule.judge(Pair(base, model, score, groups))
            tally.add(found.word, found.low, found.high, rises=score.higher_is_better)
    effect = int(np.sign(sign * truth))
    return Measured(
        section="real",
        world=protocol,
        label=label,
        protocols=(protocol,),
        items=len(items),
        units=GROUPS if is_grouped else ITEMS,
        effect=100 * sign * truth,
        mean_difference=100 * sign * float(np.mean(values)),
        deviation=100 * float(np.std(values)),
        is_promised=effect == 0,
        judged=[tally.judgement(effect=effect) for tally in tallies],
    )


def _both(base: list[Rows], model: list[Rows], source: np.random.Generator) -> Taken:
    """Two sides whose seeds are the same in every trial."""
    return base, model


def _eligible(table: Table, is_grouped: bool) -> NDArray[np.int64]:
    """Items that trials take: the first of every scene, or all of those scenes that have several."""
    scenes = table.scenes
    return np.flatnonzero(np.bincount(scenes)[scenes] > 1 if is_grouped else table.is_first)


def _drawn(
    table: Table, is_grouped: bool, source: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Items of a trial, and the group of each where scenes give several."""
    eligible, scenes = _eligible(table, is_grouped), table.scenes
    if not is_grouped:
        return np.sort(source.choice(eligible, ITEMS, replace=False)), None
    chosen = source.choice(np.unique(scenes[eligible]), GROUPS, replace=False)
    items = np.flatnonzero(np.isin(scenes, chosen))
    return items, np.unique(scenes[items], return_inverse=True)[1]


def _value(table: Table, rows: Rows) -> float:
    """Mean over the seeds of the score of all items."""
    return float(np.mean([table.score.value(each) for each in rows]))
