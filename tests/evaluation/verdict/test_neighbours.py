# SPDX-License-Identifier: Apache-2.0
"""Neighbours: independent items seldom look alike, films mostly do, and a class that orders the items is no film."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from rekindle.evaluation.scores.kinds import MeanIou, Means
from rekindle.evaluation.verdict.neighbours import Neighbours, neighbours, of_series

ACCURACY = Means(headline="accuracy", names=["accuracy"])
Series = Callable[[np.random.Generator, int], NDArray[np.float64]]


def alone(count: int) -> NDArray[np.int64]:
    return np.zeros(count, dtype=np.int64)


def film(source: np.random.Generator, count: int, correlation: float = 0.4) -> NDArray[np.float64]:
    """A series in which the next value correlates as asked, and those after it ever less."""
    noise = source.standard_normal(count)
    values = noise.copy()
    for place in range(1, count):
        values[place] = correlation * values[place - 1] + np.sqrt(1 - correlation**2) * noise[place]
    return values


def share_alike(series: Series, trials: int, count: int = 100) -> float:
    source = np.random.default_rng(0)
    found = [of_series(series(source, count), alone(count)) for _ in range(trials)]
    return float(np.mean([f is not None and f.are_alike for f in found]))


@pytest.mark.parametrize(
    "series",
    [lambda s, n: s.standard_normal(n), lambda s, n: s.lognormal(0.0, 1.2, n), lambda s, n: (s.random(n) < 0.1) * 1.0],
    ids=["normal", "heavy tail", "yes or no"],
)
def test_independent_items_are_called_alike_in_at_most_one_of_a_hundred_cases(series: Series) -> None:
    assert share_alike(series, trials=500, count=40) <= 0.01


def test_a_film_is_mostly_seen_and_how_much_too_narrow_the_interval_is() -> None:
    assert share_alike(film, trials=40) >= 0.7
    source = np.random.default_rng(1)
    found = [of_series(film(source, 400), alone(400)) for _ in range(10)]
    widening = np.mean([f.widening for f in found if f])
    assert widening == pytest.approx(np.sqrt(1 + 2 * 0.4 / 0.6), rel=0.15)  # of an AR(1) series
    groups = [of_series(np.repeat(source.standard_normal(80), 5), alone(400)) for _ in range(10)]
    assert np.mean([f.widening for f in groups if f]) == pytest.approx(
        np.sqrt(5), rel=0.1
    )  # 80 values, each five times


def test_influences_are_those_of_the_items_in_the_order_of_their_names() -> None:
    source = np.random.default_rng(0)
    hits = source.random((1, 40, 1)) + np.zeros((2, 1, 1))
    model = hits + np.sin(np.arange(40) / 4)[None, :, None]  # the difference is a slow wave
    weight = np.ones((2, 40, 1))
    base, other = np.concatenate([hits, weight], axis=2), np.concatenate([model, weight], axis=2)
    names = [f"f{number}" for number in range(40)]
    found = neighbours([base], [other], ACCURACY, names)
    assert found is not None
    assert found.are_alike
    assert found.correlation > 0.9
    shuffled = source.permutation(40)
    again = neighbours([base[:, shuffled]], [other[:, shuffled]], ACCURACY, [names[i] for i in shuffled])
    assert again is not None
    assert again.correlation == pytest.approx(found.correlation)
    mixed = neighbours([base[:, shuffled]], [other[:, shuffled]], ACCURACY, names)
    assert mixed is not None
    assert not mixed.are_alike


def test_classes_that_order_the_items_are_no_neighbours() -> None:
    source = np.random.default_rng(0)
    classes = [f"c{number // 10}" for number in range(100)]
    values = np.repeat(source.standard_normal(10), 10) + 0.3 * source.standard_normal(100)
    rows = np.stack([values, np.ones(100)], axis=1)[None]
    names = [f"{name}/{number:03}" for number, name in enumerate(classes)]
    base = rows * [0.0, 1.0]
    blind = neighbours([base], [rows], ACCURACY, names)
    seeing = neighbours([base], [rows], ACCURACY, names, classes)
    assert blind is not None
    assert seeing is not None
    assert (blind.are_alike, seeing.are_alike) == (True, False)


def test_nothing_is_said_where_nothing_can_be() -> None:
    rows = np.ones((1, 12, 2))
    names = [str(n) for n in range(12)]
    assert neighbours([rows], [rows], ACCURACY, names) is None  # no influence at all
    assert neighbours([rows[:, :5]], [rows[:, :5]], ACCURACY, names[:5]) is None
    single = np.zeros((1, 12, 3))
    single[0, 0] = 1  # one image holds the only class: without it there is no value
    assert neighbours([single], [single], MeanIou(class_names=["a"]), names) is None
    assert of_series(np.arange(12.0), np.arange(12)) is None  # every item a class of its own


def test_the_sentence_advises_pieces_that_leave_enough_of_them() -> None:
    told = Neighbours(0.44, 0.36, True, reach=6, widening=1.9, num_items=171).told
    assert "correlate by 0.44 with the next item's, by 0.36 on average over the next four" in told
    assert "by a factor of about 1.9: say what belongs together, for example --group-by every:12" in told
    assert Neighbours(0.4, 0.3, True, reach=20, widening=2.0, num_items=80).piece == 10
    assert "and measure more of them" in Neighbours(0.4, 0.3, True, reach=2, widening=1.5, num_items=12).told
