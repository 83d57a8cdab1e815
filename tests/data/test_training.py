# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rekindle.core.errors import RekindleError
from rekindle.data.decoding import UnreadableImage
from rekindle.data.options import DataOptions
from rekindle.data.training import StepBatches, TrainingImages


class Levels:
    """Image i is filled with i; some cannot be read."""

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.broken = broken

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, draft_px: int | None, max_pixels: int) -> Tensor:
        assert (draft_px, max_pixels) == (64, 1000)
        if index in self.broken:
            raise UnreadableImage(f"{index}.jpg", "cut short")
        return torch.full((3, 2, 2), index, dtype=torch.uint8)


def level_and_draw(image: Tensor, generator: torch.Generator) -> tuple[int, float]:
    return int(image[0, 0, 0]), float(torch.rand((), generator=generator))


def training(count: int = 6, broken: frozenset[int] = frozenset(), seed: int = 0) -> TrainingImages[tuple[int, float]]:
    return TrainingImages(Levels(count, broken), level_and_draw, seed, DataOptions(draft_px=64, max_pixels=1000))


def keys(batches: StepBatches) -> list[list[tuple[int, int]]]:
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_an_item_depends_on_seed_draw_and_index_only() -> None:
    images = training()
    assert images[3, 2] == images[3, 2]
    assert images[3, 2][2][0] == 2
    draws = {images[3, 2][2][1], images[4, 2][2][1], training(seed=1)[3, 2][2][1]}
    assert len(draws) == 3


def test_an_unreadable_image_is_replaced_by_the_next_and_reported() -> None:
    images = training(broken=frozenset({1, 2, 5}))
    assert images[0, 0][:2] == (0, ())
    assert images[0, 1][:2] == (3, (1, 2))
    assert images[0, 5][:2] == (0, (5,))  # around the end


def test_without_any_readable_image_the_run_stops_with_the_reason_and_the_remedy() -> None:
    with pytest.raises(RekindleError, match=r"no readable image among 3; .*cut short.*rekindle check"):
        training(3, frozenset({0, 1, 2}))[0, 0]


def test_each_epoch_sees_each_image_at_most_once_in_another_order() -> None:
    batches = keys(StepBatches(10, 3, 1, [0], steps=6, start_step=0, seed=0))
    epochs = [[index for batch in batches[start : start + 3] for _, index in batch] for start in (0, 3)]
    for order in epochs:
        assert len(set(order)) == 9
    assert epochs[0] != epochs[1]
    draws = [draw for batch in batches for draw, _ in batch]
    assert len(set(draws)) == len(draws)
    other = keys(StepBatches(10, 3, 1, [0], steps=6, start_step=0, seed=1))
    assert other != batches


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 7])
def test_resuming_at_any_step_continues_the_same_order(start: int) -> None:
    whole = keys(StepBatches(10, 4, 2, [0, 1], steps=7, start_step=0, seed=3))
    assert keys(StepBatches(10, 4, 2, [0, 1], steps=7, start_step=start, seed=3)) == whole[2 * start :]


def test_the_slots_of_all_processes_make_up_the_batch() -> None:
    whole = keys(StepBatches(20, 8, 1, [0], steps=4, start_step=0, seed=0))
    # Two processes, two micro-batches: slot = micro-batch * processes + rank.
    ranks = [keys(StepBatches(20, 8, 4, [rank, 2 + rank], steps=4, start_step=0, seed=0)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        (a, c), (b, d) = (rank[2 * step : 2 * step + 2] for rank in ranks)
        assert a + b + c + d == batch


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"number of images \(3\); got 4"):
        StepBatches(3, 4, 1, [0], 1, 0, 0)
    with pytest.raises(ValueError, match="multiple of num_slots=3"):
        StepBatches(8, 4, 3, [0], 1, 0, 0)
    with pytest.raises(ValueError, match=r"0 \.\. 1; got \[2\]"):
        StepBatches(8, 4, 2, [2], 1, 0, 0)


def test_a_loader_yields_the_batches_in_order() -> None:
    images = training(broken=frozenset({4}))
    batches = StepBatches(6, 2, 1, [0], steps=5, start_step=1, seed=0)
    loader: DataLoader[object] = DataLoader(images, batch_sampler=batches, collate_fn=list)
    assert list(loader) == [[images[key] for key in batch] for batch in batches]
