# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from rekindle.core.progress import Progress
from rekindle.core.rng import row_normal, row_uniform, seeded_default


def test_two_shares_together_draw_what_one_process_draws() -> None:
    for draw in (row_uniform, row_normal):
        whole = draw("x", Progress(3, 10, seed=1), 6, 4)
        halves = [draw("x", Progress(3, 10, seed=1, slot=s, num_slots=2), 3, 4) for s in range(2)]
        assert torch.equal(whole, torch.cat(halves))


def test_draws_depend_on_purpose_step_and_seed() -> None:
    reference = row_uniform("x", Progress(3, 10, seed=1), 6)
    for other in (
        row_uniform("y", Progress(3, 10, seed=1), 6),
        row_uniform("x", Progress(4, 10, seed=1), 6),
        row_uniform("x", Progress(3, 10, seed=2), 6),
    ):
        assert not torch.equal(reference, other)


def test_the_default_generator_is_put_back() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded_default(5, "step", 1):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded_default(5, "step", 1):
        assert torch.equal(torch.rand(3), inside)
