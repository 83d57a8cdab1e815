# SPDX-License-Identifier: Apache-2.0
"""Drawing on views."""

from __future__ import annotations

import torch

from rekindle.views.marking import BLUE, as_bytes, boxed, faded, patch_boxes


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
