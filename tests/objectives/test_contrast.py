# SPDX-License-Identifier: Apache-2.0
"""Properties 4 to 8 and 11 of MMC's specification, on the equations alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rekindle.objectives import plain
from rekindle.objectives.contrast import PatchNegatives, cross_view_nce, info_nce, patch_nce

TAU = 0.2


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value(queries: Tensor, keys: Tensor, **changes: Any) -> float:
    return float(patch_nce(queries, keys, **{"temperature": TAU, **changes})[0])


@pytest.mark.parametrize("negatives", ["other_images_all", "other_images_same_position"])
def test_patch_nce_is_the_plain_equation(negatives: PatchNegatives) -> None:
    queries, keys = rows(3, 5, 4), rows(3, 5, 4, seed=1)
    expected = plain.patch_nce(queries, keys, temperature=TAU, is_same_position=negatives.endswith("position"))
    assert value(queries, keys, negatives=negatives) == pytest.approx(float(expected.mean()), rel=1e-6)
    weight = (rows(3, 5, seed=2) > 0).double()
    weighted = float((expected * weight).sum() / weight.sum())
    assert value(queries, keys, negatives=negatives, weight=weight) == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize("negatives", ["other_images_all", "other_images_same_position"])
def test_the_gradient_is_that_of_the_plain_equation(negatives: PatchNegatives) -> None:
    queries, keys = rows(3, 3, 4).requires_grad_(), rows(3, 3, 4, seed=1).requires_grad_()
    loss, _ = patch_nce(queries, keys, temperature=TAU, negatives=negatives, block_bytes=1)
    expected = plain.patch_nce(queries, keys, temperature=TAU, is_same_position=negatives.endswith("position")).mean()
    found = torch.autograd.grad(3 * loss, [queries, keys], allow_unused=True)
    assert found[1] is None
    torch.testing.assert_close(found[0], torch.autograd.grad(3 * expected, queries)[0])


def test_one_patch_per_image_is_info_nce_in_both_forms() -> None:
    queries, keys = rows(6, 1, 8, dtype=torch.float32), rows(6, 1, 8, seed=1, dtype=torch.float32)
    expected = info_nce(queries[:, 0], keys[:, 0], temperature=TAU)
    for negatives in ("other_images_all", "other_images_same_position"):
        assert value(queries, keys, negatives=negatives) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(expected, plain.info_nce(queries[:, 0], keys[:, 0], temperature=TAU))


def test_property_4_equal_logits_give_the_logarithm_of_the_keys() -> None:
    same = torch.ones(48, 8)
    losses, _ = cross_view_nce(same[None], same[None], temperature=TAU)
    assert float(losses) == pytest.approx(3.8712, abs=1e-4)
    assert value(torch.ones(48, 196, 4), torch.ones(48, 196, 4)) == pytest.approx(9.1284, abs=1e-3)


@pytest.mark.parametrize(("others", "expected"), [(47, 0.2751), (9212, 4.1442)])
def test_property_4_a_perfect_positive_among_orthogonal_negatives(others: int, expected: float) -> None:
    assert math.log(1 + others * math.exp(-1 / TAU)) == pytest.approx(expected, abs=1e-4)
    patches = 196 if others == 9212 else 1
    keys = torch.eye(48)[:, None].expand(-1, patches, -1)
    assert value(keys, keys) == pytest.approx(expected, abs=1e-3)


def test_property_5_patches_of_the_own_image_are_no_negatives() -> None:
    queries, keys = rows(3, 4, 8), rows(3, 4, 8, seed=1)
    alone = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[:, None].expand(-1, 4)
    before = value(queries, keys, weight=alone)
    others = keys.clone()
    others[0, 1:] = keys[0, 0]
    first_patch = torch.zeros_like(alone)
    first_patch[0, 0] = 1
    assert value(queries, keys, weight=first_patch) == value(queries, others, weight=first_patch)
    copied = keys.clone()
    copied[1] = keys[0]
    queries = keys + 0.1 * queries
    assert value(queries, copied, weight=alone) > value(queries, keys, weight=alone)
    assert before > 0


def test_property_6_a_patch_belongs_to_its_place() -> None:
    keys = rows(3, 6, 8)
    queries = keys + 0.3 * rows(3, 6, 8, seed=1)
    order = torch.tensor([3, 0, 1, 5, 2, 4])
    shuffled = keys.clone()
    shuffled[1] = keys[1, order]
    assert value(queries, shuffled) > value(queries, keys) + 0.1
    both = queries.clone()
    both[1] = queries[1, order]
    assert value(both, shuffled) == pytest.approx(value(queries, keys), rel=1e-12)


def test_property_7_blocks_of_queries_change_nothing() -> None:
    queries, keys = rows(5, 6, 8, dtype=torch.float32), rows(5, 6, 8, seed=1, dtype=torch.float32)
    found = []
    for size in (1, 2 * 4 * 6 * 30, 1 << 30):
        own = queries.clone().requires_grad_()
        loss, hits = patch_nce(own, keys, temperature=TAU, block_bytes=size)
        found.append((loss.detach(), hits, torch.autograd.grad(loss, own)[0]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


def test_property_7_some_positions_as_negatives_are_those_rows_in_the_plain_equation() -> None:
    queries, keys = rows(3, 5, 4), rows(3, 5, 4, seed=1)
    some = torch.tensor([[0, 3], [4, 1], [2, 0]])
    rows_of = torch.stack([key[chosen] for key, chosen in zip(keys, some, strict=True)])
    expected = plain.patch_nce(queries, keys, temperature=TAU, negatives=rows_of).mean()
    assert value(queries, keys, positions=some) == pytest.approx(float(expected), rel=1e-6)
    everything = torch.arange(5).flip(0).expand(3, -1)
    assert value(queries, keys, positions=everything) == pytest.approx(value(queries, keys), rel=1e-12)


def test_property_8_a_key_view_touches_only_its_own_pairs() -> None:
    queries, keys = rows(2, 4, 8), rows(2, 4, 8, seed=1)
    before, _ = cross_view_nce(queries, keys, temperature=TAU)
    keys[0] = rows(4, 8, seed=2)
    after, _ = cross_view_nce(queries, keys, temperature=TAU)
    assert torch.equal(before[:, 1], after[:, 1]) and (before[:, 0] != after[:, 0]).all()
    for s in range(2):
        for t in range(2):
            assert float(after[s, t]) == pytest.approx(float(info_nce(queries[s], keys[t], temperature=TAU)), rel=1e-9)


def test_property_11_the_length_of_rows_does_not_matter() -> None:
    queries, keys = rows(3, 4, 8), rows(3, 4, 8, seed=1)
    assert value(10 * queries, 10 * keys) == pytest.approx(value(queries, keys), rel=1e-12)
    wide, narrow = (cross_view_nce(s * queries, s * keys, temperature=TAU)[0] for s in (10, 1))
    torch.testing.assert_close(wide, narrow)


def test_hits_count_the_queries_whose_own_key_is_nearest() -> None:
    keys = torch.eye(4)[:, None].expand(-1, 2, -1).clone()
    queries = keys.clone()
    queries[0, 1] = torch.eye(4)[2]  # nearest to the patches of image 2
    for negatives in ("other_images_all", "other_images_same_position"):
        assert float(patch_nce(queries, keys, temperature=TAU, negatives=negatives)[1]) == 7 / 8
    _, hits = cross_view_nce(queries.transpose(0, 1), keys.transpose(0, 1), temperature=TAU)
    assert hits.tolist() == [[1.0, 1.0], [0.75, 0.75]]


def test_own_keys_further_down_are_those_of_a_second_process() -> None:
    queries, keys = rows(2, 3, 4), rows(4, 3, 4, seed=1)
    four = torch.cat([rows(2, 3, 4, seed=5), queries])
    expected = plain.patch_nce(four, keys, temperature=TAU)[2:].mean()
    assert value(queries, keys, first=2) == pytest.approx(float(expected), rel=1e-6)


def test_wrong_requests_are_refused() -> None:
    for wrong in ({"temperature": 0.0}, {"first": 3}):
        with pytest.raises(ValueError, match="own keys among those of at least two images"):
            value(rows(2, 3, 4), rows(4, 3, 4), **wrong)
    with pytest.raises(ValueError, match="at least two images"):
        value(rows(1, 3, 4), rows(1, 3, 4))
    with pytest.raises(ValueError, match="own keys among the 4"):
        cross_view_nce(rows(1, 2, 3), rows(1, 4, 3), temperature=TAU, first=3)
