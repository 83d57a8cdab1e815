# SPDX-License-Identifier: Apache-2.0
"""The cells of the simulation: which situations are tried, by section. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from rekindle.calibration.trials import NOISY, QUIET, Condition, Question
from rekindle.calibration.worlds import World
from rekindle.calibration.worlds_of_scores import WORLDS

Section = Literal["items", "few", "groups", "seeds", "trainings", "effects", "overall", "chosen", "stray", "real"]
SECTIONS: tuple[Section, ...] = get_args(Section)
WHAT: dict[Section, str] = {
    "items": "the same model twice, independent items",
    "few": "too few items or groups to judge",
    "groups": "the same model twice, items in groups",
    "seeds": "a head that is noisy from seed to seed",
    "trainings": "the same recipe, other training seeds",
    "effects": "planted effects, coverage and power",
    "overall": "the overall word over several protocols",
    "chosen": "the best of ten steps, judged by others",
    "stray": "a class that no label holds",
    "real": "small models under every protocol",
}
GROUPS = ((8, 5), (24, 5), (8, 20), (15, 20))
"""Groups, and items of each."""
SHARES = (0.35, 0.65)
"""What a group has in common of every effect; the influences of mIoU's difference then correlate by about 0.3 and 0.6."""
AGAINST: dict[Question, str] = {
    "the recipe, against a fixed base": "against a fixed base",
    "the recipe, against a recipe": "against another recipe",
    "the recipe, a seed for each training": "of a seed each",
}
"""How the questions about a recipe are called in labels."""
SPREADS = (0.0, 0.3, 0.6, 1.0)
POINTS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Cell:
    """One situation in one world."""

    section: Section
    world: World
    condition: Condition

    @property
    def label(self) -> str:
        """What it is called, unique within section and world."""
        c = self.condition
        if c.question != "this model":
            runs = f"{c.trainings} runs" if c.trainings > 1 else "1 run"
            return f"{runs} {AGAINST[c.question]}, spread {c.spread:g}"
        parts = [f"{c.units} groups of {c.group_size}, share {c.share:g}" if c.group_size > 1 else f"{c.items} items"]
        parts += [f"{c.seeds} evaluation seeds"] if c.seeds > 1 else []
        parts += ["1 evaluation seed"] if c.seeds == 1 and c.seed_points else []
        parts += ["noisy head"] if c.seed_points == NOISY else []
        parts += [f"effect {c.points:g}"] if c.points else []
        return ", ".join(parts)

    @property
    def is_promised(self) -> bool:
        """Whether the verdict has to be right here: there is enough to judge, and what is asked can be read from the rows.

        One training says nothing of its recipe, and one evaluation seed nothing of others.
        """
        c = self.condition
        enough = c.units >= (8 if c.group_size > 1 else 30)
        is_answered = c.question == "this model" or c.trainings > 1
        return enough and is_answered and (c.seeds > 1 or c.seed_points == 0)


def cells_of(section: Section, *, is_short: bool = False) -> Iterator[Cell]:
    """Yield the cells of a section that simulates pairs of models; none for those that have trials of their own kind."""
    worlds = WORLDS[:3] if is_short else WORLDS
    main = WORLDS[0]
    if section == "items":
        for world in worlds:
            for items in (30, 124) if is_short else (30, 50, 124, 300):
                yield Cell(section, world, Condition(items))
                if world is main:
                    yield Cell(section, world, Condition(items, seeds=3, seed_points=QUIET))
    elif section == "few":
        for world in (main,) if is_short else (main, WORLDS[1]):
            for items in (10, 20):
                yield Cell(section, world, Condition(items))
            yield Cell(section, world, Condition(80, group_size=20, share=SHARES[0]))
    elif section == "groups":
        for world in worlds:
            every = world is main and not is_short
            for share in SHARES if every else SHARES[1:]:
                for count, size in GROUPS if every else ((8, 5), (15, 20)):
                    seeds, points = (3, QUIET) if world is main else (1, 0.0)
                    condition = Condition(count * size, size, share, seeds=seeds, seed_points=points)
                    yield Cell(section, world, condition)
    elif section == "seeds":
        for items in (30, 124, 300):
            yield Cell(section, main, Condition(items, seed_points=QUIET))
            for seeds in (1, 3, 5):
                yield Cell(section, main, Condition(items, seeds=seeds, seed_points=NOISY))
    elif section == "trainings":
        yield from _trainings(main, is_short)
        if not is_short:
            yield from _trainings(WORLDS[1], is_short=True)
    elif section == "effects":
        for world in worlds:
            for points in POINTS if world is main else (1.0, 2.0):
                for items in (50, 124, 300) if world is main and not is_short else (124,):
                    seeds, own = (3, QUIET) if world is main else (1, 0.0)
                    yield Cell(section, world, Condition(items, seeds=seeds, seed_points=own, points=points))
        for points in POINTS if not is_short else ():
            yield Cell(section, main, Condition(120, 5, SHARES[0], seeds=3, seed_points=QUIET, points=points))


def _trainings(world: World, is_short: bool) -> Iterator[Cell]:
    """Is the recipe better? Trainings of recipes that do not differ."""
    questions: tuple[Question, ...] = ("the recipe, against a fixed base", "the recipe, against a recipe")
    for spread in SPREADS if not is_short else (0.3, 1.0):
        for question in questions:
            for trainings in (1, 3, 5) if not is_short else (3,):
                if trainings == 1 and spread == 0:
                    continue
                condition = Condition(
                    124, seeds=3, seed_points=QUIET, trainings=trainings, spread=spread, question=question
                )
                yield Cell("trainings", world, condition)
    for spread in SPREADS[2:] if not is_short else ():
        for trainings in (3, 5):
            paired: Question = "the recipe, a seed for each training"
            condition = Condition(
                124, seeds=trainings, seed_points=QUIET, trainings=trainings, spread=spread, question=paired
            )
            yield Cell("trainings", world, condition)
