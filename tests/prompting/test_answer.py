# SPDX-License-Identifier: Apache-2.0
"""Places to scores, scores to masks: against loops, and against the single prompt of the paper."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from rekindle.core.errors import RequestError
from rekindle.measuring.looking import Look, similar_to
from rekindle.prompting.answer import Prompt, contour_picture, mask_of, place_of, score_patches

SIZE = (50, 70)
GRID = (5, 7)


@pytest.fixture(scope="module")
def seen() -> Look:
    draw = np.random.default_rng(0)
    return Look(np.zeros((40, 56, 3), np.uint8), draw.normal(size=(*GRID, 6)).astype(np.float32), None)


def cosine(seen: Look, first: tuple[int, int], second: tuple[int, int]) -> float:
    a, b = seen.patches[first].tolist(), seen.patches[second].tolist()
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def slow_scores(seen: Look, added: list[tuple[int, int]], subtracted: list[tuple[int, int]]) -> NDArray[np.float64]:
    """By the words of the module, patch by patch; places are patches."""
    found = np.zeros(GRID)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            wanted = max(cosine(seen, place, (row, column)) for place in added)
            unwanted = max([cosine(seen, place, (row, column)) for place in subtracted], default=-math.inf)
            found[row, column] = wanted if wanted > unwanted else min(wanted, -unwanted)
    return found


@pytest.mark.parametrize("subtracted", [[], [(4, 6)], [(4, 6), (2, 3)]])
@pytest.mark.parametrize("added", [[(0, 0)], [(0, 0), (3, 1)]])
def test_scores_are_those_of_the_definition_by_loops(
    seen: Look, added: list[tuple[int, int]], subtracted: list[tuple[int, int]]
) -> None:
    prompts = [Prompt(10 * r + 4, 10 * c + 9) for r, c in added]
    prompts += [Prompt(10 * r, 10 * c + 5, is_added=False) for r, c in subtracted]
    assert np.allclose(score_patches(seen, prompts, SIZE), slow_scores(seen, added, subtracted), atol=1e-6)


def test_one_added_place_is_the_papers_cosine(seen: Look) -> None:
    expected = similar_to(seen, (24.5 / 50, 33.5 / 70), threshold=0.3)
    scores = score_patches(seen, [Prompt(24, 33)], SIZE)
    assert np.array_equal(scores, expected.cosines)
    assert np.array_equal(mask_of(scores, GRID, 0.3), expected.mask)


def test_adding_never_shrinks_a_mask_and_subtracting_never_grows_one(seen: Look) -> None:
    one = [Prompt(5, 5)]
    more = [*one, Prompt(25, 45)]
    less = [*one, Prompt(45, 65, is_added=False)]
    for threshold in (0.0, 0.3, 0.6):
        masks = [mask_of(score_patches(seen, prompts, SIZE), SIZE, threshold) for prompts in (less, one, more)]
        assert not (masks[0] & ~masks[1]).any() and not (masks[1] & ~masks[2]).any()
    assert masks[1].sum() < masks[2].sum()


def test_what_is_subtracted_is_never_in_a_mask_even_at_threshold_zero(seen: Look) -> None:
    scores = score_patches(seen, [Prompt(5, 5), Prompt(25, 45, is_added=False)], SIZE)
    mask = mask_of(scores, SIZE, 0.0)
    assert mask[5, 5] and not mask[25, 45]


@pytest.mark.parametrize(
    ("size", "grid"), [((50, 70), (5, 7)), ((47, 61), (5, 7)), ((7, 5), (30, 30)), ((49, 49), (49, 49))]
)
def test_every_pixel_is_in_the_mask_of_its_own_place(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Each patch has an axis of its own, so the mask of a place is its patch."""
    tokens = np.eye(grid[0] * grid[1], dtype=np.float32).reshape(*grid, -1)
    image = Look(np.zeros((8, 8, 3), np.uint8), tokens, None)
    for row, column in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 3, size[1] // 2), (3, 4)]:
        assert mask_of(score_patches(image, [Prompt(row, column)], size), size, 0.5)[row, column]


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (50, 0), (0, 70)])
def test_a_pixel_outside_is_refused_with_what_is_allowed(place: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="outside the image; it has rows 0 to 49 and columns 0 to 69"):
        place_of(Prompt(*place), SIZE, GRID)


def test_places_to_leave_out_need_one_to_look_for(seen: Look) -> None:
    with pytest.raises(RequestError, match="add one before"):
        score_patches(seen, [Prompt(1, 1, is_added=False)], SIZE)


def test_masks_are_nested_in_the_threshold_and_follow_the_patches(seen: Look) -> None:
    scores = score_patches(seen, [Prompt(20, 20)], SIZE)
    masks = [mask_of(scores, SIZE, t) for t in (0.0, 0.2, 0.5, 0.9)]
    assert all(not (high & ~low).any() for low, high in pairwise(masks))
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            assert masks[1][row, column] == (scores[row // 10, column // 10] > 0.2)


def test_smooth_edges_interpolate_between_centres() -> None:
    """Scores 0 and 1 in two patches of 4 px: at column x they are (x + 0.5 - 2) / 4 between the centres."""
    mask = mask_of(np.array([[0.0, 1.0]]), (2, 8), 0.7, "smooth")
    expected = [min(1.0, max(0.0, (x + 0.5 - 2) / 4)) > 0.7 for x in range(8)]
    assert mask.tolist() == [expected, expected] and mask[0].tolist() == [False] * 4 + [False] + [True] * 3


def test_the_contour_runs_along_the_mask_and_not_along_the_frame() -> None:
    image = np.full((60, 60, 3), 120, np.uint8)
    mask = np.zeros((60, 60), np.bool_)
    mask[:, :30] = True
    found = contour_picture(image, mask)
    assert (found[30, 29] == 255).all() and (found[30, 30] == 0).all()
    assert (found[:, 5] == 120).all() and (found[0, 5] == 120).all()  # inside as it was, at the frame too
    assert (found[:, 50] == 84).all()  # dimmed outside: 120 / 2 + 24
    empty = contour_picture(image, np.zeros_like(mask))
    assert (empty == 84).all()
