# SPDX-License-Identifier: Apache-2.0
"""Trials of their own kind: several protocols at once, a step that a probe chose, a class without labels. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rekindle.calibration.rules import Pair
from rekindle.calibration.trials import COMMON, ITEM_NOISE, QUIET, Condition, draw
from rekindle.calibration.worlds import Items, World
from rekindle.calibration.worlds_of_scores import WORLDS
from rekindle.evaluation.scores.kinds import Means

STEPS = 10


@dataclass(frozen=True)
class Looks:
    """Several protocols on the same items, of which none differs.

    Attributes:
        items: how many.
        protocols: how many.
        alike: correlation of the differences of two protocols; None for a mixture of all kinds of score, each on its own.

    """

    items: int
    protocols: int
    alike: float | None

    @property
    def label(self) -> str:
        """What it is called."""
        how = "of all kinds" if self.alike is None else f"means that correlate by {self.alike:g}"
        return f"{self.protocols} protocols, {self.items} items, {how}"

    def pairs(self, source: np.random.Generator) -> Mapping[str, Pair]:
        """Draw a trial."""
        if self.alike is None:
            return dict(self._mixture(source))
        score = Means(headline="score", names=["score"])
        shape = (self.protocols, self.items)
        level = 0.5 + 0.2 * source.standard_normal(shape)
        apart = math.sqrt(self.alike) * source.standard_normal((1, self.items))
        apart = apart + math.sqrt(1 - self.alike) * source.standard_normal(shape)
        sides = [np.stack([x, np.ones(shape)], axis=-1)[:, None] for x in (level, level + 0.05 * apart)]
        return {str(k): Pair([sides[0][k]], [sides[1][k]], score) for k in range(self.protocols)}

    def _mixture(self, source: np.random.Generator) -> Iterator[tuple[str, Pair]]:
        judged = [world for world in WORLDS if world.score.is_judged]
        for world in judged[: self.protocols]:
            drawn = draw(world, Condition(self.items), source)
            yield world.name, Pair(drawn.base, drawn.model, world.score)


LOOKS = tuple(Looks(items, count, alike) for items in (30, 124) for count in (4, 8) for alike in (0.0, 0.5, None))


@dataclass(frozen=True)
class Choice:
    """The best of ten probe steps that do not differ from the base: seed 0 probes, seeds 1 to 3 judge.

    Attributes:
        items: how many are labelled.
        likeness: correlation of what a step and the step before it make of an item.
        on_others: half of the items chooses and the other half judges.

    """

    items: int
    likeness: float
    on_others: bool

    @property
    def label(self) -> str:
        """What it is called."""
        judged = "the other half judges" if self.on_others else "the same items judge"
        return f"{self.items} items, steps that correlate by {self.likeness:g}, {judged}"

    @property
    def judging(self) -> int:
        """How many items judge."""
        return self.items - self.items // 2 if self.on_others else self.items

    def pair(self, world: World, source: np.random.Generator) -> Pair:
        """Draw a trial: the base and the chosen step on the items that judge."""
        models = 1 + STEPS
        shifts = COMMON * world.unit * source.standard_normal((1, 4, world.places))
        shifts = shifts + QUIET * world.unit * source.standard_normal((models, 4, world.places))
        items = Items.of_size(self.items, likeness=self.likeness)
        rows = world.rows(source, items, shifts, noise=ITEM_NOISE)
        chooses = np.ones(self.items, bool)
        judges = chooses
        if self.on_others:
            chooses = source.permutation(self.items) < self.items // 2
            judges = ~chooses
        probed = [world.score.value(step[0, chooses]) for step in rows[1:]]
        best = 1 + int(np.argmax(probed))
        return Pair([rows[0, 1:, judges].swapaxes(0, 1)], [rows[best, 1:, judges].swapaxes(0, 1)], world.score)


CHOICES = tuple(
    Choice(items, likeness, on_others) for items in (60, 124) for likeness in (0.0, 0.8) for on_others in (False, True)
)


@dataclass(frozen=True)
class Stray:
    """A class that no label holds and of which the base predicts five pixels on a tenth of the items.

    Attributes:
        items: how many.
        sides: 1 where the base alone does, 2 where both do, each on items of its own.

    """

    items: int
    sides: int

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{self.items} items, {'one side predicts' if self.sides == 1 else 'both sides predict'} the class"

    def pair(self, world: World, source: np.random.Generator) -> Pair:
        """Draw a trial, in a world of class maps."""
        drawn = draw(world, Condition(self.items, seeds=3), source)
        rare, classes = world.places - 1, world.places
        sides = [np.array(side[0]) for side in (drawn.base, drawn.model)]
        for side, rows in enumerate(sides):
            rows[..., [rare, classes + rare, 2 * classes + rare]] = 0
            if side < self.sides:
                rows[..., 2 * classes + rare] = 5.0 * (source.random(self.items) < 0.1)
        return Pair([sides[0]], [sides[1]], world.score)


STRAYS = tuple(Stray(items, sides) for items in (30, 124) for sides in (1, 2))
