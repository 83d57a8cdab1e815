# SPDX-License-Identifier: Apache-2.0
"""Thousands of trials of every cell, judged by several rules. Torch-free."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rekindle.calibration.cells import Cell, Section, cells_of
from rekindle.calibration.rules import Pair, Rule
from rekindle.calibration.special import CHOICES, LOOKS, STRAYS, Looks
from rekindle.calibration.tally import Judgement, Tally
from rekindle.calibration.trials import draw
from rekindle.calibration.worlds_of_scores import WORLDS
from rekindle.core.options import Options

Draw = Callable[[np.random.Generator], Pair]


class Measured(Options):
    """A cell that was measured."""

    section: Section
    """Which question it belongs to."""
    world: str
    """The kind of score."""
    label: str
    """What is true in it."""
    protocols: tuple[str, ...]
    """Whose rows are of that kind."""
    items: int
    """How many."""
    units: int
    """What is drawn: groups, or items."""
    effect: float | None
    """True difference in points of the good direction; None where there is no single one."""
    mean_difference: float | None
    """Of the trials, in points; None where there are several."""
    deviation: float | None
    """Of the trials' differences, in points."""
    is_promised: bool
    """Whether the limits hold for it: there is enough to judge, and what is asked can be read from the rows."""
    judged: list[Judgement]
    """By rule."""

    def by(self, rule: str) -> Judgement:
        """Return what a rule made of it."""
        return next(found for found in self.judged if found.rule == rule)


@dataclass(frozen=True)
class Job:
    """A cell to be measured, and how."""

    section: Section
    world: str
    label: str
    run: Callable[[int, int, Sequence[Rule]], Measured]


def jobs(sections: Sequence[Section], *, is_short: bool = False) -> Iterator[Job]:
    """Yield what is to be simulated."""
    for section in sections:
        for cell in cells_of(section, is_short=is_short):
            yield _of_cell(cell)
        if section == "overall":
            for look in LOOKS if not is_short else LOOKS[-6::2]:
                yield Job(
                    section,
                    "several",
                    look.label,
                    partial(_overall, look),
                )
        if section == "chosen":
            for choice in CHOICES if not is_short else CHOICES[-4:-2]:
                yield _of_draw(
                    section,
                    choice.label,
                    choice.judging,
                    partial(choice.pair, WORLDS[0]),
                    is_promised=choice.on_others,
                )
        if section == "stray":
            for stray in STRAYS if not is_short else STRAYS[:1]:
                yield _of_draw(
                    section,
                    stray.label,
                    stray.items,
                    partial(stray.pair, WORLDS[0]),
                    is_promised=True,
                )


def duration(seconds: float) -> str:
    """75 -> '1:15'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def source_of(seed: int, section: str, world: str, label: str) -> np.random.Generator:
    """Return the numbers of a cell; they depend on its name and on nothing that is measured before it."""
    return np.random.default_rng([seed, *(zlib.crc32(text.encode()) for text in (section, world, label))])


def _of_cell(cell: Cell) -> Job:
    condition, world = cell.condition, cell.world
    sign = 1 if world.score.higher_is_better else -1

    def run(trials: int, seed: int, rules: Sequence[Rule]) -> Measured:
        source = source_of(seed, cell.section, world.name, cell.label)

        def one(source: np.random.Generator) -> Pair:
            drawn = draw(world, condition, source)
            return Pair(drawn.base, drawn.model, world.score, condition.groups, condition.is_paired)

        judged, values = _judged(one, trials, source, rules, truth=sign * condition.points / 100)
        effect = int(condition.points > 0)
        return Measured(
            section=cell.section,
            world=world.name,
            label=cell.label,
            protocols=world.protocols,
            items=condition.items,
            units=condition.units,
            effect=condition.points,
            mean_difference=100 * sign * float(np.mean(values)),
            deviation=100 * float(np.std(values)),
            is_promised=cell.is_promised,
            judged=[tally.judgement(effect=effect) for tally in judged],
        )

    return Job(cell.section, world.name, cell.label, run)


def _of_draw(section: Section, label: str, items: int, one: Draw, *, is_promised: bool) -> Job:
    """A cell of class maps whose sides do not truly differ."""

    def run(trials: int, seed: int, rules: Sequence[Rule]) -> Measured:
        world = WORLDS[0]
        judged, values = _judged(one, trials, source_of(seed, section, world.name, label), rules, truth=0.0)
        return Measured(
            section=section,
            world=world.name,
            label=label,
            protocols=world.protocols,
            items=items,
            units=items,
            effect=0.0,
            mean_difference=100 * float(np.mean(values)),
            deviation=100 * float(np.std(values)),
            is_promised=is_promised,
            judged=[tally.judgement() for tally in judged],
        )

    return Job(section, WORLDS[0].name, label, run)


def _judged(
    one: Draw, trials: int, source: np.random.Generator, rules: Sequence[Rule], *, truth: float
) -> tuple[list[Tally], list[float]]:
    """Tallies by rule, and the difference of each trial."""
    tallies, values = [Tally(rule.name, truth) for rule in rules], []
    for _ in range(trials):
        pair = one(source)
        means = [
            np.mean([pair.score.value(rows) for training in side for rows in training])
            for side in (pair.model, pair.base)
        ]
        values.append(float(means[0] - means[1]))
        for rule, tally in zip(rules, tallies, strict=True):
            found = rule.judge(pair)
            tally.add(found.word, found.low, found.high, rises=pair.score.higher_is_better)
    return tallies, values


def _overall(look: Looks, trials: int, seed: int, rules: Sequence[Rule]) -> Measured:
    """Overall words, of which every one but "no difference" is wrong."""
    tallies = [Tally(rule.name, None) for rule in rules]
    source = source_of(seed, "overall", "several", look.label)
    for _ in range(trials):
        pairs = look.pairs(source)
        for rule, tally in zip(rules, tallies, strict=True):
            tally.add(rule.overall(pairs))
    return Measured(
        section="overall",
        world="several",
        label=look.label,
        protocols=(),
        items=look.items,
        units=look.items,
        effect=0.0,
        mean_difference=None,
        deviation=None,
        is_promised=True,
        judged=[tally.judgement() for tally in tallies],
    )
