# SPDX-License-Identifier: Apache-2.0
"""Proposals: what names, times and pictures speak for, and that independent images are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from rekindle.evaluation.verdict.groups import group_items, read_rule
from rekindle.evaluation.verdict.proposals import (
    are_evident,
    film_piece,
    from_names,
    from_times,
    near_copies,
    piece_length,
    time_in,
)

SEEN: dict[str, tuple[list[str], list[tuple[str, int]]]] = {
    "slices": ([f"P{p:02}_slice{s}" for p in range(9) for s in (3, 8, 9)], [(r"name:^(.+?)_slice\d+$", 9)]),
    "tiles": (
        [f"t{t}p1_r{r}c{c}" for t in range(10) for r in range(2) for c in range(2)],
        [(r"name:^(.+?)_r\d+c\d+$", 10)],
    ),
    "tiles by two numbers": (
        [f"slide{s}_{y}_{x}" for s in range(8) for y in range(3) for x in range(3)],
        [(r"name:^(.+?)_\d+_\d+$", 8)],
    ),
    "folders": ([f"site/p{p}/{s}" for p in range(8) for s in "xyz"], [("folder", 8)]),
    "folders in few folders": (
        [f"{site}/p{p}/{s}" for site in "ab" for p in range(4) for s in "xyz"],
        [("folder", 8), ("folder:1", 2)],
    ),
    "one film": ([f"drive_{n:05}" for n in range(0, 3000, 30)], [("every:8", 13)]),
    "every tenth frame, some of them": ([f"{10 * (n * n // 3)}" for n in range(2, 42)], [("every:5", 8)]),
    "frames by name": ([f"frame{n:03}" for n in range(80)], [("every:6", 14)]),
    "two films": (
        [f"{film}_{n}" for film in ("s1", "s2") for n in range(0, 1500, 30)],
        [("every:8", 13), (r"name:^(.+?)_\d+$", 2)],
    ),
    "cameras apart": (
        [*(f"left_f{n}" for n in range(30)), *(f"right_{n}" for n in range(30))],
        [(r"name:^(.+?)[_\-. ]+[A-Za-z]{0,8}\d+$", 2)],
    ),
}
ALONE: dict[str, list[str]] = {
    "numbers alone": [f"{n:03}" for n in range(60)],
    "one stem": [f"IMG_{n:04}" for n in range(60)],
    "numbers with holes": [f"{n * n + n % 7:012}" for n in range(60)],
    "years": [f"20{y}_{(n * n * 37) % 9973:06}" for y in ("07", "08", "09") for n in range(1, 40)],
    "half of the steps even": [f"{n // 2}{n % 2}5{n // 2}" for n in range(18)],
    "hashes": [f"dark_{np.random.default_rng(n).integers(2**48):x}" for n in range(60)],
    "a folder each": [f"p{n}/image" for n in range(20)],
    "a folder for all": [f"all/{n}" for n in range(20)],
    "nothing": [],
}


@pytest.mark.parametrize("kind", SEEN)
def test_names_that_speak_for_groups_give_rules_that_work(kind: str) -> None:
    items, expected = SEEN[kind]
    found = from_names(items)
    assert [(p.rule, len(p.sizes)) for p in found] == expected
    for proposal in found:
        made = group_items(read_rule(proposal.rule), items, "val")
        assert len({*made.of.values()}) == len(proposal.sizes)
        assert sum(proposal.sizes) == len(items)


@pytest.mark.parametrize("kind", ALONE)
def test_names_that_say_nothing_give_no_rule(kind: str) -> None:
    assert from_names(ALONE[kind]) == []


def test_classes_are_no_groups_and_scenes_inside_them_are() -> None:
    items = [f"{kind}/{kind}{n}" for kind in ("field", "harbour", "street") for n in range(10)]
    classes = [item.partition("/")[0] for item in items]
    assert [p.rule for p in from_names(items)] == ["folder"]
    assert from_names(items, classes) == []
    scenes = [f"{kind}/s{scene}_{n}" for kind in ("field", "street") for scene in range(5) for n in range(4)]
    assert [len(p.sizes) for p in from_names(scenes, [item.partition("/")[0] for item in scenes])] == [10]


def test_what_is_told_says_when_groups_are_too_few() -> None:
    few, pieces = from_names(SEEN["cameras apart"][0])[0], from_names(SEEN["one film"][0])[0]
    assert few.told == "2 groups of 30 images; fewer than 8 groups cannot be judged"
    assert pieces.told == "13 groups of 4 to 8 images (median 8)"


def test_gaps_far_longer_than_usual_begin_a_series() -> None:
    times = [start + 2.0 * n for start in (0, 500, 9000) for n in range(5)]
    assert from_times(times) == [0] * 5 + [1] * 5 + [2] * 5
    assert from_times(times[::-1]) == [2] * 5 + [1] * 5 + [0] * 5
    assert from_times([*times, None]) is None
    source = np.random.default_rng(0)
    assert from_times(source.exponential(60, 200).cumsum().tolist()) is None  # whenever somebody took a picture
    assert from_times([86400.0 * n for n in range(30)]) is None  # one a day
    assert from_times([0.0]) is None


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("IMG_20230501_120003", 1682942403.0),
        ("cam/2023-05-01_12-00-03", 1682942403.0),
        ("2023-05-01T12:00:03", 1682942403.0),
        ("seg/1682942403", 1682942403.0),
        ("seg/1682942403500", 1682942403.5),
        ("seg/1682942403500000", 1682942403.5),
        ("20231501_120003", None),
        ("0016E5_08001", None),
        ("000000000139", None),
    ],
)
def test_times_in_names(name: str, seconds: float | None) -> None:
    assert time_in(name) == seconds


def test_near_copies_are_found_among_all_and_chain() -> None:
    source = np.random.default_rng(0)
    bits = source.random((30, 240)) < 0.5
    bits[7] = bits[2]
    bits[7, :15] ^= True
    bits[21] = bits[7]
    bits[21, 15:30] ^= True  # 30 bits from the first, 15 from the second
    sets = near_copies(bits)
    assert [place for place, own in enumerate(sets) if own == 2] == [2, 7, 21]
    assert len({*sets}) == 28
    assert are_evident(sets)
    assert not are_evident(near_copies(source.random((30, 240)) < 0.5))
    assert not are_evident([0] * 30)


def test_pictures_that_resemble_the_next_one_are_a_film() -> None:
    source = np.random.default_rng(0)
    frames = [source.random(240) < 0.5]
    for _ in range(99):
        frames.append(np.where(source.random(240) < 0.1, source.random(240) < 0.5, frames[-1]))
    film, names = np.stack(frames), [f"f{n}" for n in range(100)]
    assert film_piece(film, names) == piece_length(100, 30) == 12
    order = source.permutation(100)
    assert film_piece(film[order], [names[place] for place in order]) == 12  # by name, in whatever order they come
    assert film_piece(film[order], names) == 0
    assert film_piece(film[:15], names[:15]) == 0  # too few for pieces


def test_pieces_leave_enough_of_them() -> None:
    assert [piece_length(n, w) for n, w in ((100, 3), (100, 9), (100, 50), (1000, 90), (20, 9), (15, 9))] == [
        5,
        9,
        12,
        30,
        2,
        0,
    ]
