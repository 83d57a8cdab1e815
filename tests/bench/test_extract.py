# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from rekindle.bench.extract import Ours
from tests.bench.cases import tiny


def test_a_round_extracts_the_batch_and_operations_grow_with_it() -> None:
    small, large = Ours(tiny("extract", batch_size=2)), Ours(tiny("extract", batch_size=4))
    assert (small.run(), large.run()) == (2, 4)
    assert large.facts()["flops"] == 2 * int(str(small.facts()["flops"])) > 0
    assert small.facts()["size_px"] == [48, 64]


def test_the_images_are_cut_to_the_patch_and_come_from_the_seed() -> None:
    first, same, other = (Ours(tiny("extract", height=50, width=47, seed=seed)) for seed in (0, 0, 1))
    assert first._images.shape == (4, 3, 48, 32)
    assert torch.equal(first._images, same._images) and not torch.equal(first._images, other._images)
