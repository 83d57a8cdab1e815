# SPDX-License-Identifier: Apache-2.0
"""Made-up rows: those of every protocol, with the differences that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from rekindle.calibration.trials import Condition, draw
from rekindle.calibration.worlds import Items, World
from rekindle.calibration.worlds_of_scores import WORLDS
from rekindle.evaluation import PROTOCOLS

every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


def test_every_protocol_has_a_world() -> None:
    named = [name for world in WORLDS for name in world.protocols]
    assert set(named) == set(PROTOCOLS)


@every_world
def test_rows_are_those_of_the_score_and_equal_shifts_are_equally_good(world: World) -> None:
    source = np.random.default_rng(3)
    rows = world.rows(source, Items.of_size(3000), np.zeros((2, 1, world.places)), noise=0.0)
    assert rows.shape == (2, 1, 3000, len(world.score.columns))
    base, model = (world.score.value(side[0]) for side in rows)
    assert 0.05 < base < 1 and base != model
    assert abs(model - base) < 0.03


@every_world
def test_a_planted_effect_has_its_size(world: World) -> None:
    """On other draws than those on which the shift was found."""
    sign = 1 if world.score.higher_is_better else -1
    source = np.random.default_rng(4)
    differences = []
    for _ in range(3):
        sides = draw(world, Condition(2000, points=2.0), source)
        differences.append(world.score.value(sides.model[0][0]) - world.score.value(sides.base[0][0]))
    noise = 5 * np.std([_difference(world, source) for _ in range(6)]) / np.sqrt(3)
    assert 100 * sign * np.mean(differences) == pytest.approx(2.0, abs=0.1 + 100 * noise)


def _difference(world: World, source: np.random.Generator) -> float:
    sides = draw(world, Condition(2000), source)
    return world.score.value(sides.model[0][0]) - world.score.value(sides.base[0][0])


def test_runs_spread_by_as_many_points_as_asked() -> None:
    """Of one recipe, measured on the same items: the spread of the score over trainings, in points."""
    world, source = WORLDS[0], np.random.default_rng(5)
    condition = Condition(4000, trainings=40, spread=2.0, question="the recipe, against a fixed base")
    values = [world.score.value(side[0]) for side in draw(world, condition, source).model]
    assert 100 * np.std(values) == pytest.approx(2.0, rel=0.35)


def test_a_group_has_its_share_in_common() -> None:
    items = Items.of_size(6000, size=5, share=0.6)
    drawn = items.normals(np.random.default_rng(6), width=3)
    assert np.mean(drawn[0::5] * drawn[1::5]) == pytest.approx(0.6, abs=0.05)
    assert np.mean(drawn[4:-1:5] * drawn[5::5]) == pytest.approx(0.0, abs=0.05)
    assert drawn.std() == pytest.approx(1.0, abs=0.03)


def test_steps_of_a_run_are_alike_and_the_base_is_not() -> None:
    drawn = Items.of_size(20_000, likeness=0.8).apart(np.random.default_rng(7), 4)[..., 0]
    correlation = np.asarray(np.corrcoef(drawn))
    assert correlation[1, 2] == pytest.approx(0.8, abs=0.02)
    assert correlation[1, 3] == pytest.approx(0.64, abs=0.02)
    assert correlation[0, 1] == pytest.approx(0.0, abs=0.03)


def test_pairs_have_a_seed_of_their_own() -> None:
    condition = Condition(12, seeds=3, trainings=3, question="the recipe, a seed for each training")
    sides = draw(WORLDS[1], condition, np.random.default_rng(8))
    assert [side.shape[:2] for side in sides.base] == [(3, 12)]
    assert [side.shape[:2] for side in sides.model] == [(1, 12)] * 3
