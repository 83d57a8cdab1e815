# SPDX-License-Identifier: Apache-2.0
"""Drawing on views."""

from __future__ import annotations

import torch

from rekindle.views.marking import BLUE, RED, as_bytes, boxed, faded, located, patch_boxes


def test_normalisation_is_undone() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    view = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shape = (3, 1, 1)
    pixels = (view / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.equal(as_bytes(pixels, mean, std), view)


def test_hidden_patches_fade_and_visible_ones_stay() -> None:
    view = torch.full((3, 4, 4), 55, dtype=torch.uint8)
    found = faded(view, torch.tensor([[True, False], [False, True]]))
    assert bool((found[:, :2, :2] == 55).all()) and bool((found[:, 2:, 2:] == 55).all())
    assert bool((found[:, :2, 2:] == 205).all())


def test_a_box_lies_on_the_edge_of_its_patch() -> None:
    view = torch.zeros(3, 16, 16, dtype=torch.uint8)
    drawn = boxed(view, patch_boxes(torch.tensor([6]), (4, 4)), BLUE)  # second row, third column
    rows, columns = drawn.sum(dim=0).nonzero(as_tuple=True)
    assert [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())] == [4, 7, 8, 11]
    assert drawn[:, 4, 8].tolist() == list(BLUE)


def test_a_box_outside_is_cut_off() -> None:
    view = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert torch.equal(boxed(view, torch.tensor([[-2.0, -2.0, 0.5, 0.5]]), BLUE), view)
    partly = boxed(view, torch.tensor([[0.5, 0.5, 3.0, 3.0]]), BLUE)
    assert partly[:, 7, 7].tolist() == list(BLUE)


def test_a_query_is_drawn_over_its_places_and_what_it_could_not_see_is_faded() -> None:
    views = torch.full((1, 3, 16, 16), 55, dtype=torch.uint8)
    visible = torch.ones(1, 4, 4, dtype=torch.bool)
    visible[0, 3, 0] = False
    drawn = located(views, visible, torch.tensor([[0, 6]]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]))[0]
    assert drawn[:, 0, 0].tolist() == drawn[:, 4, 8].tolist() == list(RED)
    assert drawn[:, 8, 8].tolist() == drawn[:, 9, 9].tolist() == list(BLUE)  # two pixels wide
    assert drawn[:, 14, 2].tolist() == [205, 205, 205]
    assert drawn[:, 6, 2].tolist() == [55, 55, 55]
