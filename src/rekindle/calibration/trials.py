# SPDX-License-Identifier: Apache-2.0
"""What a cell of the simulation assumes, and the rows of one of its trials. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.calibration.worlds import Array, Items, World

Question = Literal[
    "this model",
    "the recipe, against a fixed base",
    "the recipe, against a recipe",
    "the recipe, a seed for each training",
]
QUIET, NOISY = 0.05, 0.4
"""Points that an evaluation seed does to one side alone: frozen heads and a trained decoder, as measured on street scenes."""
COMMON = 0.3
"""Points that an evaluation seed does to both sides alike."""
ITEM_NOISE = 0.05
"""What an evaluation seed does to a single item of one side, in the latent quality."""


@dataclass(frozen=True)
class Condition:
    """What is true in a cell.

    Attributes:
        items: how many there are.
        group_size: items of a group.
        share: of a group in every effect of an item (`worlds.Items`).
        seeds: evaluation seeds.
        seed_points: standard deviation of what an evaluation seed does to one side alone, in points; 0 where nothing is random.
        trainings: training seeds of a recipe.
        spread: standard deviation of the trainings of a recipe, in points.
        question: what the verdict is read as an answer to. Asked about this model, a run's own luck is part of what is true
            of it; asked about the recipe, only the mean over all its runs is.
        points: true difference, in points of the good direction.

    """

    items: int
    group_size: int = 1
    share: float = 0.0
    seeds: int = 1
    seed_points: float = 0.0
    trainings: int = 1
    spread: float = 0.0
    question: Question = "this model"
    points: float = 0.0

    @property
    def units(self) -> int:
        """What a resample should draw: groups, or items."""
        return self.items // self.group_size

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The group of each item; None where items stand alone."""
        return Items.of_size(self.items, self.group_size).groups if self.group_size > 1 else None

    @property
    def is_paired(self) -> bool:
        """Whether each training is measured with one evaluation seed, its own, as the fixed base is with all of them."""
        return self.question == "the recipe, a seed for each training"

    @property
    def base_trainings(self) -> int:
        """Trainings of the base: one where it is a fixed model."""
        return self.trainings if self.question == "the recipe, against a recipe" else 1


@dataclass(frozen=True)
class Sides:
    """Rows of one trial: the trainings of the base and of the model, each [S, n, F]."""

    base: list[Array]
    model: list[Array]


def draw(world: World, condition: Condition, source: np.random.Generator) -> Sides:
    """Draw the rows of a trial; of pairs there are as many evaluation seeds as trainings."""
    fixed = condition.base_trainings
    models, width = fixed + condition.trainings, world.places
    shifts = COMMON * world.unit * source.standard_normal((1, condition.seeds, width))
    shifts = shifts + condition.seed_points * world.unit * source.standard_normal((models, condition.seeds, width))
    runs = condition.spread * world.unit * source.standard_normal((models, 1, width))
    if condition.question in ("the recipe, against a fixed base", "the recipe, a seed for each training"):
        runs[0] = 0.0
    shifts = shifts + runs
    if condition.points:
        sign = 1 if world.score.higher_is_better else -1
        shifts[fixed:] += world.shift_of(sign * condition.points)
    items = Items.of_size(condition.items, condition.group_size, condition.share)
    rows = world.rows(source, items, shifts, noise=ITEM_NOISE if condition.seed_points else 0.0)
    if condition.is_paired:
        return Sides([rows[0]], [rows[1 + t, t : t + 1] for t in range(condition.trainings)])
    return Sides(list(rows[:fixed]), list(rows[fixed:]))
